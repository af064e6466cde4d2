# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM as a serving engine: what one instance is to have, what is checked before a start, what a result says."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ..converge.model import Outcome
from ..endpoint.client import Endpoint
from ..gpu.select import label
from ..hf_model.parallel import choose
from ..placement import memory
from ..placement.choice import Placed
from ..serving import checks, openai, run, stop, summary, template
from ..serving.gate import Check, Proof
from ..serving.model import Cause, Declared, Host, Leaving, Listen, Plan, Service
from ..serving.stop import Stop
from ..serving.weights import located, start_limit
from ..toolbox.addresses import is_loopback
from ..toolbox.errors import Refused
from . import adapters, gate, log, model, multinode, releases, settings, sizing, unit
from .program import Program, unknown_variables

START_BASE = 300  # seconds for imports, compilation and CUDA graphs


def converge(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """Bring all declared instances to their declared states; see serving.run."""
    return run.converge(Vllm(), "vllm", params, check_mode, warn)


def check(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The result where all instances are in their declared states.

    :raises Differs: they are not; vLLM's own parser, which takes seconds, was not asked.
    """
    return run.converge(Vllm(), "vllm", params, True, warn, thorough=False)


class Vllm:
    title = "vLLM"
    counts_visible = True
    loads_at_start = True
    open_to = "use the model"

    def declare(self, service: Service, placed: Placed, host: Host) -> Declared:
        options = _options(service)
        _check_given(options)
        _check_memory_known(placed.devices)
        program = _program(options, host)
        release = program.release()
        found = model.read(options, host, release)
        parallel = choose(
            len(placed.devices),
            found.dimensions,
            options["tensor_parallel_size"],
            options["pipeline_parallel_size"],
            options["data_parallel_size"],
            len(options["nodes"] or [1]),
            **model.rules(options, found, release),
        )
        loras = adapters.read(options, host)
        configuration = settings.declare(options, parallel, placed.visible, release, loras)
        _warn_of_open_paths(options, release, host.warn)
        if options["model"].endswith(".gguf") and not releases.loads_gguf(release):
            configuration.warnings.append(
                "model: since 0.24, vLLM loads GGUF files only with a plugin; without one, serve it with llama_server"
            )
        utilization = options["gpu_memory_utilization"] or releases.memory_share(release)
        fit = model.fit(options, placed.devices, found, parallel, utilization, release)
        own = unit.Own(configuration, program, parallel, fit, utilization, loras, found.weights)
        hooks = _stop_hooks(service, host)
        limit = options["timeout"] or start_limit(START_BASE, found.weights)
        files = unit.files(service.name, options, configuration)
        return Declared(
            user=options["user"],
            listen=None if options["node_rank"] else _listen(options, configuration),
            environment=unit.environment(service, options, own),
            secret_environment=configuration.secret_environment,
            credentials=configuration.credentials,
            files=files,
            settings=unit.service_settings(service.name, options, own),
            steps=template.steps(
                options["user"], unit.home(options["user"]), "vllm@.service", unit.UNIT, host.system.root
            ),
            checks=_checks(options, configuration, own, hooks, limit),
            together=multinode.all_proven if options["nodes"] else None,
            hooks=hooks,
            ports=unit.ports(options, parallel),
            share=_share(options, utilization, placed.devices),
            writable=unit.writable(options),
            readable=[
                *(path for path in unit.readable(options, program) if path),
                *(adapter.path for adapter in loras),
            ],
            sandbox=unit.SANDBOX,
            timeout=limit,
            asks=None
            if options["node_rank"]
            else lambda _proof: (_endpoint(options, configuration), configuration.served),
            ready="" if options["node_rank"] else _ready(configuration),
            restart="all hosts of the model start together" if options["restart"] else "",
            warnings=configuration.warnings
            + unknown_variables({**options["environment"], **options["secret_environment"]}, program.variables()),
            own=own,
        )

    def preflight(self, plan: Plan, host: Host) -> None:
        """Room on the GPUs, adapters, certificate and key, and vLLM's own verdict on the configuration."""
        own, configuration = plan.declared.own, plan.declared.own.configuration
        memory.await_room(
            plan.placed.devices, plan.unit, own.utilization, "gpu_memory_utilization", host.gather, plan.vacated
        )
        for adapter in own.adapters:
            adapters.check_readable(adapter, plan.declared.user)
        config, options = dict(configuration.config), plan.service.options
        for name in ("chat_template", "ssl_certfile", "ssl_keyfile"):
            if host.check_mode and options[name] and not os.path.lexists(options[name]):
                host.warn("%s: there is no %s on this host yet" % (name, options[name]))
                config.pop(name.replace("_", "-"))
        if "ssl-certfile" in config and "ssl-keyfile" in config:
            # a converged host does not need it
            from ..serving import tls

            certificate, key = ((name, options[name]) for name in ("ssl_certfile", "ssl_keyfile"))
            tls.check(certificate, key, plan.declared.user)
        if options["offline"] and plan.placed.devices and own.program.lacks_kernels():
            host.warn(
                "offline: FlashInfer in %s has no precompiled kernels; a model that needs one will fail to start or "
                "be slower. Add flashinfer-cubin, of the same version, to the packages of the environment"
                % own.program.venv
            )
        if own.program.exists():
            own.program.parse(config, configuration.environment)

    def leave(self, service: Service, host: Host) -> Leaving:
        """Its files go; the environment, the user and the model stay."""
        return Leaving(files=dict.fromkeys(unit.paths(service.name)), hooks=_stop_hooks(service, host))

    def explain(self, lines: Sequence[str]) -> Cause:
        return log.last_words(lines)

    def describe(self, plan: Plan, proof: Proof, outcome: Outcome) -> Tuple[List[str], Dict[str, Any]]:
        own = plan.declared.own
        leads = not own.configuration.rank
        result = {
            "url": own.configuration.url if leads else None,
            "model": own.configuration.served,
            "version": own.program.version(),
            "parallel": dict(own.parallel._asdict()),
            "fit": _predicted(own.fit),
        }
        return _parts(own, proof), result


# --- what is checked -------------------------------------------------------------------------------------------------


def _options(service: Service) -> Dict[str, Any]:
    """The options of an instance. A model with a path in ``model_paths`` is served from there, under its name."""
    options = dict(service.options, name=service.name)
    path, name = located(options)
    if name:
        options.update(model=path, served_model_name=options["served_model_name"] or [name])
    return options


def _check_given(options: Mapping[str, Any]) -> None:
    missing = [name for name in ("venv", "model") if not options[name]]
    if missing:
        raise Refused("%s: required with state: present; set it for the instance or next to instances" % missing[0])


def _check_memory_known(devices: Sequence[Dict[str, Any]]) -> None:
    for device in devices:
        if not device["memory"]["total_bytes"]:
            raise Refused(
                "visible_devices: how much memory GPU %s has, and who uses it, cannot be read: neither NVML (pynvml) "
                "nor nvidia-smi works here; the role gpu_host installs pynvml" % label(device)
            )


def _program(options: Mapping[str, Any], host: Host) -> Program:
    program = Program(options["venv"], options["user"])
    if host.check_mode and not program.exists():
        host.warn("venv: %s does not exist yet; its vLLM cannot check the configuration" % program.venv)
    else:
        program.check()
    return program


def _warn_of_open_paths(options: Mapping[str, Any], release: releases.Release, warn: Callable[[str], None]) -> None:
    if options["api_key"] and not options["guard_all_paths"] and not is_loopback(options["host"]):
        warn(
            "host: this vLLM asks for the api_key only under %s; /invocations, which generates, and others are open to "
            "everyone who can reach it; set guard_all_paths: true" % ", ".join(releases.paths_with_key(release))
        )


def _listen(options: Mapping[str, Any], configuration: settings.Declared) -> Listen:
    return Listen(str(configuration.config["host"]), configuration.port, options["api_key"] is not None)


# --- the proof, and what happens around a stop -----------------------------------------------------------------------


def _checks(
    options: Mapping[str, Any], configuration: settings.Declared, own: unit.Own, hooks: Stop, limit: float
) -> List[Check]:
    """/health answers 200 for as long as the front end lives, so it is not asked."""
    if options["node_rank"]:
        return [multinode.leader_serves, checks.UsesGpus()]
    endpoint, served = _endpoint(options, configuration), configuration.served
    found: List[Check] = [
        checks.ComesUp(openai.lists_model(endpoint, served), limit, options["stall_timeout"]),
        checks.after_change(checks.owns_port(endpoint.port)),
    ]
    # the model last, as the summary shows what answered last
    answers = [
        checks.after_change(openai.answers(endpoint, name, options["token_timeout"]))
        for name in (*(adapter.name for adapter in own.adapters), served)
    ]
    if options["state"] == "asleep":
        falls = gate.asleep(endpoint, own.weights * own.parallel.data, hooks, limit)
        found += [gate.noted(endpoint), *map(gate.unless_asleep, answers), falls]
    elif configuration.config.get("enable-sleep-mode"):
        wakes = gate.awake(endpoint, served, options["asleep"] == "accept", configuration.admin, limit)
        found += [wakes, *map(gate.unless_asleep, answers)]
    else:
        found += answers
    return [*found, checks.UsesGpus()]


def _endpoint(options: Mapping[str, Any], configuration: settings.Declared) -> Endpoint:
    return Endpoint(configuration.url, options["api_key"], verify=False)


def _share(options: Mapping[str, Any], utilization: float, devices: Sequence[Dict[str, Any]]) -> Optional[float]:
    """The share of each GPU's memory that an instance claims."""
    if not devices:
        return None
    if options["state"] != "asleep":
        return utilization
    # a host without instances that are asleep does not need it
    from .sleep import share

    return share(utilization, devices)


def _ready(configuration: settings.Declared) -> str:
    """Where it answers once it serves; before that, nobody listens there."""
    return configuration.url + ("/is_sleeping" if configuration.admin else "/health")


def _stop_hooks(service: Service, host: Host) -> Stop:
    """Those for the process that is to be stopped, as the file says with which it was started."""
    options = service.options
    previous = settings.read_back((host.system.read(unit.paths(service.name)[0]) or b"").decode("utf-8", "replace"))

    def endpoint_of(environ: Mapping[str, str]) -> Optional[Endpoint]:
        if not previous:
            return None
        return Endpoint(settings.Declared(config=previous).url, environ.get("VLLM_API_KEY") or None, verify=False)

    if not previous.get("headless"):
        return stop.hook(options, host, endpoint_of)
    # the server on node 0 takes so much longer to end
    longer = options["drain_timeout"] + int(previous.get("shutdown-timeout", 0))
    return stop.hook(dict(options, drain_timeout=longer), host, endpoint_of, kind=multinode.WorkerStop)


# --- the result ------------------------------------------------------------------------------------------------------


def _predicted(fit: Optional[sizing.Fit]) -> Dict[str, Any]:
    """What was predicted of each GPU's memory."""
    if fit is None:
        return {}
    return {
        "budget_bytes": fit.budget,
        "weight_bytes": fit.weights,
        "request_cache_bytes": fit.request,
        "cache_tokens": fit.tokens,
    }


def _parts(own: unit.Own, proof: Proof) -> List[str]:
    """vLLM's part of the summary: how the model is split, where it is served, what it answered."""
    parts = []
    sizes = ("TP", own.parallel.tensor), ("PP", own.parallel.pipeline), ("DP", own.parallel.data)
    if own.parallel.world > 1:
        parts.append(" ".join("%s%d" % size for size in sizes if size[1] > 1))
    where, hosts, rank = own.configuration.url, own.configuration.addresses, own.configuration.rank
    if hosts:
        parts.append("node %d of %d hosts" % (rank, len(hosts)))
        where = hosts[0] if rank else where
    parts += summary.served(own.configuration.served, where, proof)
    return parts
