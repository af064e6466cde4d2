# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof that an Ollama service does what its inventory declares.

An active process and an API that answers 200 prove little: with a wrong CUDA_VISIBLE_DEVICES Ollama serves on the CPU
without a warning, and ``/api/ps`` keeps listing a model whose worker is dead. So the server's own start log is compared
with the declaration, one token is really generated, and NVML must name the unit's own processes on the GPUs.
"""

from __future__ import annotations

import time
from typing import Callable, Dict, List, Mapping, Optional, Sequence

from ..converge.model import Fault, Running
from ..gpu.select import label, pci_bus_id
from ..serving.checks import ComesUp, Expected, UsesGpus, after_change, owns_port
from ..serving.gate import Check, Proof
from ..serving.model import Cause
from . import log, names, settings
from .api import Api, ApiError, number

_GIB = 1024.0**3
_LOG_DELAY = 2.0  # seconds that a line may need from the server to the journal
_YOUNG = 30.0  # seconds after its start for which a server that others have started may not be up yet

CPU_REASONS = (
    "common reasons: the driver was not ready when the service started, the unit may not open /dev/nvidia-uvm or it is "
    "missing (PrivateDevices=, DeviceAllow=), OLLAMA_LLM_LIBRARY names no folder of the installation, or the "
    "installation has no CUDA library for this driver"
)


def checks(
    effective: Mapping[str, str],
    *,
    model: Optional[str] = None,
    version: Optional[str] = None,
    uneven: str = "fail",
    warn: Callable[[str], None] = lambda _sentence: None,
) -> List[Check]:
    """The proof, in the order in which it is made.

    The verdicts: ``crash_loop``, ``not_ready``, ``port_taken``, ``wrong_version``, ``unproven`` (no start log),
    ``misread``, ``cpu_fallback``, ``wrong_gpu``; with a model also ``model_missing``, ``load_failed``, ``stalled``,
    ``partial_offload``, ``vram_missing``, ``spread_missing``, ``uneven_spread``; else ``ok``. Without a change nothing
    is loaded: a model is then checked only if it is already loaded. Where the server keeps what is wrong until it is
    restarted, such as GPUs that it did not find because the driver was not ready, the remedy is a restart.

    :param effective: variable to value as the server must log it.
    :param model: name of the model to prove with; None: none.
    :param version: the version that the server must report; None: any.
    :param uneven: see UsesGpus.
    :param warn: called with each warning.
    """
    spread = effective.get("OLLAMA_SCHED_SPREAD") == "true"
    found: List[Check] = [
        ComesUp(_reports_version, _YOUNG),
        after_change(lambda proof: owns_port(api(proof.running).port)(proof)),
    ]
    if version:
        found.append(_is_version(version))
    found.append(_started_as_declared(effective))
    if model:
        found.append(after_change(_generates(model)))
    found.append(UsesGpus(_loaded(model, spread), uneven if spread else "", warn))
    return found


def explain(lines: Sequence[str]) -> Cause:
    """Why a server ended."""
    failure = log.last_words(lines)
    return Cause(line=failure, advice=log.remedy(failure))


def api(running: Running) -> Api:
    """The API of a running server.

    :raises Fault: ``misread``: its OLLAMA_HOST is not an address.
    """
    written = running.environ.get("OLLAMA_HOST", "").strip().strip("\"'")
    try:
        return Api(*settings.reachable_at(written or settings.DEFAULT_HOST))
    except ValueError as error:
        raise Fault("misread", "OLLAMA_HOST of the running process: %s" % error) from None


def _reports_version(proof: Proof, seconds: float) -> Optional[str]:
    server = api(proof.running)
    try:
        proof.figures["version"] = server.version(timeout=seconds)
    except ApiError as error:
        return "%s: %s" % (server.url, error)
    return None


def _is_version(declared: str) -> Check:
    def check(proof: Proof) -> None:
        if proof.figures["version"] != declared:
            raise Fault(
                "wrong_version",
                "the server reports version %s, expected %s (version); declare the archive of that version, or check "
                "which program the unit starts" % (proof.figures["version"], declared),
            )

    return check


# --- the start log


def _started_as_declared(effective: Mapping[str, str]) -> Check:
    """What the server logged at its start: the settings as it understood them, and the GPUs that it found."""

    def check(proof: Proof) -> None:
        start = _start_log(proof)
        if start is not None:
            _understood(start, effective)
            _found_gpus(start, proof)

    return check


def _start_log(proof: Proof) -> Optional[log.StartLog]:
    """The start log; None when the journal no longer has that of a server that runs for long."""
    running = proof.running
    until, all_there = time.monotonic() + _LOG_DELAY, False
    may_grow = proof.started or time.monotonic() < running.started_monotonic + _YOUNG
    while True:
        start = log.parse(log.before_serving(running.journal_from_start()))
        if start.failure and not start.listening:
            # whoever answered on that port was not this server
            raise proof.died()
        whole = start.config and start.listening and start.compute
        if whole and start.compute_ended:
            return start
        if not may_grow:
            return start if start.config else None
        if not running.alive():
            raise proof.died()
        if time.monotonic() >= until and not all_there:
            running.system.sync_journal()  # a busy journald may be further behind
            all_there = True
            continue
        if all_there:
            if whole:
                return start  # an old server: it does not log which device is the last
            if not proof.started:
                return start if start.config else None
            raise _incomplete(start, running.unit)
        # the journal gets a line some time after the server wrote it
        time.sleep(0.05)


def _incomplete(start: log.StartLog, unit: str) -> Fault:
    parts = (("server config", start.config), ("Listening on", start.listening), ("inference compute", start.compute))
    return Fault(
        "unproven",
        "an Ollama answers, but this unit's own start log has no line with %s; expected it in the journal of %s "
        "(StandardOutput=, StandardError=, MaxLevelStore=)"
        % (" or ".join(repr(what) for what, there in parts if not there), unit),
    )


def _understood(start: log.StartLog, effective: Mapping[str, str]) -> None:
    config = start.config or {}
    wrong = {}
    for variable, expected in sorted(effective.items()):
        if variable not in config:
            wrong[variable] = "server %s does not list it, so it has no such setting" % (start.version or "")
        elif not settings.agrees(variable, expected, config[variable]):
            wrong[variable] = "declared %s, understood %s" % (expected.rstrip(), config[variable] or "nothing")
    if wrong:
        raise Fault(
            "misread",
            "the server did not understand its settings as declared: %s"
            % "; ".join("%s: %s" % item for item in sorted(wrong.items())),
            variables=wrong,
        )


def _found_gpus(start: log.StartLog, proof: Proof) -> None:
    if not start.compute or not (proof.devices or proof.facts["count"]):
        return
    found = [compute for compute in start.compute if not compute.on_cpu]
    if not found:
        raise Fault(
            "cpu_fallback",
            "the server found no GPU and serves on the CPU; this host has %d; declared: %s; %s"
            % (proof.facts["count"], proof.declared(), CPU_REASONS),
            remedy="restart",
        )
    if not proof.devices:
        return
    if all(compute.pci_bus_id for compute in found):
        seen = {pci_bus_id(compute.pci_bus_id) for compute in found}
        own = {device["pci_bus_id"]: device for device in proof.facts["devices"]}
    elif all(compute.uuid for compute in found):
        seen = {compute.uuid for compute in found}
        own = {device["uuid"]: device for device in proof.facts["devices"]}
    elif len(found) != len(proof.devices):
        raise Fault(
            "wrong_gpu",
            "the server found %d GPUs; expected %d: %s" % (len(found), len(proof.devices), proof.declared()),
            remedy="restart",
        )
    else:
        return  # this server does not log which GPUs it found; their number is right
    wanted = {key for key, device in own.items() if device in proof.devices}
    wrong = {
        "missing": [label(own[key]) for key in sorted(wanted - seen)],
        "others": [label(own[key]) for key in sorted(seen & set(own) - wanted)],
    }
    if any(wrong.values()):
        said = "; ".join("%s: %s" % (what, ", ".join(which)) for what, which in wrong.items() if which)
        message = "the server found other GPUs than declared (%s); %s" % (proof.declared(), said)
        raise Fault("wrong_gpu", message, remedy="restart", **wrong)


# --- the model


def _generates(model: str) -> Check:
    """One token by Ollama's own API, which also loads the model."""

    def check(proof: Proof) -> None:
        running = proof.running
        allowed = max(1.0, running.deadline - time.monotonic())
        try:
            answer = api(running).one_token(model, allowed)
        except ApiError as error:
            if error.timed_out:
                raise Fault(
                    "stalled",
                    "%s was asked for one token and generated none within %.0f s; raise timeout if it only loads "
                    "slowly, else check journalctl -u %s" % (model, allowed, running.unit),
                ) from None
            if running.dying():
                raise proof.died() from None
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
        proof.figures["answer"] = "a token"

    return check


def _loaded(model: Optional[str], spread: bool) -> Callable[[Proof], Expected]:
    """What the server reports of the model in ``/api/ps``; raises Fault where a part of it runs on the CPU."""
    idle = Expected(nothing=True)

    def expected(proof: Proof) -> Expected:
        if not model:
            return idle
        try:
            listed = api(proof.running).loaded()
        except ApiError as error:
            raise Fault("not_ready", "the API broke down: %s" % error) from None
        entry: Optional[Dict] = next((one for one in listed if names.same(str(one.get("name", "")), model)), None)
        if entry is None:
            return idle
        proof.figures["loaded"] = model
        size, on_gpu = number(entry.get("size")), number(entry.get("size_vram"))
        if not on_gpu:
            message = "%s is loaded, but runs on the CPU alone; %s" % (model, CPU_REASONS)
            raise Fault("cpu_fallback", message, remedy="restart")
        if on_gpu < size:
            raise Fault(
                "partial_offload",
                "%s has %.1f of its %.1f GiB on GPUs, the rest runs on the CPU; declare more or larger GPUs, a shorter "
                "context_length, fewer num_parallel or a smaller kv_cache_type" % (model, on_gpu / _GIB, size / _GIB),
                remedy="restart",
                size=size,
                size_vram=on_gpu,
            )
        return Expected(everywhere=spread, least=on_gpu, what=model)

    return expected
