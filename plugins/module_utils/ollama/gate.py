# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof that an Ollama service does what is declared of it.

A process that is active and an API that answers 200 prove little: with a wrong CUDA_VISIBLE_DEVICES Ollama serves on
the CPU without a word, and ``/api/ps`` goes on naming a model whose worker is dead. So the server's own start log is
held against the declaration, one token is truly generated, and NVML must name the unit's own processes on the GPUs.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Optional, Sequence

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.engine import Fault, Running, Verdict
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.processes import held_by_unit
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.select import label, pci_bus_id
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import log, names, settings
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.api import Api, ApiError, ApiTimeout, number

_GIB = 1024.0**3
_LOG_DELAY = 2.0  # seconds that a line may need from the server to the journal
_MEMORY_DELAY = 3.0  # seconds that NVML may need to name a process, and to show more of a model that is being loaded
_YOUNG = 30.0  # seconds after its start for which a server that others have started may not be all there

CPU_REASONS = (
    "common reasons: the driver was not ready when the service started, /dev/nvidia-uvm is missing or not allowed to "
    "the unit (PrivateDevices=, DeviceAllow=), OLLAMA_LLM_LIBRARY names no folder of the installation, or the "
    "installation has no CUDA library for this driver"
)


class OllamaGate:
    """Called by the engine with the running unit, after a change and when there is none.

    The verdicts, in the order in which they are looked for: ``crash_loop``, ``not_ready``, ``wrong_version``,
    ``unproven`` (no start log), ``misread``, ``cpu_fallback``, ``wrong_gpu``; with a model also ``model_missing``,
    ``load_failed``, ``stalled``, ``partial_offload``, ``vram_missing``, ``spread_missing``, ``uneven_spread``; else
    ``ok``. Without a change nothing is loaded, and waited for is only what others have just started or load: a model is
    then checked only if it is already loaded. Of what a server keeps until it is restarted, such as GPUs that
    it did not find when the driver was not ready yet, the verdict says that a restart may mend it.

    :param effective: variable to value as the server must log it.
    :param facts: GPU facts from before.
    :param devices: the GPUs declared, out of the facts; empty when none were.
    :param spread: whether every model must lie on all of them.
    :param uneven: what to do when other processes' memory made the spread uneven: ``fail`` or ``warn``.
    :param warn: called with each warning.
    :param model: name of the model to prove with, or None.
    :param version: what the server must say that it is, or None.
    :param gather: reads the GPU facts anew.
    """

    def __init__(
        self,
        *,
        effective: Dict[str, str],
        facts: Dict[str, Any],
        devices: Sequence[Dict[str, Any]] = (),
        spread: bool = False,
        model: Optional[str] = None,
        version: Optional[str] = None,
        gather: Callable[[], Dict[str, Any]],
        uneven: str = "fail",
        warn: Callable[[str], None] = lambda _sentence: None,
    ) -> None:
        self.effective = effective
        self.facts = facts
        self.devices = list(devices)
        self.spread = spread
        self.model = model
        self.declared_version = version
        self.gather = gather
        self.uneven, self.warn = uneven, warn
        self.version: Optional[str] = None
        """The server's version, once it answered."""
        self.held: Dict[str, int] = {}
        """Bytes that the unit holds per GPU's UUID, as last seen."""
        self._seen = ""

    def __call__(self, running: Running, changed: bool) -> Verdict:
        # one that was looked at before may run for long, and its start be in no journal any more
        started, self._seen = changed and running.invocation_id != self._seen, running.invocation_id
        try:
            api = self._answers(running, started)
            self._is_the_version()
            start = self._start_log(running, started)
            if start is not None:
                self._understood(start)
                self._found_gpus(start)
            if self.model and changed:
                self._generates(api, running)
            self._holds_memory(api, running, changed)
        except Fault as fault:
            return fault.verdict
        return Verdict("ok")

    # --- the checks, in the order in which they are made

    def _answers(self, running: Running, started: bool) -> Api:
        written = running.environ.get("OLLAMA_HOST", "").strip().strip("\"'")
        try:
            address, port = settings.reachable_at(written or settings.DEFAULT_HOST)
        except ValueError as error:
            raise Fault("misread", "OLLAMA_HOST of the running process: %s" % error) from None
        api, now = Api(address, port), time.monotonic()
        # a server that runs for long must answer at once; one that others have just started may take longer
        until = running.deadline if started else min(running.deadline, max(now + 5, running.started_monotonic + _YOUNG))
        pause = 0.02
        while True:
            if not running.alive():
                raise self._died(running)
            try:
                self.version = api.version(timeout=max(0.1, min(2.0, until - time.monotonic())))
                return api
            except ApiError as error:
                last = error
            if time.monotonic() >= until:
                raise Fault(
                    "not_ready",
                    "the process runs but its API does not answer: %s; expected an answer at %s within %.0f s of start"
                    % (last, api.url, until - running.started_monotonic),
                    url=api.url,
                )
            # nothing tells when the port is open
            time.sleep(pause)
            pause = min(0.25, pause * 1.5)

    def _is_the_version(self) -> None:
        if self.declared_version and self.version != self.declared_version:
            raise Fault(
                "wrong_version",
                "the server says that it is %s, expected %s (version); give the archive of that version, or look in"
                " the unit whose program it starts" % (self.version, self.declared_version),
            )

    def _died(self, running: Running) -> Fault:
        running.system.sync_journal()
        failure = log.last_words(running.journal(50))
        advice = log.remedy(failure)
        message = "the server gave up: %s" % failure if failure else "the server ended before its API answered"
        return Fault("crash_loop", message + (": " + advice if advice else ""), last_words=failure)

    def _start_log(self, running: Running, started: bool) -> Optional[log.StartLog]:
        """The start log; None when it is no longer in the journal of a server that runs for long."""
        until, all_there = time.monotonic() + _LOG_DELAY, False
        may_grow = started or time.monotonic() < running.started_monotonic + _YOUNG
        while True:
            start = log.parse(log.before_serving(running.journal_from_start()))
            if start.failure and not start.listening:
                # whoever answered on that port was not this server
                raise self._died(running)
            whole = start.config and start.listening and start.compute
            if whole and start.compute_ended:
                return start
            if not may_grow:
                return start if start.config else None
            if not running.alive():
                raise self._died(running)
            if time.monotonic() >= until and not all_there:
                running.system.sync_journal()  # a busy journald may be further behind
                all_there = True
                continue
            if all_there:
                if whole:
                    return start  # an old server: it does not say which device is the last
                if not started:
                    return start if start.config else None
                missing = [
                    what
                    for what, there in (
                        ("server config", start.config),
                        ("Listening on", start.listening),
                        ("inference compute", start.compute),
                    )
                    if not there
                ]
                raise Fault(
                    "unproven",
                    "an Ollama answers, but this unit's own log of the start has no line with %s; expected it in the "
                    "journal of %s (StandardOutput=, StandardError=, MaxLevelStore=)"
                    % (" or ".join(repr(what) for what in missing), running.unit),
                )
            # the journal gets a line some time after the server wrote it
            time.sleep(0.05)

    def _understood(self, start: log.StartLog) -> None:
        config = start.config or {}
        wrong = {}
        for variable, expected in sorted(self.effective.items()):
            if variable not in config:
                wrong[variable] = "server %s does not list it, so it has no such setting" % (start.version or "")
            elif not settings.agrees(variable, expected, config[variable]):
                wrong[variable] = "declared %s, understood %s" % (expected.rstrip(), config[variable] or "nothing")
        if wrong:
            raise Fault(
                "misread",
                "the server did not understand what is declared: %s"
                % "; ".join("%s: %s" % item for item in sorted(wrong.items())),
                variables=wrong,
            )

    def _found_gpus(self, start: log.StartLog) -> None:
        if not start.compute or not (self.devices or self.facts["count"]):
            return
        found = [compute for compute in start.compute if not compute.on_cpu]
        if not found:
            raise Fault(
                "cpu_fallback",
                "the server found no GPU and serves on the CPU; this host has %d and %s is declared; %s"
                % (self.facts["count"], self._declared(), CPU_REASONS),
                remedy="restart",
            )
        if not self.devices:
            return
        if all(compute.pci_bus_id for compute in found):
            seen = {pci_bus_id(compute.pci_bus_id) for compute in found}
            own = {device["pci_bus_id"]: device for device in self.facts["devices"]}
        elif all(compute.uuid for compute in found):
            seen = {compute.uuid for compute in found}
            own = {device["uuid"]: device for device in self.facts["devices"]}
        elif len(found) != len(self.devices):
            raise Fault(
                "wrong_gpu",
                "the server found %d GPUs; expected the %d of %s" % (len(found), len(self.devices), self._declared()),
                remedy="restart",
            )
        else:
            return  # this server does not say which GPUs it found; their number is right
        wanted = {key for key, device in own.items() if device in self.devices}
        missing = [label(own[key]) for key in sorted(wanted - seen)]
        others = [label(own[key]) for key in sorted(seen & set(own) - wanted)]
        if missing or others:
            raise Fault(
                "wrong_gpu",
                "the server found other GPUs than declared (%s): %s"
                % (
                    self._declared(),
                    "; ".join(
                        "%s %s" % (what, ", ".join(which))
                        for what, which in (("it lacks", missing), ("it also uses", others))
                        if which
                    ),
                ),
                remedy="restart",
                missing=missing,
                others=others,
            )

    def _generates(self, api: Api, running: Running) -> None:
        model = self.model or ""
        allowed = max(1.0, running.deadline - time.monotonic())
        try:
            answer = api.one_token(model, allowed)
        except ApiTimeout:
            raise Fault(
                "stalled",
                "%s was asked for one token and gave none within %.0f s; raise timeout if it only loads slowly, else "
                "look at journalctl -u %s" % (model, allowed, running.unit),
            ) from None
        except ApiError as error:
            if running.dying():
                raise self._died(running) from None
            raise Fault("load_failed", "%s was asked for one token: %s" % (model, error)) from None
        if answer.status == 404:
            raise Fault("model_missing", "the server has no model %s: %s" % (model, answer.error))
        if answer.status != 200:
            cause = answer.error.partition("\n")[0].rstrip(" -")
            advice = log.remedy(cause)
            raise Fault(
                "load_failed",
                "%s cannot be served: HTTP %d: %s%s" % (model, answer.status, cause, ": " + advice if advice else ""),
                error=answer.error,
            )
        if answer.body.get("done") is not True or not answer.body.get("eval_count"):
            raise Fault(
                "stalled",
                "%s answered with HTTP 200 but generated nothing (done: %s, eval_count: %s); expected one token"
                % (model, answer.body.get("done"), answer.body.get("eval_count")),
            )

    def _holds_memory(self, api: Api, running: Running, changed: bool) -> None:
        loaded = self._loaded(api)
        if not (self.devices or self.facts["count"]):
            return
        if loaded is not None:
            self._on_gpus(loaded)
        # what was read before a change tells of the former process
        facts, until, most = self.gather() if changed else self.facts, 0.0, -1
        while True:
            try:
                self._held(facts, running.unit, loaded)
                break
            except Fault:
                held, now = sum(self.held.values()), time.monotonic()
                if held > most:  # it is just being loaded, perhaps for somebody else
                    most, until = held, now + _MEMORY_DELAY
                if now >= until:
                    raise
            # NVML names a process some time after it took memory, and sends no word
            time.sleep(0.1)
            facts = self.gather()
            if not changed:  # what others have loaded or unloaded since the facts were read
                loaded = self._loaded(api)
        if self.spread and loaded is not None:
            self._divided_evenly(facts, running.unit)

    def _loaded(self, api: Api) -> Optional[Dict[str, Any]]:
        """The entry of /api/ps for the model to prove with; None when none is asked for or it is not loaded."""
        if not self.model:
            return None
        try:
            loaded = api.loaded()
        except ApiError as error:
            raise Fault("not_ready", "the API broke down: %s" % error) from None
        return next((entry for entry in loaded if names.same(str(entry.get("name", "")), self.model)), None)

    def _on_gpus(self, loaded: Dict[str, Any]) -> None:
        size, on_gpu = number(loaded.get("size")), number(loaded.get("size_vram"))
        if not on_gpu:
            raise Fault(
                "cpu_fallback", "%s is loaded, but wholly on the CPU; %s" % (self.model, CPU_REASONS), remedy="restart"
            )
        if on_gpu < size:
            raise Fault(
                "partial_offload",
                "%s has %.1f of its %.1f GiB on GPUs, the rest runs on the CPU; give it more or larger GPUs, a shorter "
                "context_length, fewer num_parallel or a smaller kv_cache_type"
                % (self.model, on_gpu / _GIB, size / _GIB),
                remedy="restart",
                size=size,
                size_vram=on_gpu,
            )

    def _held(self, facts: Dict[str, Any], unit: str, loaded: Optional[Dict[str, Any]]) -> None:
        devices = facts["devices"]
        self.held = held_by_unit(devices, unit)
        by_uuid = {device["uuid"]: device for device in devices}
        declared = {device["uuid"] for device in self.devices} or set(by_uuid)
        elsewhere = [label(by_uuid[uuid]) for uuid in sorted(set(self.held) - declared)]
        if elsewhere:
            raise Fault(
                "wrong_gpu",
                "%s holds memory on GPUs that are not declared: %s; declared is %s"
                % (unit, ", ".join(elsewhere), self._declared()),
                remedy="restart",
                others=elsewhere,
            )
        if loaded is None:
            return
        if facts["source"] not in ("nvml", "nvidia-smi"):
            raise Fault(
                "unproven",
                "which process holds GPU memory cannot be read: neither NVML (pynvml) nor nvidia-smi works here; "
                "the role gpu_host installs pynvml",
            )
        total, needed = sum(self.held.values()), number(loaded.get("size_vram"))
        if total < needed:
            raise Fault(
                "vram_missing",
                "the server says that %s has %.1f GiB on GPUs, but the processes of %s hold %.1f GiB: its worker is "
                "dead or runs outside the unit" % (self.model, needed / _GIB, unit, total / _GIB),
                remedy="proof",  # the server notices at the next request, and loads it anew
                size_vram=needed,
                held=total,
            )
        without = [label(by_uuid[uuid]) for uuid in sorted(declared - set(self.held))]
        if self.spread and without:
            raise Fault(
                "spread_missing",
                "%s is to be spread over %d GPUs, but nothing of it lies on %s"
                % (self.model, len(declared), ", ".join(without)),
                remedy="restart",
                without=without,
            )

    def _divided_evenly(self, facts: Dict[str, Any], unit: str) -> None:
        from ansible_collections.gpufleet.inference.plugins.module_utils.placement import spread

        declared = {device["uuid"] for device in self.devices}
        used = [device for device in facts["devices"] if not declared or device["uuid"] in declared]
        found = spread.uneven(used, unit)
        if not found:
            return
        message = "%s is spread unevenly over %d GPUs because other processes hold memory there: %s" % (
            self.model,
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

    def _declared(self) -> str:
        if not self.devices:
            return "no choice of GPUs"
        return "CUDA_VISIBLE_DEVICES=%s" % self.effective.get("CUDA_VISIBLE_DEVICES", "")

    def proven(self) -> List[Dict[str, Any]]:
        """The declared GPUs, or all, each with what the unit holds there, for the module's result."""
        return [
            {
                "index": device["index"],
                "uuid": device["uuid"],
                "name": device["name"],
                "pci_bus_id": device["pci_bus_id"],
                "held_bytes": self.held.get(device["uuid"], 0),
            }
            for device in (self.devices or self.facts["devices"])
        ]
