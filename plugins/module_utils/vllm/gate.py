# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof that a vLLM instance does what is declared of it, and what is done around its stop.

/health answers 200 for as long as the front end lives, so it is not asked. The models must be listed by this very unit,
the model must do its own kind of work (a token generated and counted, an embedding, a score, a class), and NVML must
name the unit's own processes on every declared GPU.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Optional, Sequence

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.engine import Fault, Running, Verdict
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint, EndpointError, Load
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.processes import held_by_unit
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.select import label
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.http_stream import HttpError
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import one_line
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import log, sizing

_MEMORY_DELAY = 5.0  # seconds that NVML may need to name a process
_JOURNAL = 1000  # lines that tell why it ended: each worker writes a traceback, before those of its parents
_LOOK = 2.0  # seconds between two looks at journal and memory while it starts, at least


class VllmGate:
    """Called by the engine with the running unit, after a change and when there is none.

    The verdicts, in the order in which they are looked for: ``crash_loop``, ``out_of_memory``, ``port_taken``,
    ``bad_config``, ``model_missing`` (its last words tell which), ``stalled``, ``not_ready``, ``unauthorized``;
    ``asleep``; ``not_generated``, ``no_progress``; ``cpu_fallback``, ``wrong_gpu``, ``vram_missing``; else ``ok``.
    Without a change no token is asked for.

    :param endpoint: where it listens, with the key that it will want.
    :param served: name of the model for clients.
    :param devices: the GPUs declared, out of the facts; empty when it runs on the CPU.
    :param facts: GPU facts from before.
    :param gather: reads them anew.
    :param stall: seconds without a line in the journal and without more memory, after which a start has stalled.
    :param token_timeout: seconds for the token.
    :param allowed: seconds that a start may take at all.
    :param asleep: ``refuse`` or ``accept`` an engine that is asleep; None where it has no sleep mode.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        served: str,
        devices: Sequence[Dict[str, Any]],
        facts: Dict[str, Any],
        gather: Callable[[], Dict[str, Any]],
        stall: float,
        token_timeout: float,
        allowed: float,
        asleep: Optional[str] = None,
    ) -> None:
        self.endpoint, self.served = endpoint, served
        self.devices, self.facts, self.gather = list(devices), facts, gather
        self.stall, self.token_timeout, self.allowed = stall, token_timeout, allowed
        self.asleep = asleep
        self.held: Dict[str, int] = {}
        """Bytes that the unit holds per GPU's UUID, as last seen."""
        self.figures: Dict[str, Any] = {}
        """Seconds until it was ready, the model's task, what it answered, and the seconds that took."""

    def __call__(self, running: Running, changed: bool) -> Verdict:
        try:
            self._comes_up(running, changed)
            if changed:
                self._is_ours(running)
            if not self._sleeps() and changed:
                self._answers(running)
            self._holds_memory(running, changed)
        except Fault as fault:
            return fault.verdict
        return Verdict("ok", evidence=dict(self.figures))

    # --- the checks, in the order in which they are made

    def _comes_up(self, running: Running, changed: bool) -> None:
        # one that was started by others may still be loading; a later death is noticed in any case
        now = time.monotonic()
        deadline = running.deadline if changed else max(now + 5, running.started_monotonic + self.allowed)
        progress = _Progress(running, self.gather if self.devices else None, self.stall)
        pause = 0.05
        while True:
            if not running.alive():
                raise self._died(running)
            left = deadline - time.monotonic()
            last = self._lists_model(running)
            if last is None:
                self.figures["ready_seconds"] = round(time.monotonic() - running.started_monotonic, 1)
                return
            silent = progress.silent()
            if silent > self.stall:
                raise Fault(
                    "stalled",
                    "it runs, but for %.0f s it has logged nothing, taken no more GPU memory and not answered (%s); "
                    "%s. Its last line: %s. Raise stall_timeout if this model is silent for longer"
                    % (silent, last, self._holding(progress.held), progress.line or "none"),
                    silent_seconds=round(silent),
                    held_bytes=progress.held,
                )
            if left <= 0:
                progress.look()
                raise Fault(
                    "not_ready",
                    "it runs, but does not answer within %.0f s of its start: %s; %s. Its last line: %s. Raise timeout "
                    "if this model takes longer"
                    % (
                        time.monotonic() - running.started_monotonic,
                        last,
                        self._holding(progress.held),
                        progress.line or "none",
                    ),
                )
            # a server sends no word when it is ready
            time.sleep(min(pause, max(0.0, left)))
            pause = min(0.5, pause * 1.5)

    def _lists_model(self, running: Running) -> Optional[str]:
        """None when the model is listed, else why not yet."""
        try:
            names = [entry.get("id") for entry in self.endpoint.models(3.0)]
        except HttpError as error:
            return str(error)
        except EndpointError as error:
            if error.name != "unauthorized":
                return str(error)
            self._is_ours(running)
            raise Fault(error.name, str(error)) from None
        if self.served in names:
            return None
        self._is_ours(running)
        served = one_line(", ".join(map(str, names))) or "no model"
        raise Fault("model_missing", "it serves %s, not %s" % (served, self.served))

    def _died(self, running: Running) -> Fault:
        running.system.sync_journal()
        words = log.last_words(running.journal(_JOURNAL))
        held = sizing.holders(self.gather()["devices"], running.unit) if words.verdict == "out_of_memory" else ""
        message = "the server gave up: %s" % words.sentence if words.line else "the server ended and said nothing"
        return Fault(words.verdict, message + ("; %s" % held if held else ""), last_words=words.line)

    def _is_ours(self, running: Running) -> None:
        """Whoever answers must be a process of the unit."""
        listener = running.system.listener(self.endpoint.port)
        if listener is None or not listener[0] or listener[0] in running.pids:
            return
        raise Fault(
            "port_taken",
            "port %d is answered by process %d (%s), which is none of %s: stop it, or choose another port"
            % (self.endpoint.port, listener[0], listener[1], running.unit),
            pid=listener[0],
        )

    def _sleeps(self) -> bool:
        """Whether its engine is asleep, where that is accepted."""
        if self.asleep is None:
            return False
        from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.sleep import asleep

        if not asleep(self.endpoint):
            return False
        if self.asleep != "accept":
            raise Fault(
                "asleep",
                "it runs and lists %s, but its engine is asleep and answers no request; wake it with POST %s/wake_up "
                "(restart it after level 2, which drops the weights), or declare asleep: accept"
                % (self.served, self.endpoint.url),
            )
        self.figures["asleep"] = True
        return True

    def _answers(self, running: Running) -> None:
        # a host that is as declared needs it for nothing
        from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.answers import answer

        before = self._load()
        try:
            answered = answer(self.endpoint, self.served, self.token_timeout)
        except EndpointError as error:
            if running.dying():
                raise self._died(running) from None
            raise Fault(error.name, str(error)) from None
        after = self._load()
        if answered.tokens and before and after and after.generated <= before.generated:
            raise Fault(
                "no_progress",
                "%s answered with a token, but its own counter of generated tokens stands at %d as before: the answer "
                "is not the engine's" % (self.served, after.generated),
            )
        self.figures.update(task=answered.task, answer=answered.said)
        if answered.seconds is not None:
            self.figures["latency_seconds"] = round(answered.seconds, 3)

    def _load(self) -> Optional[Load]:
        try:
            return self.endpoint.load()
        except HttpError:
            return None

    def _holds_memory(self, running: Running, changed: bool) -> None:
        if not self.devices:
            return
        # one that others have started may have taken its memory since the facts were read
        facts, fresh = self.gather() if changed else self.facts, changed
        until = time.monotonic() + (_MEMORY_DELAY if changed else 0)
        while True:
            try:
                return self._held(facts, running.unit)
            except Fault:
                if fresh and time.monotonic() >= until:
                    raise
            if fresh:
                # NVML names a process some time after it took memory, and sends no word
                time.sleep(0.2)
            facts, fresh = self.gather(), True

    def _held(self, facts: Dict[str, Any], unit: str) -> None:
        if facts["source"] not in ("nvml", "nvidia-smi"):
            raise Fault(
                "unproven",
                "which process holds GPU memory cannot be read: neither NVML (pynvml) nor nvidia-smi works here; "
                "the role gpu_host installs pynvml",
            )
        by_uuid = {device["uuid"]: device for device in facts["devices"]}
        self.held = held_by_unit(facts["devices"], unit)
        declared = [device["uuid"] for device in self.devices]
        if not self.held:
            raise Fault(
                "cpu_fallback",
                "%s answers, but none of its processes holds memory on any GPU; declared are %s"
                % (unit, ", ".join(label(device) for device in self.devices)),
            )
        elsewhere = [label(by_uuid[uuid]) for uuid in sorted(set(self.held) - set(declared))]
        if elsewhere:
            raise Fault(
                "wrong_gpu",
                "%s holds memory on GPUs that are not declared: %s" % (unit, ", ".join(elsewhere)),
                others=elsewhere,
            )
        without = [label(device) for device in self.devices if device["uuid"] not in self.held]
        if without:
            raise Fault(
                "vram_missing",
                "%s holds no memory on %s, though it is to use %d GPUs" % (unit, ", ".join(without), len(declared)),
                without=without,
            )

    def _holding(self, held: int) -> str:
        return "it holds %s of GPU memory" % sizing.gib(held) if self.devices else "it uses no GPU"

    def proven(self) -> List[Dict[str, Any]]:
        """The declared GPUs, each with what the unit holds there, for the module's result."""
        return [
            {
                "index": device["index"],
                "uuid": device["uuid"],
                "name": device["name"],
                "pci_bus_id": device["pci_bus_id"],
                "held_bytes": self.held.get(device["uuid"], 0),
            }
            for device in self.devices
        ]


class _Progress:
    """Signs of life of a start: new lines in the journal, more memory on the GPUs."""

    def __init__(self, running: Running, gather: Optional[Callable[[], Dict[str, Any]]], stall: float) -> None:
        self.running, self.gather, self.stall = running, gather, stall
        self.pause = max(_LOOK, stall / 20)
        self.line, self.held = "", 0
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
        held = self.held
        if self.gather:
            held = sum(held_by_unit(self.gather()["devices"], self.running.unit).values())
        if lines != self._lines or held > self.held:
            self._last = time.monotonic()
        self._lines, self.held = lines, max(self.held, held)
        self.line = log.bare(lines[-1]) if lines else ""


class VllmStopHooks:
    """Lets requests end before the process is stopped, and waits for its GPU memory afterwards.

    :param endpoint_of: gives the endpoint of the running process from its environment: the key may be about to change.
    :param drain: seconds for which requests are waited for; then they are cut.
    :param release: seconds for which memory is waited for.
    """

    def __init__(
        self,
        *,
        endpoint_of: Callable[[Dict[str, str]], Optional[Endpoint]],
        gather: Callable[[], Dict[str, Any]],
        gpus: bool,
        drain: float,
        release: float,
        warn: Callable[[str], None],
    ) -> None:
        self.endpoint_of, self.gather, self.gpus = endpoint_of, gather, gpus
        self.drain, self.release, self.warn = drain, release, warn
        self.pids: List[int] = []

    def before_stop(self, running: Running) -> None:
        self.pids = running.pids
        endpoint = self.endpoint_of(running.environ)
        if not endpoint or self.drain <= 0:
            return
        try:
            endpoint.wait_idle(self.drain)
        except EndpointError as error:
            if error.name == "busy":
                self.warn("%s: %s; they were cut" % (running.unit, error))

    def after_stop(self) -> Verdict:
        if not (self.gpus and self.pids):
            return Verdict("ok")
        until = time.monotonic() + self.release
        while True:
            held = self._still_held()
            if not held:
                return Verdict("ok")
            if time.monotonic() >= until:
                return Verdict(
                    "vram_held",
                    "its process is gone, but %.0f s later its former processes still hold GPU memory: %s. They are "
                    "not ended by this collection" % (self.release, ", ".join(held)),
                    {"holders": held},
                )
            # the driver frees memory some time after a process ended, and sends no word
            time.sleep(0.25)

    def _still_held(self) -> List[str]:
        return [
            "PID %d (%s) %s on GPU %s"
            % (process["pid"], process["name"], sizing.gib(process["used_bytes"] or 0), device["index"])
            for device in self.gather()["devices"]
            for process in device["processes"] or ()
            if process["pid"] in self.pids
        ]
