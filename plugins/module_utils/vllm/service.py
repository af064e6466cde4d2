# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One vLLM instance, from the options of the module to the proof on the GPUs."""

from __future__ import annotations

import os
import re
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, Type

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import engine
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.account import UserStep
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.override import Override, as_bytes
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.processes import held_by_unit
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.select import label, select
from ansible_collections.gpufleet.inference.plugins.module_utils.placement import claims
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.template import TemplateStep
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.source import source_of
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import (
    checkpoint,
    cluster,
    settings,
    shape,
    sizing,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.gate import VllmGate, VllmStopHooks
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.multinode import (
    LeaderGate,
    WorkerGate,
    WorkerStopHooks,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.parallel import Parallel, ParallelError, choose
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.program import (
    Program,
    ProgramError,
    unknown_variables,
)

CONFIGS = "/etc/gpufleet/vllm"
HOMES = "/var/lib"
_RESERVED = 2 << 30  # bytes that the driver itself may keep of a GPU
_ENDING = 10.0  # seconds for which a process that has no unit any more may hold memory
START_BASE = 300  # seconds for imports, compilation and CUDA graphs
START_RATE = 100e6  # bytes of weights that even slow storage gives in a second
STOP_MARGIN = 30  # seconds: an idle server takes some twelve to end
SYSTEM_PATH = "/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# A front end whose engine died ends with status 0: it is restarted all the same.
UNIT = """\
# Written by the Ansible collection gpufleet.inference where there was none. Each instance has an override of its own.
[Unit]
Description=vLLM, instance %i
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/bin/false
Restart=always
RestartSec=5
LimitNOFILE=1048576
LimitMEMLOCK=infinity

[Install]
WantedBy=multi-user.target
"""


class Differs(Exception):
    """The host is not as declared; what that would run into was not looked at."""


class Plan(NamedTuple):
    """Everything about the instance decided, and nothing touched."""

    change: engine.Change
    declared: settings.Declared
    devices: List[Dict[str, Any]]
    facts: Dict[str, Any]
    parallel: Parallel
    weights: int
    fits: Optional[sizing.Fit]
    program: Program


def look(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The result where the instance is as declared.

    :raises Differs: it is not; vLLM's own parser, which takes seconds, was not asked.
    """
    return bring(params, True, warn, thorough=False)


def bring(
    params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None], system: Any = None, thorough: bool = True
) -> Dict[str, Any]:
    """Bring the instance to its declared state.

    :param params: the module's parameters.
    :param check_mode: read and compare only.
    :param warn: called with each warning.
    :param thorough: whether what a start would run into is looked at.
    :returns: the module's result.
    :raises Refused: nothing was touched.
    :raises Differs: not ``thorough``, and something is to be done.
    :raises engine.ServiceError: the previous state is restored.
    """
    system = system or System()
    if not re.match(r"[A-Za-z0-9][A-Za-z0-9_.]*\Z", params["name"]):
        raise Refused("name: %r; expected letters, digits, _ and ., as in vllm@NAME.service" % params["name"])
    unit = "vllm@%s.service" % params["name"]

    def gather() -> Dict[str, Any]:
        return gpu_facts.gather(timeout=params["facts_timeout"], python_paths=gpu_facts.site_packages(gpu_facts.VENV))

    if params["state"] == "absent":
        return _remove(params, unit, gather, check_mode, warn, system)
    try:
        plan = _plan(params, unit, gather, check_mode, warn, system, thorough)
        endpoint = Endpoint(plan.declared.url, params["api_key"], verify=False)
    except (settings.SettingsError, ParallelError, sizing.SizingError, claims.Conflict, ProgramError) as error:
        raise Refused(str(error)) from None
    gate = _gate_of(params)(
        endpoint=endpoint,
        served=plan.declared.served,
        devices=plan.devices,
        facts=plan.facts,
        gather=gather,
        stall=params["stall_timeout"],
        token_timeout=params["token_timeout"],
        allowed=plan.change.timeout,
        asleep=params["asleep"] if plan.declared.config.get("enable-sleep-mode") else None,
    )
    outcome = engine.converge(
        plan.change,
        gate=gate,
        steps=[*_users(params["user"]), TemplateStep("vllm@.service", UNIT)],
        hooks=_stop_hooks(params, gather, warn, system),
        check_mode=check_mode,
        system=system,
    )
    for warning in outcome.warnings:
        warn(warning)
    gpus = gate.proven()
    return dict(
        outcome.as_result(),
        msg=sentence(outcome, plan, gpus, gate.figures, check_mode),
        url=plan.declared.url if not params["node_rank"] else None,
        model=plan.declared.served,
        version=plan.program.version(),
        parallel=dict(plan.parallel._asdict()),
        fit=_described(plan),
        gpus=gpus,
    )


def _remove(
    params: Mapping[str, Any], unit: str, gather: Any, check_mode: bool, warn: Callable[[str], None], system: Any
) -> Dict[str, Any]:
    """Stop and disable the instance and take its files away; the environment, the user and the model stay."""
    files: Dict[str, Optional[str]] = dict.fromkeys(_files(params["name"]))
    if system.show(unit).get("LoadState") == "loaded":
        change = engine.Change(unit=unit, files=files, enabled=False, started=False)
    else:
        change = engine.Change(unit=unit, state="absent", files=files)
    hooks = _stop_hooks(params, gather, warn, system)
    outcome = engine.converge(change, hooks=hooks, check_mode=check_mode, system=system)
    for warning in outcome.warnings:
        warn(warning)
    return dict(outcome.as_result(), msg="%s: %s" % (unit, "stopped and removed" if outcome.changed else "not there"))


def _plan(
    params: Mapping[str, Any],
    unit: str,
    gather: Any,
    check_mode: bool,
    warn: Callable[[str], None],
    system: Any,
    thorough: bool,
) -> Plan:
    """Decide everything; what is known to fail is refused here."""
    devices, facts = _devices(params, unit, gather)
    program = Program(params["venv"], params["user"])
    if check_mode and not program.exists():
        warn("venv: %s is not there yet; its vLLM is not asked what it thinks of the configuration" % program.venv)
    else:
        program.check()
    home = os.path.join(HOMES, params["user"])
    cache = checkpoint.cache_of(params, params["environment"], home)
    path = checkpoint.locate(params["model"], cache, params["user"], params["revision"])
    if params["model"].startswith("/") and path is None and not os.path.isfile(params["model"]):
        if not check_mode:
            raise Refused(
                "model: there is no directory %s on this host; expected one with config.json" % params["model"]
            )
        warn("model: there is no directory %s on this host yet" % params["model"])
    document = checkpoint.config(path, params["user"]) if path else {}
    dimensions = shape.read(document) if document else None
    weights = sizing.weights_loaded(
        checkpoint.weight_bytes(path, params["user"]) if path else 0,
        dimensions,
        params["dtype"] or "auto",
        params["quantization"],
    )
    parallel = choose(
        len(devices),
        dimensions,
        params["tensor_parallel_size"],
        params["pipeline_parallel_size"],
        params["data_parallel_size"],
        len(params["nodes"] or [1]),
    )
    sizes = {
        "tensor_parallel_size": parallel.tensor,
        "pipeline_parallel_size": parallel.pipeline,
        "data_parallel_size": parallel.data,
    }
    visible = ",".join(str(device["index"]) for device in devices) if devices else None
    declared = settings.declare(params, sizes, visible)
    _check_open(params, warn)
    context = _context(params, dimensions)
    utilization = params["gpu_memory_utilization"] or sizing.DEFAULT_UTILIZATION
    fits = None
    if devices:
        fits = sizing.fit(
            dimensions,
            weights,
            min(device["memory"]["total_bytes"] for device in devices),
            parallel,
            utilization=utilization,
            context=context,
            dtype=params["dtype"] or "auto",
            cache_dtype=params["kv_cache_dtype"] or "auto",
            offload=int((params["cpu_offload_gb"] or 0) * sizing.GIB),
        )
        if "kv-cache-memory-bytes" not in declared.config:
            sizing.check_fit(fits, label(devices[0]), utilization, context)
    claim = claims.Claim(
        unit,
        dict.fromkeys((device["uuid"] for device in devices), utilization),
        exclusive=not params["share_gpus"],
        ports=_ports(params, declared),
    )
    names = {device["uuid"]: label(device) for device in facts["devices"]}
    claims.check([claim], system, label=lambda uuid: names.get(uuid, uuid))
    change = _change(params, unit, declared, program, claim, weights, parallel)
    change.while_writing = lambda: claims.claiming(claim, system, label=lambda uuid: names.get(uuid, uuid))
    if _differs(change, system) or (devices and not held_by_unit(devices, unit)):
        if not thorough:
            raise Differs()
        devices = _with_room(devices, unit, utilization, gather)
        for warning in declared.warnings + unknown_variables(params["environment"], program.variables()):
            warn(warning)
        if program.exists():
            program.parse(declared.config, declared.environment, keep=not check_mode)
    return Plan(change, declared, devices, facts, parallel, weights, fits, program)


def _devices(params: Mapping[str, Any], unit: str, gather: Any) -> Tuple[List[Dict[str, Any]], Dict[str, Any]]:
    """The declared GPUs, and the facts; none of both for an instance that uses no GPU."""
    wanted = params["visible_devices"]
    if wanted == "none":
        return [], {"devices": []}
    facts = gather()
    fault = facts["fault"]
    if fault and all(device["health"]["lost"] for device in facts["devices"]):
        raise Refused("%s: %s; %s" % (fault["code"], fault["text"], fault["remedy"]))
    try:
        devices = select(facts["devices"], wanted, held_by_unit(facts["devices"], unit))
    except Refused as error:
        raise Refused("visible_devices: %s" % error) from None
    for device in devices:
        if not device["memory"]["total_bytes"]:
            raise Refused(
                "visible_devices: how much memory GPU %s has cannot be read, nor who holds it: neither NVML (pynvml) "
                "nor nvidia-smi works here; the role gpu_host installs pynvml" % label(device)
            )
    return devices, facts


def _with_room(devices: List[Dict[str, Any]], unit: str, utilization: float, gather: Any) -> List[Dict[str, Any]]:
    """The GPUs as they are when there is room on them.

    A process that is ending, such as those of this host when another host of the model is being stopped, is in no unit
    any more, and later in no list either, and holds its memory for a moment.
    """
    until = time.monotonic() + _ENDING
    while True:
        held = held_by_unit(devices, unit)
        try:
            for device in devices:
                sizing.check_free(device, held.get(device["uuid"], 0), utilization, label(device), unit)
            return devices
        except sizing.SizingError:
            if not any(map(_unclaimed, devices)) or time.monotonic() >= until:
                raise
        # the driver frees memory some time after a process ended, and sends no word
        time.sleep(0.25)
        now = {device["uuid"]: device for device in gather()["devices"]}
        devices = [now.get(device["uuid"], device) for device in devices]


def _unclaimed(device: Dict[str, Any]) -> bool:
    """Whether a GPU has memory in use that no process of a unit accounts for."""
    total, free = device["memory"]["total_bytes"], device["memory"]["free_bytes"]
    if total is None or free is None:
        return False
    processes = device["processes"] or ()
    claimed = sum(process["used_bytes"] or 0 for process in processes if process["unit"])
    return any(process["unit"] is None for process in processes) or total - free - claimed > _RESERVED


def _check_open(params: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    """An address that others reach must ask for a key, or have been allowed."""
    address = settings.public_bind(params)
    if address and not params["allow_unauthenticated"]:
        raise Refused(
            "host: %s is reached by others, and no api_key is set: anybody there may use the model; set api_key, "
            "listen on 127.0.0.1 behind a proxy that asks who is there, or set allow_unauthenticated: true" % address
        )
    if params["api_key"] and not params["guard_all_paths"] and settings.public_bind(dict(params, api_key=None)):
        warn(
            "host: vLLM asks for the api_key only under /v1, /v2, /inference and /cohere; /invocations, which "
            "generates, and others are open to all who reach it; set guard_all_paths: true"
        )


def _users(name: str) -> List[engine.Step]:
    return [] if name == "root" else [UserStep(name, os.path.join(HOMES, name))]


def _context(params: Mapping[str, Any], dimensions: Optional[shape.Shape]) -> Optional[int]:
    """Tokens of the longest request; None where they are not known before the start."""
    trained = dimensions.context if dimensions else None
    if params["max_model_len"] is None:
        return trained
    wanted = settings.tokens(params["max_model_len"])
    forced = str(params["environment"].get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0")) == "1"
    if wanted and trained and wanted > trained and not forced:
        raise Refused(
            "max_model_len: %d tokens, but the model's config.json allows %d at most; lower it (vLLM would end with an "
            "error; VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 in environment forces it, at the price of wrong answers)"
            % (wanted, trained)
        )
    return wanted


def _change(
    params: Mapping[str, Any],
    unit: str,
    declared: settings.Declared,
    program: Program,
    claim: claims.Claim,
    weights: int,
    parallel: Parallel,
) -> engine.Change:
    """What the engine is to bring about."""
    config, guard_file, supervisor_file = _files(params["name"])
    environment = dict(declared.environment)
    environment.setdefault("PATH", "%s/bin:%s" % (program.venv, SYSTEM_PATH))
    if params["guard_all_paths"]:
        environment["PYTHONPATH"] = os.path.dirname(guard_file)
    for name, variable in (("hf_token", "HF_TOKEN_PATH"), ("ray_token", "RAY_AUTH_TOKEN_PATH")):
        if name in declared.credentials:
            environment[variable] = "/run/credentials/%s/%s" % (unit, name)
    words = [*program.command(), "--config", config]  # two words: vLLM does not read --config=FILE
    nodes, ray = params["nodes"], _on_ray(params)
    if nodes:
        if words[1] != "serve":
            raise Refused("nodes: %s has no command vllm, and its module knows no --headless" % program.venv)
        if ray:
            node = cluster.start(
                program.ray(),
                params["name"],
                declared.addresses,
                params["node_rank"],
                params["master_port"],
                parallel.world // len(nodes),
                program.has("grpc"),
            )
            words = node if params["node_rank"] else [*node, "--", *words]
        place = "%s:%d" % (declared.addresses[0], params["master_port"] + 1)
        key = settings.definition(declared, program.version())
        names = ",".join(node["name"] for node in nodes)
        addresses = ",".join(declared.addresses)
        words = [program.python, "-I", supervisor_file, place, str(params["node_rank"]), names, addresses, key, *words]
    if any(not re.match(r"[A-Za-z0-9_./+@:,-]+\Z", word) for word in words):
        raise Refused("venv: %r has characters that no command line of a unit carries" % program.venv)
    service = {
        "User": [params["user"]],
        "ExecStart": ["", " ".join(words)],
        "TimeoutStopSec": [str((params["shutdown_timeout"] or 0) + STOP_MARGIN)],
        # the workers of a model on several GPUs end at once upon SIGTERM, and with them the requests that are running
        "KillMode": ["mixed"],
    }
    if nodes:
        service.update(NotifyAccess=["main"])
    if ray:
        service.update(RuntimeDirectory=[cluster.directory(params["name"])], RuntimeDirectoryMode=["0700"])
    files: Dict[str, Optional[str]] = {config: settings.render(declared.config)}
    files.update({guard_file: None, supervisor_file: None})
    if params["guard_all_paths"]:
        from ansible_collections.gpufleet.inference.plugins.module_utils.programs import guard

        files[guard_file] = source_of(guard)
    if nodes:
        from ansible_collections.gpufleet.inference.plugins.module_utils.programs import supervisor

        files[supervisor_file] = source_of(supervisor)
    return engine.Change(
        unit=unit,
        environment=environment,
        secret_environment=declared.secret_environment,
        credentials=declared.credentials,
        settings=dict({"Service": service}, **claims.lines(claim)),
        files=files,
        enabled=params["enabled"],
        started=True,
        restart="all hosts of the model start together" if params["restart"] else "",
        timeout=params["timeout"] or start_limit(weights),
    )


def _files(name: str) -> Tuple[str, str, str]:
    folder = "%s/%s.d" % (CONFIGS, name)
    return "%s/%s.yaml" % (CONFIGS, name), "%s/%s.py" % (folder, settings.GUARD), "%s/gpufleet_supervisor.py" % folder


def _ports(params: Mapping[str, Any], declared: settings.Declared) -> Tuple[int, ...]:
    """Where it listens at ports that are known before: the API, of several hosts the rendezvous and its beginning."""
    if not params["nodes"]:
        return (declared.port,)
    here = cluster.ports(params["node_rank"], params["master_port"]) if _on_ray(params) else ()
    if params["node_rank"]:
        return here
    return (declared.port, params["master_port"], params["master_port"] + 1, *here)


def _on_ray(params: Mapping[str, Any]) -> bool:
    return bool(params["nodes"]) and params["distributed_executor_backend"] == "ray"


def _gate_of(params: Mapping[str, Any]) -> Type[VllmGate]:
    if not params["nodes"]:
        return VllmGate
    return WorkerGate if params["node_rank"] else LeaderGate


def _differs(change: engine.Change, system: Any) -> bool:
    """Whether the files say that there is something to start: what that would run into is looked at only then."""
    override = Override(change.unit, change)
    drop_in = (override.content(override.drop_in) or b"").decode("utf-8", "surrogateescape")
    texts = dict(change.files, **{override.drop_in: drop_in})
    differ = any(system.read(path) != (None if text is None else as_bytes(text)) for path, text in texts.items())
    return differ or bool(change.restart)


def start_limit(weights: int) -> int:
    """Seconds that a start may take: so long that slow storage is not taken for a fault. Stalls end it sooner."""
    return int(START_BASE + weights / START_RATE)


def _stop_hooks(params: Mapping[str, Any], gather: Any, warn: Callable[[str], None], system: Any) -> VllmStopHooks:
    config = _files(params["name"])[0]
    former = settings.read_back((system.read(config) or b"").decode("utf-8", "replace"))

    def endpoint_of(environ: Mapping[str, str]) -> Optional[Endpoint]:
        """Where the process that is to be stopped listens, as the file says with which it was started."""
        if not former:
            return None
        return Endpoint(settings.Declared(config=former).url, environ.get("VLLM_API_KEY") or None, verify=False)

    drain, kind = params["drain_timeout"], VllmStopHooks
    if former.get("headless"):  # the server on node 0 takes so much longer to end
        drain, kind = drain + int(former.get("shutdown-timeout", 0)), WorkerStopHooks
    return kind(
        endpoint_of=endpoint_of,
        gather=gather,
        gpus=params["visible_devices"] != "none",
        drain=drain,
        release=params["release_timeout"],
        warn=warn,
    )


def _described(plan: Plan) -> Dict[str, Any]:
    """What was foretold of each GPU's memory."""
    if plan.fits is None:
        return {}
    return {
        "budget_bytes": plan.fits.budget,
        "weight_bytes": plan.fits.weights,
        "request_cache_bytes": plan.fits.request,
        "cache_tokens": plan.fits.tokens,
    }


def sentence(
    outcome: engine.Outcome, plan: Plan, gpus: List[Dict[str, Any]], figures: Mapping[str, Any], check: bool
) -> str:
    """The outcome in one line for a person."""
    parts = [outcome.verdict.name]
    if check and outcome.changed:
        parts = ["would change %s" % ("; ".join(outcome.reasons) or ", ".join(sorted(outcome.drift)) or "the instance")]
    counts: Dict[str, int] = {}
    for device in plan.devices:
        short = (device["name"] or "GPU").replace("NVIDIA ", "").replace("GeForce ", "")
        counts[short] = counts.get(short, 0) + 1
    parts.append(" + ".join("%d× %s" % (count, name) for name, count in counts.items()) or "CPU")
    sizes = ("TP", plan.parallel.tensor), ("PP", plan.parallel.pipeline), ("DP", plan.parallel.data)
    if plan.parallel.world > 1:
        parts.append(" ".join("%s%d" % size for size in sizes if size[1] > 1))
    where = plan.declared.url
    hosts, rank = plan.declared.addresses, plan.declared.rank
    if hosts:
        parts.append("node %d of %d hosts" % (rank, len(hosts)))
        where = hosts[0] if rank else where
    held = sum(gpu["held_bytes"] for gpu in gpus)
    parts.append("%s at %s%s" % (plan.declared.served, where, ", %s held" % sizing.gib(held) if held else ""))
    if not check and "answer" in figures:
        seconds = figures.get("latency_seconds")
        parts.append(figures["answer"] + ("" if seconds is None else " in %.2f s" % seconds))
    if figures.get("asleep"):
        parts.append("asleep")
    if outcome.restarted and not check:
        parts.append("restart %.1f s" % (outcome.downtime_ms / 1000.0))
    return " · ".join(parts)
