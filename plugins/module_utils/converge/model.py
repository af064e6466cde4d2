# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a convergence takes and returns: a change, steps, a gate and its verdict, the running unit, the outcome."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional, Protocol

from ..systemd.manager import System
from ..systemd.process import Process
from ..systemd.unit import Unit
from ..toolbox.errors import Failed, Refused
from ..toolbox.fields import dataclass, field


@dataclass
class Change:
    """What is declared for one unit.

    An empty ``environment`` or ``settings`` means that our override declares none, not that foreign ones are removed.
    """

    unit: str
    """Full unit name, such as ``ollama.service``; a name without a suffix means a service."""
    state: str = "present"
    """``present`` or ``absent`` (our override, secret file and credentials are removed)."""
    environment: Dict[str, str] = field(default_factory=dict)
    settings: Dict[str, Dict[str, List[str]]] = field(default_factory=dict)
    """Section to key to values, one line each; a first value of ``""`` resets what the unit had before."""
    secret_environment: Dict[str, str] = field(default_factory=dict)
    """Kept in a root-only ``EnvironmentFile``, ``/etc/gpufleet/UNIT.env``."""
    credentials: Dict[str, str] = field(default_factory=dict)
    """Credential id to content, passed by ``LoadCredential=``."""
    files: Dict[str, Optional[str]] = field(default_factory=dict)
    """Path to text of further files of the unit's own, readable by all, which its process reads at its start: a change
    of one restarts it. None: the file must not exist."""
    reloads: bool = False
    """Its process reads ``files`` again at ``systemctl reload``, which then takes the place of a restart."""
    enabled: Optional[bool] = None
    started: Optional[bool] = None
    restart: str = ""
    """Why a running unit is restarted in any case."""
    install_hint: str = "install it first"
    """What to do where there is no such unit, for the message."""
    prove: bool = False
    """Ask the gate as after a change, even where nothing is changed, in check mode too."""
    was_up: bool = False
    """It ran until this run stopped it: a rollback starts it again."""
    timeout: float = 60
    """Seconds, from the start of the new process, within which the unit must be up and pass the gate."""
    settle: float = 2
    """Seconds for which a unit without a gate is watched after a start: one that dies within them has failed."""
    unit_check: Optional[Callable[[Unit], Optional[str]]] = None
    """Why the unit as it will be, foreign drop-ins included, must not run; asked before anything is written."""
    pre_change_check: Optional[Callable[[], Optional[str]]] = None
    """Why nothing may be changed now; asked only if something would be, in check mode too."""
    while_writing: Callable[[], ContextManager[None]] = nullcontext
    """Entered while the files are put in place, such as a lock; a StepError stops the change there."""
    accepted: Callable[["Outcome"], None] = lambda outcome: None
    """Called once a change is proven, before the previous files are given up. If the run is killed in between, the next
    one proves the change again, and calls this again."""


class StepError(Refused):
    """A step cannot do its part; the message says why, and what to do."""


class Step(Protocol):
    """Something that must change together with the unit, such as installing its binary.

    Steps are applied in order before systemd is reloaded and undone in reverse order on rollback. One that writes the
    unit's own file has ``writes_unit = True``; a unit that does not exist is refused unless there is such a step.
    """

    restarts: bool
    """True when a running unit must be restarted after this step was applied."""

    def needed(self) -> bool:
        """Whether there is something to do; only reads."""

    def diff(self) -> Dict[str, str]:
        """``before`` and ``after`` as text for a person."""

    def apply(self) -> None:
        """Do it; after an exception things are as they were, or ``undo`` cleans up."""

    def undo(self) -> Optional[str]:
        """Restore what was there before ``apply``; must also work after an ``apply`` that failed half-way.

        Returns what it could not or must not restore, as the end of a sentence such as "the user ollama remains".
        """


@dataclass
class Verdict:
    """What a gate found. ``name`` is ``ok`` or the name of a fault."""

    name: str
    message: str = ""
    evidence: Dict[str, Any] = field(default_factory=dict)
    remedy: str = ""
    """What may fix a unit in its declared state: ``restart``, ``reload``, ``proof`` (the gate as it is asked after a
    change, which makes the process do some work), or empty, which is nothing."""

    @property
    def ok(self) -> bool:
        return self.name == "ok"


class Fault(Exception):
    """A check that failed, in a gate or in a convergence; ``verdict`` says which and why."""

    def __init__(self, name: str, message: str, *, remedy: str = "", **evidence: Any) -> None:
        super().__init__(message)
        self.verdict = Verdict(name, message, evidence, remedy)
        self.invocation = ""
        """The invocation that failed, if there was one."""

    @classmethod
    def of(cls, verdict: Verdict) -> "Fault":
        fault = cls(verdict.name, verdict.message)
        fault.verdict = verdict
        return fault


@dataclass
class Running:
    """The unit's running invocation, as a gate sees it."""

    unit: str
    main_pid: int
    invocation_id: str
    environ: Dict[str, str]
    """``/proc/MAINPID/environ``, secrets included: a gate must not report it as it is."""
    started_monotonic: float
    """Seconds on CLOCK_MONOTONIC (as ``time.monotonic()``) at which the main process was started."""
    deadline: float
    """Value of ``time.monotonic()`` at which the gate has to have an answer."""
    control_group: str
    process: Process
    system: System

    @property
    def pids(self) -> List[int]:
        """All processes of the unit's control group, workers included."""
        return self.system.pids(self.control_group)

    def journal(self, max_lines: int = 1000) -> List[str]:
        """The last lines that this invocation logged, oldest first."""
        return self.system.journal(self.unit, self.invocation_id, max_lines)

    def journal_from_start(self) -> Iterator[str]:
        """What this invocation logged, from its first line on; no more is read than is taken."""
        return self.system.journal_from_start(self.invocation_id)

    def alive(self) -> bool:
        """False as soon as the main process has ended, and with it this invocation. Costs no process."""
        return self.process.alive()

    def dying(self) -> bool:
        """Whether the main process has ended or does so within a second: it may notice its child's death late."""
        return self.process.ended_within(1.0)

    def await_ok(self, look: Callable[[], Verdict], changed: bool) -> Verdict:
        """The verdict of ``look``; after a change it is asked again while it raises a Fault that time may end."""
        while True:
            try:
                return look()
            except Fault as fault:
                hopeless = fault.verdict.name == "not_reloaded"
                if hopeless or not changed or time.monotonic() > self.deadline or self.dying():
                    return fault.verdict
                # a server does not report that it has read its files, which it does after systemd has asked for it
                time.sleep(0.1)


Gate = Callable[[Running, bool], Verdict]


class StopHooks(Protocol):
    """What has to happen when a run stops a process, such as letting its requests end."""

    def before_stop(self, running: Running) -> None:
        """Called right before the process is stopped, while it still serves. What it raises fails the change."""

    def after_stop(self) -> Verdict:
        """Called once the process is gone; a verdict that is not ok fails the change before another one is started."""


@dataclass
class Outcome:
    """What ``converge`` did; in check mode, what it would do. It contains no secrets."""

    changed: bool = False
    restarted: bool = False
    reloaded: bool = False
    rolled_back: bool = False
    verdict: Verdict = field(default_factory=lambda: Verdict("ok"))
    reasons: List[str] = field(default_factory=list)
    """Why the unit was restarted, or proven again."""
    differs: List[str] = field(default_factory=list)
    """Names of what differed from the declaration, see plan.Plan."""
    planned: List[str] = field(default_factory=list)
    """The writes and systemctl commands of the run, in order; in check mode those of a real run."""
    remedied: str = ""
    """The verdict that was fixed though nothing had to be changed; in check mode the one that would be."""
    drift: Dict[str, Dict[str, Optional[str]]] = field(default_factory=dict)
    """Name to ``declared``, ``on_disk`` and ``running``, as found, of every variable for which the three differ."""
    shadowed: List[Dict[str, Any]] = field(default_factory=list)
    """``name``, ``declared``, ``effective``, ``file`` and ``line`` of what another file overrides."""
    warnings: List[str] = field(default_factory=list)
    diff: Dict[str, str] = field(default_factory=dict)
    downtime_ms: int = 0
    """Time from the stop of the unit until the new process was proven, or the previous one was running again."""
    environment: Dict[str, str] = field(default_factory=dict)
    """The declared variables as the running process has them."""
    unit_state: Dict[str, Any] = field(default_factory=dict)

    def as_result(self) -> Dict[str, Any]:
        """The keys for ``exit_json`` or ``fail_json``; the warnings are for ``module.warn``."""
        return {
            "changed": self.changed,
            "restarted": self.restarted,
            "reloaded": self.reloaded,
            "rolled_back": self.rolled_back,
            "verdict": self.verdict.name,
            "evidence": self.verdict.evidence,
            "reasons": self.reasons,
            "differs": self.differs,
            "planned": self.planned,
            "drift": self.drift,
            "shadowed": self.shadowed,
            "diff": self.diff,
            "downtime_ms": self.downtime_ms,
            "environment": self.environment,
            "unit_state": self.unit_state,
        }


class ServiceError(Failed):
    """The unit is not in its declared state; ``outcome`` says what was done and rolled back."""

    def __init__(self, message: str, outcome: Optional[Outcome] = None) -> None:
        self.outcome = outcome or Outcome()
        super().__init__(message, self.outcome.as_result())
        self.message = message
