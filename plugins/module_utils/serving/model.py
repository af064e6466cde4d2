# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run of any serving engine deals with: the host, a service, what its engine declares, what is then decided."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple

from ..converge.model import Change, Outcome, Step, StopHooks
from ..gpu import facts as gpu_facts
from ..placement.choice import Placed
from ..placement.claims import Claim
from ..toolbox.fields import dataclass, field
from .gate import Check, Gate, Proof

STAYING = ("present", "asleep")
"""States of a service that runs. Only vLLM can be asleep."""


class Host:
    """The host of one run: its systemd, its GPUs, and where warnings go.

    :param thorough: False in the lean question: a host that would be changed is reported as such at once, and what a
        start would run into is not examined.
    """

    def __init__(
        self, system: Any, check_mode: bool, warn: Callable[[str], None], facts_timeout: float, thorough: bool = True
    ) -> None:
        self.system, self.check_mode, self.warn = system, check_mode, warn
        self.facts_timeout, self.thorough = facts_timeout, thorough
        self._facts: Optional[Dict[str, Any]] = None

    @property
    def facts(self) -> Dict[str, Any]:
        """The GPU facts as they were when they were first needed."""
        if self._facts is None:
            self._facts = gpu_facts.first_look(self.facts_timeout)
        return self._facts

    def gather(self) -> Dict[str, Any]:
        """The GPU facts as they are now."""
        return gpu_facts.gather_for(self.facts_timeout)


class Service(NamedTuple):
    """One service of a run, as the inventory has it."""

    unit: str
    """Full name, such as ``vllm@chat.service``."""
    name: str
    """Name of the instance; empty for a service that is not an instance."""
    options: Mapping[str, Any]
    """Its options, with the defaults of all instances filled in."""
    siblings: Sequence["Service"] = ()
    """The other services of the run that stay."""
    replaced: bool = False
    """Whether instances take the place of this service."""
    held: str = ""
    """Which generation its options come from, in words; empty if they are as declared."""


class Listen(NamedTuple):
    """Where a service listens."""

    address: str
    port: int
    authenticated: bool = False
    """Whether it asks every client for a key."""
    declared: bool = True
    """False where the address comes from a foreign file: then it is only warned about."""
    shown: str = ""
    """The address as it was written, for messages."""


class Installs(NamedTuple):
    """A release that takes the place of another one."""

    after: Optional[str] = None
    """Its version; None where that is not declared."""
    before: Optional[str] = None
    """The version in use until then; None where it is unknown."""
    first: bool = False
    """Whether there was none."""


@dataclass
class Declared:
    """What an engine wants of one service. The serving floor adds its claim, isolation and the sandbox."""

    user: str
    listen: Optional[Listen] = None
    """None: it serves no API, as all but the first host of a model on several."""
    environment: Dict[str, str] = field(default_factory=dict)
    secret_environment: Dict[str, str] = field(default_factory=dict)
    credentials: Dict[str, str] = field(default_factory=dict)
    files: Dict[str, Optional[str]] = field(default_factory=dict)
    settings: Dict[str, List[str]] = field(default_factory=dict)
    """Keys of ``[Service]``."""
    steps: List[Step] = field(default_factory=list)
    checks: List[Check] = field(default_factory=list)
    """The proof, in order. The serving floor has the neutral ones (checks.py); an engine puts its own among them."""
    together: Optional[Check] = None
    """After all other checks: waits until the other hosts of a shared model are verified, too. A fault that is found
    later would be rolled back on this host alone."""
    hooks: Optional[StopHooks] = None
    ports: Tuple[int, ...] = ()
    """Further ports that it takes, in addition to the one on which it listens."""
    share: Optional[float] = None
    """Share of each GPU's memory that it takes, 0 to 1; None: as much as it gets."""
    writable: Sequence[str] = ()
    """Folders that it writes into, for the sandbox."""
    readable: Sequence[str] = ()
    """Further folders that it needs, which the sandbox must not hide."""
    sandbox: Dict[str, List[str]] = field(default_factory=dict)
    """What it needs otherwise than the sandbox's profile has it."""
    timeout: float = 60
    """Seconds from its start until it must be proven."""
    restart: str = ""
    """Why a running service is restarted in any case."""
    pre_change_check: Optional[Callable[[], Optional[str]]] = None
    warnings: List[str] = field(default_factory=list)
    """Reported where the service is going to be started, not on every run."""
    installs: Optional[Installs] = None
    """Set by ``preflight`` where another release is going to be installed."""
    install_hint: str = "install it first"
    """What to do where its unit does not exist, for the message."""
    unproven: str = ""
    """Why its model is not going to answer even after a change, in a few words."""
    asks: Optional[Callable[[Proof], Tuple[Any, str]]] = None
    """Its ``Endpoint``, and the model to ask there; None if there is no model to ask."""
    ready: str = ""
    """URL that answers once it can be used, or asks for a key then."""
    own: Any = None
    """What the engine keeps of its decisions, for ``preflight`` and ``describe``."""


class Plan(NamedTuple):
    """One service, everything about it decided and nothing changed yet."""

    service: Service
    placed: Placed
    declared: Declared
    claim: Claim
    change: Change
    gate: Gate
    vacated: Sequence[str] = ()
    """Units whose memory on its GPUs is free before it starts, as the same run removes or moves them."""

    @property
    def unit(self) -> str:
        return self.change.unit


class Leaving(NamedTuple):
    """What an engine wants of a service that goes."""

    files: Dict[str, Optional[str]] = {}
    steps: Sequence[Step] = ()
    hooks: Optional[StopHooks] = None


class Cause(NamedTuple):
    """Why a process ended."""

    verdict: str = "crash_loop"
    line: str = ""
    """Its own words; empty when it said nothing that explains it."""
    advice: str = ""

    @property
    def sentence(self) -> str:
        return self.line + (": " + self.advice if self.advice else "")


CauseTable = Sequence[Tuple[str, str, str]]
"""Words of a line, the verdict that they mean, and the advice; the first row that any line has is the cause."""


def known_cause(table: CauseTable, lines: Sequence[str]) -> Optional[Cause]:
    """The cause out of a table; its line is the last one that has the words. None where no line has any."""
    for words, verdict, advice in table:
        for text in reversed(lines):
            if words in text:
                return Cause(verdict, text.strip(), advice)
    return None


class Engine(Protocol):
    """What an engine has of its own. Everything else is the serving floor's."""

    title: str
    """For messages, such as ``vLLM``."""
    counts_visible: bool
    """Whether it takes CUDA_VISIBLE_DEVICES as numbers even where only its own GPUs can be opened."""
    loads_at_start: bool
    """Whether a server that runs always uses memory of its GPUs: one that uses none is then about to be started."""
    open_to: str
    """What anybody who reaches it could do, such as ``use, pull and delete models``."""

    def declare(self, service: Service, placed: Placed, host: Host) -> Declared:
        """What one service is to have.

        :raises Refused: it cannot be had.
        """

    def preflight(self, plan: Plan, host: Host) -> None:
        """Look at what a start would run into; called only where there will be one, before anything is written.
        Notes in ``plan.declared.installs`` which release it brings.

        :raises Refused: it would fail.
        """

    def leave(self, service: Service, host: Host) -> Leaving:
        """What goes with a service that is declared absent."""

    def explain(self, lines: Sequence[str]) -> Cause:
        """Why a process ended, from the last lines that it logged, oldest first."""

    def describe(self, plan: Plan, proof: Proof, outcome: Outcome) -> Tuple[List[str], Dict[str, Any]]:
        """The engine's parts of the summary line, and its keys of the result, ``version`` among them where it is known.
        A check that had the model answer has put ``answer`` into the proof's figures."""
