# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings one systemd unit to its declared state and proves it on the running process, or puts everything back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence

try:
    from typing import Protocol
except ImportError:  # pragma: no cover
    Protocol = object  # type: ignore


@dataclass
class Change:
    """What is declared for one unit.

    An empty ``environment`` or ``settings`` means that our override declares none, not that others' are removed.
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
    """Credential id to content, handed over by ``LoadCredential=``."""
    enabled: Optional[bool] = None
    started: Optional[bool] = None
    timeout: float = 60
    """Seconds within which the unit must be up and pass the gate."""


class Step(Protocol):
    """Something that must change together with the unit, such as installing its binary.

    Steps are applied in order before systemd is reloaded and undone in reverse order on rollback.
    """

    restarts: bool
    """True when a running unit must be restarted after this step was applied."""

    def needed(self) -> bool:
        """Tell, by reading alone, whether there is something to do."""

    def diff(self) -> Dict[str, str]:
        """Give ``before`` and ``after`` as text for a person."""

    def apply(self) -> None:
        """Do it; on an exception the step leaves things as they were, or ``undo`` cleans up."""

    def undo(self) -> None:
        """Put back what was before ``apply``; must also work after an ``apply`` that failed half-way."""


@dataclass
class Verdict:
    """What a gate found. ``name`` is ``ok`` or the name of a fault."""

    name: str
    message: str = ""
    evidence: Dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.name == "ok"


@dataclass
class Running:
    """The unit's running invocation, as a gate sees it."""

    unit: str
    main_pid: int
    invocation_id: str
    environ: Dict[str, str]
    """``/proc/MAINPID/environ``, secrets included: a gate must not report it as it is."""
    started_monotonic: float
    """Seconds on CLOCK_MONOTONIC at which the main process was started."""
    deadline: float
    """Value of ``time.monotonic()`` at which the gate has to have an answer."""
    system: Any = None

    @property
    def pids(self) -> List[int]:
        """All processes of the unit's control group, workers included."""
        return self.system.pids(self.unit)

    def journal(self, max_lines: int = 1000) -> List[str]:
        """The last lines that this invocation logged, oldest first."""
        return self.system.journal(self.unit, self.invocation_id, max_lines)

    def alive(self) -> bool:
        """False as soon as this invocation has failed, restarted or stopped."""
        raise NotImplementedError


Gate = Callable[[Running, bool], Verdict]


@dataclass
class Outcome:
    """What ``converge`` did; in check mode, what it would do."""

    changed: bool = False
    restarted: bool = False
    reloaded: bool = False
    rolled_back: bool = False
    verdict: Verdict = field(default_factory=lambda: Verdict("ok"))
    drift: Dict[str, Dict[str, Optional[str]]] = field(default_factory=dict)
    """Name to ``declared``, ``on_disk`` and ``running`` for every variable where the three differ."""
    shadowed: List[Dict[str, Any]] = field(default_factory=list)
    diff: Dict[str, str] = field(default_factory=dict)
    unavailable_ms: int = 0
    environment: Dict[str, str] = field(default_factory=dict)
    """The declared variables as the running process has them, secrets masked."""
    unit_state: Dict[str, Any] = field(default_factory=dict)

    def as_result(self) -> Dict[str, Any]:
        """The keys for ``exit_json`` or ``fail_json``."""
        raise NotImplementedError


class ServiceError(Exception):
    """The unit could not be brought to its declared state; ``outcome`` says what was done and put back."""

    def __init__(self, message: str, outcome: Optional[Outcome] = None) -> None:
        super().__init__(message)
        self.message = message
        self.outcome = outcome or Outcome()


def converge(
    change: Change,
    *,
    gate: Optional[Gate] = None,
    steps: Sequence[Step] = (),
    check_mode: bool = False,
    system: Any = None,
) -> Outcome:
    """Bring ``change.unit`` to its declared state.

    With ``check_mode`` the same code runs up to the first write. ``system`` is the seam to systemd
    (:class:`~.systemd.System`); tests pass a fake one.

    Raises :class:`ServiceError` after the former state is back, or saying what of it is not.
    """
    raise NotImplementedError
