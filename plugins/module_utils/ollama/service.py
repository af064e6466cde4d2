# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama as an engine of the serving floor: what one service must have, and how its result is described."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..converge.account import DirectoryStep
from ..converge.model import Outcome
from ..endpoint.client import Endpoint
from ..placement.choice import Placed
from ..serving import instances, release, run, stop
from ..serving.gate import Proof
from ..serving.model import Cause, Declared, Host, Leaving, Listen, Plan, Service
from ..systemd.manager import System
from ..toolbox.addresses import host_port, reachable
from ..toolbox.errors import Refused
from ..toolbox.text import near
from . import checks, install, names, settings, storage
from . import store as stores
from .fit import Fit

RELEASE = 60.0
"""Seconds for which GPU memory is waited for between a stop and a start."""


class Own(NamedTuple):
    """What is kept of a service for its result."""

    spread: bool
    fit: Optional[Fit]


class Ollama:
    """See serving.model.Engine."""

    title = "Ollama"
    counts_visible = False
    loads_at_start = False
    open_to = "use, pull and delete models"

    def declare(self, service: Service, placed: Placed, host: Host) -> Declared:
        """What one service must have.

        :raises Refused: Ollama would not serve as declared.
        """
        if placed.cpu:
            raise Refused("visible_devices: none is not available for Ollama; name GPUs, or leave it out for all")
        options, unit = service.options, service.unit
        user, others = storage.without_ours(host.system, unit)
        wanted = _settings(service, placed, others)
        models_dir = wanted.environment.get("OLLAMA_MODELS")
        store = models_dir or others.get("OLLAMA_MODELS") or stores.default_store(user)
        steps = install.steps(service, user, host.system)
        if models_dir:
            steps.append(DirectoryStep(models_dir, user))
        storage.check(user, store, steps)
        moves = storage.moving(service, host.system, user, store)
        steps += moves
        places = [store or "", *(step.old for step in moves if hasattr(step, "old"))]
        model = options["prove_model"]
        there = _has_model(options, places, user)
        install.check_library(options["llm_library"], options["prefix"], steps)
        fit = None
        if there and store:
            environ = dict(others, **wanted.environment)
            main = unit.partition("@")[0] + ".service" if options["main"] == "disabled" else ""
            fit = Fit(model, places, environ, host.facts, unit, user, options["prove_fit"], host.warn, main)
        spread = wanted.effective.get("OLLAMA_SCHED_SPREAD") == "true"
        home = install.home(user)
        listen = _listen(wanted, others)
        return Declared(
            listen=listen,
            user=user,
            environment=wanted.environment,
            secret_environment=wanted.secret_environment,
            steps=steps,
            checks=checks.checks(
                wanted.effective,
                model=model if there else None,
                version=options["version"],
                uneven=options["uneven_spread"],
                warn=host.warn,
            ),
            hooks=stop.hook(options, host, port_of=_port_of, gpus=bool(placed.devices), release=RELEASE),
            writable=[home] if not store or (store + "/").startswith(home + "/") else [home, store],
            readable=[options["prefix"]],
            timeout=options["timeout"],
            asks=(lambda proof: (Endpoint(checks.api(proof.running).url), model)) if there else None,
            pre_change_check=fit,
            warnings=wanted.warnings,
            ready="http://%s/api/version" % host_port(reachable(listen.address), listen.port),
            install_hint="set ollama_version, with ollama_archive_checksum or ollama_mirror, to have it installed",
            unproven="" if there else "%s is not in the store yet" % model if model else "prove_model is not set",
            own=Own(spread, fit),
        )

    def preflight(self, plan: Plan, host: Host) -> None:
        """:raises Refused, Needed: its release cannot be installed, or lies on the controller."""
        release.preflight(plan.declared.steps, plan.service.options["remote_src"], host)
        if any(isinstance(step, release.ReleaseStep) and step.needed() for step in plan.declared.steps):
            plan.declared.installs = install.installs(plan.service.options, plan.declared.listen)

    def leave(self, service: Service, host: Host) -> Leaving:
        """What a killed run has left of a move of its models is cleaned up."""
        hooks = stop.hook(service.options, host, port_of=_port_of, release=RELEASE)
        return Leaving(steps=storage.abandoning(service.unit, host.system), hooks=hooks)

    def explain(self, lines: Sequence[str]) -> Cause:
        """Why a server ended."""
        return checks.explain(lines)

    def describe(self, plan: Plan, proof: Proof, outcome: Outcome) -> Tuple[List[str], Dict[str, Any]]:
        """Parts of the summary line, and further keys of the result."""
        options, own, gpus = plan.service.options, plan.declared.own, plan.gate.gpus()
        spread, visible = " spread" if own.spread else "", plan.declared.environment.get("CUDA_VISIBLE_DEVICES")
        parts = []
        indexes = ",".join(str(gpu["index"]) for gpu in gpus)
        if options["isolate"]:
            parts.append("alone with GPU %s%s" % (indexes, spread))
        elif visible and visible.startswith("GPU-"):
            parts.append("CUDA_VISIBLE_DEVICES by UUID, GPU %s%s" % (indexes, spread))
        elif visible is not None:
            parts.append("CUDA_VISIBLE_DEVICES=%s%s" % (visible, spread))
        used = [gpu["used_bytes"] for gpu in gpus if gpu["used_bytes"]]
        if used and proof.figures.get("loaded") and (proof.changed or not outcome.remedied):  # else it is what is wrong
            parts.append("%s on %d GPU%s" % (options["prove_model"], len(used), "s"[: len(used) != 1]))
        more: Dict[str, Any] = {"version": proof.figures.get("version"), "visible_devices": plan.placed.visible}
        more["proof_due"] = bool(options["prove_model"] and plan.declared.unproven)
        if own.fit and own.fit.estimate is not None:
            ratio = own.fit.ratio(sum(used))
            more.update({"estimate": own.fit.estimate}, **({"estimate_ratio": ratio} if ratio else {}))
        return parts, more


def converge(
    params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None], system: Optional[Any] = None
) -> Dict[str, Any]:
    """Converge the service, or all instances; see serving.run.converge.

    :param params: the parameters of the module ``ollama_service``.
    """
    name = params["name"]
    base = name[: -len(".service")] if name.endswith(".service") else name
    params = dict(params, instances=params["instances"] or None)
    if params["state"] == "uninstalled":
        return _uninstall(params, base, Host(system or System(), check_mode, warn, params["facts_timeout"]))
    result = run.converge(Ollama(), base, params, check_mode, warn, system)
    if "instances" in result:
        result["proof_due"] = any(one.get("proof_due") for one in result["instances"].values())
    return result


def _uninstall(params: Mapping[str, Any], base: str, host: Host) -> Dict[str, Any]:
    """Remove all instances, and with the last one what was installed for them."""
    from ..serving.uninstall import check
    from .uninstall import uninstall

    services = instances.services(params, base)
    units = [service.unit for service in services]
    check(units, install.layout(params["prefix"]))
    users, places = zip(*(storage.in_force(host.system, unit) for unit in units))
    unfinished = [unit for unit in units if stores.move_unfinished(unit)]
    if unfinished:
        from . import moving

        places += tuple(place for unit in unfinished for record in moving.recorded(unit) for place in record[:2])
    ollama = Ollama()
    results = {service.unit: run.leave(ollama.leave(service, host), service, host) for service in services[:-1]}
    results[units[-1]] = uninstall(
        units[-1],
        params["prefix"],
        params["remove_models"],
        users[-1],
        list(filter(None, places)),
        host.check_mode,
        host.system,
    )
    for unit in unfinished if not host.check_mode else ():
        moving.forget(unit)
    return run.together(results) if params["instances"] else results[units[-1]]


def _settings(service: Service, placed: Placed, others: Mapping[str, str]) -> settings.Declared:
    """The environment, with what is best for several servers on a host and for the privacy of requests.

    :raises Refused: Ollama would misread a value.
    """
    options = dict(service.options, no_cloud=service.options["no_cloud"] or None)
    shared = any(other.options["models_dir"] == options["models_dir"] for other in service.siblings)
    if options["noprune"] is None and shared:
        options["noprune"] = True  # at its start a server removes what another one is just pulling
    wanted = settings.declare(options, options["environment"], placed.visible)
    if service.options["no_cloud"] is None and "OLLAMA_NO_CLOUD" not in others:
        wanted.environment.setdefault("OLLAMA_NO_CLOUD", "1")  # not compared with the log: old servers do not list it
    return wanted


def _listen(wanted: settings.Declared, others: Mapping[str, str]) -> Listen:
    host = wanted.environment.get("OLLAMA_HOST")
    if host is not None:
        return Listen(*settings.listen_address(host), shown=host)
    host = others.get("OLLAMA_HOST", "").strip().strip("\"'") or settings.DEFAULT_HOST
    try:
        return Listen(*settings.listen_address(host), declared=False, shown=host)
    except ValueError:  # the server uses its default then
        return Listen(settings.DEFAULT_HOST, settings.DEFAULT_PORT, declared=False)


def _port_of(environ: Mapping[str, str]) -> int:
    """Where a running server listens."""
    try:
        return settings.listen_address(environ.get("OLLAMA_HOST", ""))[1]
    except ValueError:  # the server uses its default then
        return settings.DEFAULT_PORT


def _has_model(options: Mapping[str, Any], places: Sequence[str], user: str) -> bool:
    """Whether there is a model to prove the service with: it is declared, and in a store.

    :raises Refused: it is declared, and no store has it, although nobody is about to put it there (``prove: later``).
    """
    model = options["prove_model"]
    if not model:
        return False
    try:
        found = [names.manifest(place, model) for place in places]
    except ValueError as error:
        raise Refused("prove_model: %s" % error) from None
    store = places[0]
    if store and any(os.path.isfile(manifest) for manifest in found):
        return True
    if options["prove"] == "later":
        return False
    raise Refused(
        "prove_model: the store of this host, %s, has no model %s%s; expected one that is there, or among the declared "
        "models (ollama_models): add it to them, download it first, or leave prove_model out%s"
        % (
            *(store or "of user %s" % user, model, " (no file %s)" % found[0] if store else ""),
            near(model, stores.names_in(store, user)) if store else "",
        )
    )
