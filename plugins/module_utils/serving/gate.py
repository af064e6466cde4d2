# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof of a service: checks made in order on the running process; the first that fails gives the verdict."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence

from ..converge.model import Fault, Running, Verdict
from ..gpu.select import label
from ..toolbox.fields import dataclass, field


@dataclass
class Proof:
    """What the checks of one proof share."""

    devices: Sequence[Dict[str, Any]]
    """The declared GPUs, out of the facts; empty when none were declared."""
    facts: Dict[str, Any]
    """GPU facts from before the change."""
    gather: Callable[[], Dict[str, Any]]
    """Reads the GPU facts again."""
    explain: Callable[[Sequence[str]], Any]
    """The engine's reading of a process's last lines: ``model.Cause``."""
    running: Running = None  # type: ignore[assignment]
    changed: bool = False
    """Whether something was changed or started: else nothing is loaded or generated, and nothing is waited for."""
    started: bool = False
    """Whether this invocation was started by this run, and is looked at for the first time."""
    used: Dict[str, int] = field(default_factory=dict)
    """Bytes that the unit uses per GPU's UUID, as last seen."""
    figures: Dict[str, Any] = field(default_factory=dict)
    """What the checks measured and found out, for the result."""
    accepted: Any = None
    """What is recorded once the service is proven: ``endpoint.fingerprint.Recorded``; None for nothing."""

    def died(self) -> Fault:
        """Why the main process ended."""
        self.running.system.sync_journal()
        cause = self.explain(self.running.journal(JOURNAL))
        message = "the server gave up: %s" % cause.sentence if cause.line else "the server ended and said nothing"
        if cause.verdict == "out_of_memory":
            from ..placement.memory import holders

            held = holders(self.gather()["devices"], self.running.unit)
            message += "; %s" % held if held else ""
        return Fault(cause.verdict, message, last_words=cause.line)

    def declared(self) -> str:
        """The declared GPUs, for messages."""
        return ", ".join(label(device) for device in self.devices) or "no choice of GPUs"


Check = Callable[[Proof], None]
"""Raises Fault where it finds something wrong."""

JOURNAL = 1000
"""Lines that say why a process ended: each worker writes a traceback, before those of its parents."""


class Gate:
    """Called by the convergence with the running unit: after a change, and when there is none."""

    def __init__(self, checks: Sequence[Check], proof: Proof) -> None:
        self.checks, self.proof = list(checks), proof
        self.said: Optional[Verdict] = None
        """The last verdict; None where it was not asked."""
        self._seen = ""

    def __call__(self, running: Running, changed: bool) -> Verdict:
        proof = self.proof
        # an invocation that was looked at before may run for long, and its start be in no journal any more
        proof.started, self._seen = changed and running.invocation_id != self._seen, running.invocation_id
        proof.running, proof.changed = running, changed
        try:
            for check in self.checks:
                check(proof)
        except Fault as fault:
            self.said = fault.verdict
        else:
            self.said = Verdict("ok", evidence=dict(proof.figures))
        return self.said

    def gpus(self) -> List[Dict[str, Any]]:
        """The declared GPUs, or all, each with what the unit uses there, for the module's result."""
        return [
            {
                "index": device["index"],
                "uuid": device["uuid"],
                "name": device["name"],
                "pci_bus_id": device["pci_bus_id"],
                "used_bytes": self.proof.used.get(device["uuid"], 0),
            }
            for device in (self.proof.devices or self.proof.facts["devices"])
        ]


def gate(
    checks: Sequence[Check],
    *,
    devices: Sequence[Dict[str, Any]],
    facts: Dict[str, Any],
    gather: Callable[[], Dict[str, Any]],
    explain: Callable[[Sequence[str]], Any],
    figures: Optional[Dict[str, Any]] = None,
) -> Gate:
    """A gate that makes these checks."""
    return Gate(checks, Proof(devices, facts, gather, explain, figures={} if figures is None else figures))
