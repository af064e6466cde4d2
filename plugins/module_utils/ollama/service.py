# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One Ollama service, from the options of the module to the proof on the GPUs."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import account, engine
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import nodes as gpu_nodes
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.processes import held_by_unit
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.select import label, select, visible_devices
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import (
    archives,
    install,
    instances,
    names,
    releases,
    settings,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import store as stores
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.fit import Fit
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.gate import OllamaGate
from ansible_collections.gpufleet.inference.plugins.module_utils.placement import claims, sandbox
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import Unit, merge
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Needed, Refused


class Plan(NamedTuple):
    """One service, everything about it decided and nothing touched yet."""

    params: Mapping[str, Any]
    change: engine.Change
    claim: claims.Claim
    gate: OllamaGate
    steps: List[engine.Step]
    declared: settings.Declared
    visible: Optional[str]
    fit: Optional[Fit]

    @property
    def unit(self) -> str:
        return self.change.unit


def bring(params: Mapping[str, Any], check_mode: bool, warn: Any, system: Optional[Any] = None) -> Dict[str, Any]:
    """Bring the service, or all instances, to their declared state.

    :param params: the module's parameters.
    :param check_mode: read and compare only.
    :param warn: called with each warning.
    :returns: the module's result.
    :raises Refused: nothing was touched.
    :raises Needed: nothing was touched; call again with the archive on this host.
    :raises engine.ServiceError: the former state of the service is back; instances before it are as declared.
    """
    system = system or System()
    try:
        services = instances.services(params)
    except instances.InstanceError as error:
        raise Refused(str(error)) from None
    if params["state"] == "uninstalled":
        return _uninstall(services, check_mode, system)
    leaving = [service for service in services if service["state"] == "absent"]
    staying = [service for service in services if service["state"] == "present"]

    def gather() -> Dict[str, Any]:
        return gpu_facts.gather(timeout=params["facts_timeout"], python_paths=gpu_facts.site_packages(gpu_facts.VENV))

    plans = []  # type: List[Plan]
    if staying:
        facts = gather()
        for service in staying:
            try:
                plans.append(_plan(service, facts, gather, warn, system))
            except Refused as error:
                raise Refused("%s: %s" % (service["unit"], error) if params["instances"] else str(error)) from None
        _check_claims(plans, [service["unit"] for service in leaving], facts, system)
        _hold_claims(plans, facts, system)
        _check_archive(params, plans, check_mode, warn)
    results = {}  # type: Dict[str, Dict[str, Any]]
    try:
        for service in leaving:  # first: they may hold what the others are to have
            results[service["unit"]] = _remove(service, check_mode, system)
        for plan in plans:
            results[plan.unit] = _carry_out(plan, check_mode, warn, system)
    except engine.ServiceError as error:
        error.outcome.changed = error.outcome.changed or any(result["changed"] for result in results.values())
        raise
    return _together(results) if params["instances"] else results[services[0]["unit"]]


def _remove(params: Mapping[str, Any], check_mode: bool, system: Any) -> Dict[str, Any]:
    unit, instance = params["unit"], bool(params["instances"])
    change = engine.Change(unit=unit, state="absent")
    if instance:  # without its override it would be one more server at the default port: it is stopped, too
        change = engine.Change(unit=unit, enabled=False, started=False)
        if system.show(unit).get("LoadState") != "loaded":
            change = engine.Change(unit=unit, state="absent")
    steps = _abandoning(system, unit)
    outcome = engine.converge(change, steps=steps, check_mode=check_mode, system=system)
    _finish(steps, outcome)
    gone = "stopped and removed" if instance else "override removed"
    said = "; ".join([gone if outcome.changed else "no override", *outcome.warnings])
    return _result(outcome, "%s: %s" % (unit, said))


def _uninstall(services: Sequence[Mapping[str, Any]], check_mode: bool, system: Any) -> Dict[str, Any]:
    """Take away all instances, and with the last one what was installed for them."""
    from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import uninstall

    params, units = services[-1], [service["unit"] for service in services]
    uninstall.check(units, params["prefix"])
    users, places = zip(*(_in_force(system, unit) for unit in units))
    unfinished = [unit for unit in units if stores.move_unfinished(unit)]
    if unfinished:
        from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import moving

        places += tuple(place for unit in unfinished for record in moving.recorded(unit) for place in record[:2])
    results = {service["unit"]: _remove(service, check_mode, system) for service in services[:-1]}
    results[units[-1]] = uninstall.uninstall(
        units[-1], params["prefix"], params["remove_models"], users[-1], list(filter(None, places)), check_mode, system
    )
    for unit in unfinished if not check_mode else ():
        moving.forget(unit)
    return _together(results) if params["instances"] else results[units[-1]]


def _plan(params: Mapping[str, Any], facts: Dict[str, Any], gather: Any, warn: Any, system: Any) -> Plan:
    """Decide everything about one service; what is known to fail is refused here."""
    unit = params["unit"]
    devices, visible = _choose(params, facts, unit)
    user, others = _without_ours(system, unit)
    options = dict(params, no_cloud=params["no_cloud"] or None)
    try:
        declared = settings.declare(options, params["environment"], visible)
    except settings.SettingsError as error:
        raise Refused(str(error)) from None
    if params["no_cloud"] is None and "OLLAMA_NO_CLOUD" not in others:
        declared.environment.setdefault("OLLAMA_NO_CLOUD", "1")  # not held against the log: old servers do not list it
    for warning in declared.warnings:
        warn(warning)
    models_dir = declared.environment.get("OLLAMA_MODELS")
    store = models_dir or others.get("OLLAMA_MODELS") or stores.default_store(user)
    steps = _steps(params, unit, user, models_dir)
    _check_store(user, store, steps)
    moving = _moving(params, system, unit, user, store)
    steps += moving
    if params["instances"]:
        steps += _steps_of_instance(params, unit, steps, system)
    moved_from = [step.old for step in moving if hasattr(step, "old")]
    _check_host(params, user, store, moved_from, steps)
    host = _host(declared, others, params["allow_unauthenticated"], warn)
    used = devices or facts["devices"]
    claim = claims.Claim(
        unit,
        dict.fromkeys(device["uuid"] for device in used if device["uuid"]),
        exclusive=not params["share_gpus"],
        ports=(settings.listen_address(host)[1],),
    )
    try:
        nodes = [sandbox.Node(*node) for node in gpu_nodes.nodes(used)]
    except ValueError as error:
        if params["isolate"]:
            raise Refused("isolate: %s" % error) from None
        nodes = []
    useful = [*nodes, *(sandbox.Node(*node) for node in gpu_nodes.USEFUL)]
    service = _sandbox(params, user, store, useful)

    def unit_check(merged: Unit) -> Optional[str]:
        hidden = sandbox.hides(merged, nodes) if facts["count"] else None
        if hidden:
            return "%s, so that Ollama would serve on the CPU without a word; take it out there" % hidden
        opened = sandbox.opens(merged, useful) if params["isolate"] else None
        return opened and "isolate: %s; take it out there" % opened

    gate = OllamaGate(
        effective=declared.effective,
        facts=facts,
        devices=devices,
        spread=declared.effective.get("OLLAMA_SCHED_SPREAD") == "true",
        model=params["prove_model"],
        version=params["version"],
        gather=gather,
        uneven=params["uneven_spread"],
        warn=warn,
    )
    fit = None
    if params["prove_model"] and store:
        environ = dict(others, **declared.environment)
        fit = Fit(params["prove_model"], [store, *moved_from], environ, facts, unit, user, params["prove_fit"], warn)
    change = engine.Change(
        unit=unit,
        environment=declared.environment,
        settings=dict({"Service": service} if service else {}, **claims.lines(claim)),
        enabled=params["enabled"],
        started=True,
        timeout=params["timeout"],
        unit_check=unit_check,
        pre_change_check=fit,
    )
    return Plan(params, change, claim, gate, steps, declared, visible, fit)


def _hold_claims(plans: Sequence[Plan], facts: Dict[str, Any], system: Any) -> None:
    """Have each claim checked again at the moment in which it is written; those of later services still change."""
    names = {device["uuid"]: label(device) for device in facts["devices"]}
    for number, plan in enumerate(plans):
        later = [other.unit for other in plans[number + 1 :]]
        plan.change.while_writing = partial(
            claims.claiming, plan.claim, system, later, lambda uuid: names.get(uuid, uuid)
        )


def _check_claims(plans: Sequence[Plan], leaving: Sequence[str], facts: Dict[str, Any], system: Any) -> None:
    """No two services may have the same GPU or port."""
    names = {device["uuid"]: label(device) for device in facts["devices"]}
    try:
        claims.check([plan.claim for plan in plans], system, leaving, lambda uuid: names.get(uuid, uuid))
    except claims.Conflict as conflict:
        for plan in plans:
            made = any(isinstance(step, install.UnitStep) for step in plan.steps)
            if not made and system.show(plan.unit).get("LoadState") == "not-found":
                return  # a unit that does not exist claims nothing, and the engine says so
        raise Refused(str(conflict)) from None


def _check_archive(params: Mapping[str, Any], plans: Sequence[Plan], check_mode: bool, warn: Any) -> None:
    """What is to be unpacked must be within reach, and its place must be root's alone."""
    for step in (step for plan in plans for step in plan.steps):
        if isinstance(step, (install.ReleaseStep, install.BackStep)) and step.needed():
            step.switch.check()
        if isinstance(step, install.ReleaseStep) and not step.unpacked():
            _check_archives(step.release.sources, params["remote_src"], check_mode)
            for source in step.release.sources:
                if source.checksum == releases.UNVERIFIED and source.place.startswith("http://"):
                    warn(
                        "archive_checksum: %s comes over plain http, unverified: whoever is on the way can replace "
                        "the program; use https, or declare the checksum" % releases.without_secrets(source.place)
                    )


def _carry_out(plan: Plan, check_mode: bool, warn: Any, system: Any) -> Dict[str, Any]:
    """Have the engine change what differs, and prove it."""
    outcome = engine.converge(plan.change, gate=plan.gate, steps=plan.steps, check_mode=check_mode, system=system)
    _finish(plan.steps, outcome)
    for warning in outcome.warnings:
        warn(warning)
    proven = plan.gate.proven()
    return dict(
        _result(
            outcome,
            sentence(outcome, plan.declared, proven, plan.params["prove_model"], check_mode, plan.params["isolate"]),
        ),
        version=plan.gate.version,
        visible_devices=plan.visible,
        gpus=proven,
        **_sized(plan.fit, sum(gpu["held_bytes"] for gpu in proven)),
    )


def _finish(steps: Sequence[engine.Step], outcome: engine.Outcome) -> None:
    """Have the steps remove what was kept until the service was proven."""
    for step in steps:
        try:
            getattr(step, "finish", lambda: None)()
        except (stores.StoreError, OSError) as error:  # the service is proven without it
            outcome.warnings.append("what was there before is not all removed: %s; the next run resumes" % error)


def _sized(fit: Optional[Fit], held: int) -> Dict[str, Any]:
    """The estimate beside what came of it."""
    if fit is None or fit.estimate is None:
        return {}
    ratio = fit.ratio(held)
    return dict({"estimate": fit.estimate}, **({"ratio": ratio} if ratio else {}))


def _together(results: Dict[str, Dict[str, Any]]) -> Dict[str, Any]:
    """The result of all instances."""
    return {
        "changed": any(result["changed"] for result in results.values()),
        "msg": " | ".join("%s: %s" % (unit[: -len(".service")], result["msg"]) for unit, result in results.items()),
        "diff": [result["diff"] for result in results.values() if result["diff"]],
        "instances": results,
    }


def _choose(params: Mapping[str, Any], facts: Dict[str, Any], unit: str) -> Tuple[List[Dict[str, Any]], Optional[str]]:
    """The declared GPUs and the value of CUDA_VISIBLE_DEVICES; no GPUs and None when none are declared."""
    wanted, environment = params["visible_devices"], params["environment"]
    by_hand = environment.get("CUDA_VISIBLE_DEVICES")
    fault = facts["fault"]
    if fault and (wanted is None or all(device["health"]["lost"] for device in facts["devices"])):
        # GPUs that still answer may be chosen by a list or a policy while another one is lost
        raise Refused("%s: %s; %s" % (fault["code"], fault["text"], fault["remedy"]))
    listed = None
    if "CUDA_VISIBLE_DEVICES" in environment:
        if wanted is not None:
            raise Refused("environment.CUDA_VISIBLE_DEVICES: already given by visible_devices; keep one of the two")
        try:
            listed = settings.visible_list(by_hand)
        except settings.SettingsError as error:
            raise Refused(str(error)) from None
        if params["isolate"] and not listed[0].startswith("GPU-"):
            raise Refused(
                "environment.CUDA_VISIBLE_DEVICES: %r are indexes, which count otherwise where only the declared "
                "GPUs can be opened (isolate); write UUIDs, or use visible_devices" % by_hand
            )
    elif wanted is None:
        if params["isolate"]:
            raise Refused("isolate: no GPUs are declared that it could be about; name them by visible_devices")
        return [], None
    try:
        if listed is not None:
            return select(facts["devices"], listed), str(by_hand)
        chosen = select(facts["devices"], wanted, held_by_unit(facts["devices"], unit))
        if params["isolate"]:  # indexes would count what the unit may open: with them it ends on the CPU, in silence
            return chosen, ",".join(device["uuid"] for device in chosen)
        return chosen, visible_devices(chosen, facts["devices"], wanted)
    except Refused as error:
        raise Refused("%s: %s" % ("visible_devices" if by_hand is None else "CUDA_VISIBLE_DEVICES", error)) from None


def _steps(params: Mapping[str, Any], unit: str, user: str, models_dir: Optional[str]) -> List[engine.Step]:
    """What has to be there before the unit can run: the release with its user and unit, and the models' directory."""
    steps = []  # type: List[engine.Step]
    release = _release(params)
    if release:
        if user == install.USER:
            steps.append(install.UserStep())
        steps.append(install.ReleaseStep(release, params["prefix"]))
        steps.append(install.UnitStep(unit, params["prefix"]))
    else:
        back = install.BackStep(params["prefix"])
        if back.needed():
            steps.append(back)
    if models_dir:
        steps.append(install.DirectoryStep(models_dir, user))
    return steps


def _release(params: Mapping[str, Any]) -> Optional[releases.Release]:
    """The release that is declared, each of its archives with a checksum."""
    try:
        release = releases.plan(
            params["version"],
            params["mirror"],
            params["archive"],
            params["addons"],
            params["archive_checksum"],
            os.uname().machine,
        )
    except releases.ReleaseError as error:
        raise Refused(str(error)) from None
    for source in release.sources if release else ():
        if not source.checksum and not params["remote_src"]:
            raise Refused("archive %s needs archive_checksum, the SHA-256 of its file" % source.place)
    return release and releases.Release(
        tuple(
            source._replace(checksum=source.checksum or archives.sha256_of(source.place)) for source in release.sources
        )
    )


def _check_archives(sources: Sequence[releases.Source], remote_src: bool, check_mode: bool) -> None:
    """The archives of a release that is to be unpacked must be within reach, and readable here."""
    for source in sources:
        missing = archives.without_zstd(source.place) if source.name.endswith(".zst") else None
        if missing:
            raise Refused(missing)
    if not (check_mode or remote_src or all(releases.is_url(source.place) for source in sources)):
        raise Needed([source.place for source in sources])


def _steps_of_instance(
    params: Mapping[str, Any], unit: str, steps: List[engine.Step], system: Any
) -> List[engine.Step]:
    """What a host needs besides for an instance: the template of its unit, and each instance the program in place."""
    from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.server import ProgramStep

    program = os.path.join(params["prefix"], "bin", "ollama")
    more = [ProgramStep(unit, program, system)]  # type: List[engine.Step]
    if not any(isinstance(step, install.UnitStep) for step in steps):
        if not (os.path.exists(program) or any(isinstance(step, install.BackStep) for step in steps)):
            raise Refused(
                "there is no %s that it could start; expected an installed Ollama: declare archive, or the prefix "
                "below which it is" % program
            )
        more.append(install.UnitStep(unit, params["prefix"]))
    return more


def _check_store(user: str, store: Optional[str], steps: Sequence[engine.Step]) -> None:
    makes = next((step for step in steps if isinstance(step, install.UserStep)), None)
    why = stores.refused(store, user, to_be_made=makes is not None) if store else None
    if why and makes and store:
        why = _prepared(user, store, steps, why)
    if why and makes and not account.exists(user):
        why += ", after %s, as there is no such user yet" % " ".join(makes.command)
    if why:
        raise Refused("the models' directory: %s" % why)


def _prepared(user: str, store: str, steps: Sequence[engine.Step], why: str) -> Optional[str]:
    """What keeps a user of our own from a store that root has prepared; that is given to it where it is only root's."""
    directory = next((step for step in steps if isinstance(step, install.DirectoryStep)), None)
    if directory is None or (account.exists(user) and user not in account.install_record.remembered("users")):
        return why
    if stores.refused(store, user, to_be_made=True, parents_only=True) or directory.give(stores.TOPS):
        return why
    return None


def _check_host(
    params: Mapping[str, Any], user: str, store: Optional[str], moved_from: List[str], steps: List[engine.Step]
) -> None:
    """What is known to fail before anything is touched: names without files."""
    model = params["prove_model"]
    if model:
        try:
            found = [names.manifest(place, model) for place in [store or "", *moved_from]]
        except ValueError as error:
            raise Refused("prove_model: %s" % error) from None
        if not (store and any(os.path.isfile(manifest) for manifest in found)):
            raise Refused(
                "prove_model: the store of this host, %s, has no model %s%s; pull it first, or leave prove_model out"
                % (store or "of user %s" % user, model, " (no file %s)" % found[0] if store else "")
            )
    library, libraries = params["llm_library"], install.libraries(params["prefix"])
    replaced = any(isinstance(step, install.ReleaseStep) and step.needed() for step in steps)
    if library and libraries is not None and library not in libraries and not replaced:
        raise Refused(
            "llm_library: there is no folder %s under %s/lib/ollama, so Ollama would serve on the CPU; there are: %s"
            % (library, params["prefix"], ", ".join(libraries) or "none")
        )


def _without_ours(system: Any, unit: str) -> Tuple[str, Dict[str, str]]:
    """User and variables of the unit without our override; what upstream's unit has where there is none yet."""
    files = [file for file in system.load([unit]) if os.path.basename(file[0]) != engine.DROP_IN]
    if not any(content and not path.endswith(".conf") for path, content in files):  # a masked one is empty
        return install.USER, {}
    merged = merge(files)
    lines = merged.in_force("Service", "User")
    values = merged.environment(system.specifiers(unit), system.environment_files)
    variables = {name: value.text for name, value in values.items() if value.text}
    return lines[-1].value if lines else "root", variables


def _host(declared: settings.Declared, others: Mapping[str, str], allowed: bool, warn: Any) -> str:
    """Where the service will listen; an address that others reach must have been allowed.

    :raises Refused: anybody could use, pull and delete models.
    """
    advice = (
        "%s is reached by others, and the API knows no authentication: anybody there may use, pull and delete models; "
        "listen on 127.0.0.1 behind a proxy that asks who is there, or set allow_unauthenticated: true"
    )
    host = declared.environment.get("OLLAMA_HOST")
    if host is not None:
        if not (allowed or settings.is_loopback(host)):
            raise Refused("host: " + advice % host)
        return host
    host = others.get("OLLAMA_HOST", "").strip().strip("\"'") or settings.DEFAULT_HOST
    try:
        if not (allowed or settings.is_loopback(host)):
            warn("OLLAMA_HOST of the unit, which is not declared: " + advice % host)
    except ValueError:
        return settings.DEFAULT_HOST  # so does the server
    return host


def _sandbox(
    params: Mapping[str, Any], user: str, store: Optional[str], nodes: Sequence[sandbox.Node]
) -> Dict[str, Any]:
    """Settings of ``[Service]`` for the options sandbox and isolate."""
    service = {}  # type: Dict[str, List[str]]
    if params["sandbox"]:
        home = install.home(user)
        store = store or home
        writable = [home] if (store + "/").startswith(home + "/") else [home, store]
        for path in [*writable, params["prefix"]]:
            real = os.path.realpath(path)
            hidden = [folder for folder in sandbox.HIDDEN if (real + "/").startswith(folder + "/")]
            if hidden:
                raise Refused(
                    "sandbox: %s needs %s%s, but the sandbox hides %s from it; move it elsewhere"
                    % (params["unit"], path, "" if real == path else " (%s)" % real, hidden[0])
                )
        service.update(sandbox.profile(writable))
    if params["isolate"]:
        service.update(sandbox.only(nodes))
    return service


def _moving(params: Mapping[str, Any], system: Any, unit: str, user: str, store: Optional[str]) -> List[Any]:
    """The steps that move the models, where the store in force is another one than will be."""
    ours = any(os.path.basename(path) == engine.DROP_IN for path, _content in system.load([unit]))
    # an instance that is new had no store before
    former = None if params["instances"] and not ours else _in_force(system, unit)[1]
    return _moved(former, store, params["models_dir_change"], user, unit)


def _moved(former: Optional[str], store: Optional[str], change: str, user: str, unit: str) -> List[Any]:
    if former == store and not stores.move_unfinished(unit):
        return []
    from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import moving

    try:
        return moving.plan(former, store, change, user, unit)
    except stores.StoreError as error:
        raise Refused(str(error)) from None


def _abandoning(system: Any, unit: str) -> List[Any]:
    """The steps that clean up after a killed move of a service that is to go."""
    if not stores.move_unfinished(unit):
        return []
    user, others = _without_ours(system, unit)
    store = others.get("OLLAMA_MODELS") or stores.default_store(user)
    return _moved(_in_force(system, unit)[1], store, "leave", user, unit)


def _in_force(system: Any, unit: str) -> Tuple[str, Optional[str]]:
    """User and store of the unit as it is, our override included; upstream's user and no store where there is none."""
    files = system.load([unit])
    if not any(content and not path.endswith(".conf") for path, content in files):  # a masked one is empty
        return install.USER, stores.default_store(install.USER)
    merged = merge(files)
    lines = merged.in_force("Service", "User")
    user = lines[-1].value if lines else "root"
    store = merged.environment(system.specifiers(unit), system.environment_files).get("OLLAMA_MODELS")
    return user, store.text if store else stores.default_store(user)


def sentence(
    outcome: engine.Outcome,
    declared: settings.Declared,
    gpus: List[Dict[str, Any]],
    model: Optional[str],
    check: bool,
    isolated: bool = False,
) -> str:
    """The outcome in one line for a person."""
    parts = [outcome.verdict.name]
    if check and outcome.remedied:
        parts = ["would %s: %s" % ("restart it" if outcome.restarted else "load it anew", outcome.reasons[-1])]
    elif check and outcome.changed:
        parts = ["would change %s" % (", ".join(sorted(outcome.drift)) or "the installation")]
    counts = {}  # type: Dict[str, int]
    for gpu in gpus:
        short = (gpu["name"] or "GPU").replace("NVIDIA ", "").replace("GeForce ", "")
        counts[short] = counts.get(short, 0) + 1
    parts.append(" + ".join("%d× %s" % (count, name) for name, count in counts.items()) or "no GPU")
    spread = declared.effective.get("OLLAMA_SCHED_SPREAD") == "true"
    if isolated:
        parts.append("alone with GPU %s%s" % (",".join(str(gpu["index"]) for gpu in gpus), " spread" if spread else ""))
    elif "CUDA_VISIBLE_DEVICES" in declared.environment:
        visible = declared.environment["CUDA_VISIBLE_DEVICES"]
        parts.append("CUDA_VISIBLE_DEVICES=%s%s" % (visible, " spread" if spread else ""))
    holding = [gpu for gpu in gpus if gpu["held_bytes"]]
    if model and holding and not (check and outcome.remedied):  # what is there is what is wrong
        parts.append("%s on %d GPU%s" % (model, len(holding), "s"[: len(holding) != 1]))
    if outcome.restarted and not check:
        parts.append("restart %.1f s" % (outcome.downtime_ms / 1000.0))
    if outcome.remedied and not check:
        parts.append("was %s" % outcome.remedied)
    return " · ".join(parts)


def _result(outcome: engine.Outcome, message: str) -> Dict[str, Any]:
    return dict(outcome.as_result(), msg=message)
