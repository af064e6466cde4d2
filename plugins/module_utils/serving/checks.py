# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that hold for any engine: it comes up, the port is its own, it uses the declared GPUs."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from ..converge.model import Fault, Running
from ..gpu.processes import held_by_unit
from ..gpu.select import label
from ..toolbox.text import printable
from .gate import Proof

_GIB = 1024.0**3
_MEMORY_DELAY = 5.0  # seconds that NVML may need to name a process
_LOOK = 2.0  # least seconds between two reads of journal and memory while it starts
_GRACE = 5.0  # seconds in which a service that nobody has just started must answer

Ask = Callable[[Proof, float], Optional[str]]
"""Asks a server whether it is up, within so many seconds: None when it is, else why not yet. Raises Fault where waiting
is of no use."""


class ComesUp:
    """Waits until the server answers.

    Verdicts: what the engine reads from the last lines of a process that ended, ``stalled``, ``not_ready``.

    :param ask: whether it is up.
    :param young: seconds after its start for which a server that others have started may not be up yet.
    :param stall: seconds without a line in the journal and without more GPU memory after which a start has stalled;
        None: a start is only limited by its deadline.
    """

    def __init__(self, ask: Ask, young: float, stall: Optional[float] = None) -> None:
        self.ask, self.young, self.stall = ask, young, stall

    def __call__(self, proof: Proof) -> None:
        running, now = proof.running, time.monotonic()
        # one that runs for long must answer at once; one that others have just started may take longer
        until = running.deadline
        if not proof.changed:
            until = min(until, max(now + _GRACE, running.started_monotonic + self.young))
        progress = _Progress(running, proof.gather if proof.devices else None, self.stall or self.young)
        pause = 0.02
        while True:
            if not running.alive():
                raise proof.died()
            left = until - time.monotonic()
            last = self.ask(proof, max(0.1, min(3.0, left)))
            if last is None:
                proof.figures["ready_seconds"] = round(time.monotonic() - running.started_monotonic, 1)
                return
            silent = progress.silent() if self.stall else 0.0
            if self.stall and silent > self.stall:
                raise Fault(
                    "stalled",
                    "it runs, but for %.0f s it has logged nothing, taken no more GPU memory and not answered (%s); "
                    "%s. Raise stall_timeout if this model is silent for longer" % (silent, last, progress.said()),
                    silent_seconds=round(silent),
                    used_bytes=progress.used,
                )
            if left <= 0:
                progress.look()
                raise Fault(
                    "not_ready",
                    "the process runs but does not answer within %.0f s of its start: %s; %s. Raise timeout if this "
                    "model takes longer" % (time.monotonic() - running.started_monotonic, last, progress.said()),
                )
            # a server sends no word when it is ready
            time.sleep(min(pause, max(0.0, left)))
            pause = min(0.5, pause * 1.5)


def owns_port(port: int) -> Callable[[Proof], None]:
    """Whoever answers must be a process of the unit; verdict ``port_taken``."""

    def check(proof: Proof) -> None:
        listener = proof.running.system.listener(port)
        if listener is None or not listener[0] or listener[0] in proof.running.pids:
            return
        raise Fault(
            "port_taken",
            "port %d is answered by process %d (%s), which does not belong to %s: stop it, or choose another port"
            % (port, listener[0], listener[1], proof.running.unit),
            pid=listener[0],
        )

    return check


def after_change(check: Callable[[Proof], None]) -> Callable[[Proof], None]:
    """The check is made only where something was changed."""

    def made(proof: Proof) -> None:
        if proof.changed:
            check(proof)

    return made


class Expected(NamedTuple):
    """What a service must use of its GPUs."""

    everywhere: bool = False
    """Something on each of the declared GPUs."""
    least: int = 0
    """Bytes on all of them together, as the server itself says."""
    what: str = ""
    """The model, for messages."""
    nothing: bool = False
    """It may use none, as no model is loaded: then only other GPUs than the declared ones are wrong."""


class UsesGpus:
    """NVML must name the unit's own processes on the declared GPUs, and on no others.

    Verdicts: ``unproven`` (who uses memory cannot be read), ``cpu_fallback``, ``wrong_gpu``, ``vram_missing``,
    ``spread_missing``, ``uneven_spread``.

    :param expected: asked again before each look, as a model may be loaded or unloaded meanwhile.
    :param uneven: what to do where other processes' memory made the engine spread a model unevenly: ``fail``, ``warn``,
        or empty for an engine that does not divide its layers by free memory.
    :param warn: called with that warning.
    """

    def __init__(
        self,
        expected: Callable[[Proof], Expected] = lambda proof: Expected(everywhere=True),
        uneven: str = "",
        warn: Callable[[str], None] = lambda _sentence: None,
    ) -> None:
        self.expected, self.uneven, self.warn = expected, uneven, warn

    def __call__(self, proof: Proof) -> None:
        if not (proof.devices or proof.facts.get("count")):
            return
        expected = self.expected(proof)
        # what was read before a change says nothing of the new process
        facts, fresh = (proof.gather(), True) if proof.changed else (proof.facts, False)
        until, most = time.monotonic() + (_MEMORY_DELAY if proof.changed else 0), -1
        while True:
            try:
                self.look(proof, facts, expected)
                break
            except Fault:
                used, now = sum(proof.used.values()), time.monotonic()
                if used > most:  # it is just being loaded
                    most, until = used, max(until, now + _MEMORY_DELAY if used or expected.least else until)
                if fresh and now >= until:
                    raise
            if fresh:
                # NVML names a process some time after it took memory, and sends no word
                time.sleep(0.1)
            facts, fresh = proof.gather(), True
            if not proof.changed:
                expected = self.expected(proof)
        if self.uneven and expected.everywhere and not expected.nothing:
            self.divided(proof, facts, expected)

    def look(self, proof: Proof, facts: Dict[str, Any], expected: Expected) -> None:
        unit = proof.running.unit
        by_uuid = {device["uuid"]: device for device in facts["devices"]}
        declared = [device["uuid"] for device in proof.devices] or list(by_uuid)
        proof.used = held_by_unit(facts["devices"], unit)
        elsewhere = [label(by_uuid[uuid]) for uuid in sorted(set(proof.used) - set(declared))]
        if elsewhere:
            raise Fault(
                "wrong_gpu",
                "%s uses memory on GPUs that are not declared: %s; declared: %s"
                % (unit, ", ".join(elsewhere), proof.declared()),
                remedy="restart",
                others=elsewhere,
            )
        if expected.nothing:
            return
        if facts["source"] not in ("nvml", "nvidia-smi"):
            raise Fault(
                "unproven",
                "which process uses GPU memory cannot be read: neither NVML (pynvml) nor nvidia-smi works here; the "
                "role gpu_host installs pynvml",
            )
        total = sum(proof.used.values())
        if not total and not expected.least:
            raise Fault(
                "cpu_fallback",
                "%s answers, but none of its processes uses memory on any GPU; declared: %s" % (unit, proof.declared()),
                remedy="restart",
            )
        if total < expected.least:
            raise Fault(
                "vram_missing",
                "the server reports %.1f GiB of %s on GPUs, but the processes of %s use %.1f GiB: its worker is dead "
                "or runs outside the unit" % (expected.least / _GIB, expected.what, unit, total / _GIB),
                remedy="proof",  # the server notices at the next request, and loads it again
                size_vram=expected.least,
                used=total,
            )
        without = [label(by_uuid[uuid]) for uuid in declared if uuid not in proof.used and uuid in by_uuid]
        if expected.everywhere and without:
            raise Fault(
                "spread_missing",
                "%s is to use %d GPUs, but uses no memory on %s"
                % (expected.what or unit, len(declared), ", ".join(without)),
                remedy="restart",
                without=without,
            )

    def divided(self, proof: Proof, facts: Dict[str, Any], expected: Expected) -> None:
        """Whether a model is spread evenly; if not, who else uses memory there."""
        from ..placement import spread

        declared = {device["uuid"] for device in proof.devices}
        devices = [device for device in facts["devices"] if not declared or device["uuid"] in declared]
        found = spread.uneven(devices, proof.running.unit)
        if not found:
            return
        message = "%s is spread unevenly over %d GPUs because other processes use memory there: %s" % (
            expected.what or proof.running.unit,
            len(found),
            spread.describe(found),
        )
        if self.uneven == "warn":
            self.warn(message)
            return
        raise Fault(
            "uneven_spread",
            message + ". Free that memory, declare other GPUs (visible_devices), or accept it (uneven_spread: warn)",
            gpus=found,
        )


class _Progress:
    """Signs of life of a start: new lines in the journal, more memory on the GPUs."""

    def __init__(self, running: Running, gather: Optional[Callable[[], Dict[str, Any]]], stall: float) -> None:
        self.running, self.gather, self.stall = running, gather, stall
        self.pause = max(_LOOK, stall / 20)
        self.line, self.used = "", 0
        self._lines: List[str] = []
        self._last = self._looked = time.monotonic()

    def silent(self) -> float:
        """Seconds since the last sign; looks again every few seconds only, and before it is called a stall."""
        now = time.monotonic()
        if now >= self._looked + self.pause or now > self._last + self.stall:
            self._looked = now
            self.look()
        return max(0.0, now - self._last)

    def look(self) -> None:
        lines = self.running.journal(3)
        used = self.used
        if self.gather:
            used = sum(held_by_unit(self.gather()["devices"], self.running.unit).values())
        if lines != self._lines or used > self.used:
            self._last = time.monotonic()
        self._lines, self.used = lines, max(self.used, used)
        self.line = printable(lines[-1]).strip()[:300] if lines else ""

    def said(self) -> str:
        memory = "it uses %.1f GiB of GPU memory" % (self.used / _GIB) if self.gather else "it uses no GPU"
        return "%s. Its last line: %s" % (memory, self.line or "none")
