# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One Ollama service, from the options of the module to the proof on the GPUs."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.processes import held_by_unit
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.select import (
    SelectionError,
    select,
    visible_devices,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import install, names, releases, settings
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import store as stores
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.gate import OllamaGate
from ansible_collections.gpufleet.inference.plugins.module_utils.service import engine
from ansible_collections.gpufleet.inference.plugins.module_utils.service.systemd import System
from ansible_collections.gpufleet.inference.plugins.module_utils.service.unit import merge


class Refused(Exception):
    """Something is wrong before anything was touched."""


class ArchiveNeeded(Exception):
    """The release is not on this host yet, and ``archives`` of it lie on the controller."""

    def __init__(self, archives: List[str]) -> None:
        super().__init__(", ".join(archives))
        self.archives = archives


def bring(params: Mapping[str, Any], check_mode: bool, warn: Any, system: Optional[Any] = None) -> Dict[str, Any]:
    """Bring the service to its declared state.

    :param params: the module's parameters.
    :param check_mode: read and compare only.
    :param warn: called with each warning.
    :returns: the module's result.
    :raises Refused: nothing was touched.
    :raises ArchiveNeeded: nothing was touched; call again with the archive on this host.
    :raises engine.ServiceError: the former state is back.
    """
    system = system or System()
    unit = params["name"] if params["name"].endswith(".service") else params["name"] + ".service"
    if params["state"] == "absent":
        outcome = engine.converge(engine.Change(unit=unit, state="absent"), check_mode=check_mode, system=system)
        return _result(outcome, "%s: override removed" % unit if outcome.changed else "%s: no override" % unit)

    def gather() -> Dict[str, Any]:
        return gpu_facts.gather(timeout=params["facts_timeout"], python_paths=gpu_facts.site_packages(gpu_facts.VENV))

    facts = gather()
    devices, visible = _choose(params["visible_devices"], params["environment"], facts, unit)
    try:
        declared = settings.declare(params, params["environment"], visible)
    except settings.SettingsError as error:
        raise Refused(str(error)) from None
    for warning in declared.warnings:
        warn(warning)
    models_dir = declared.environment.get("OLLAMA_MODELS")
    user, store = _user_and_store(system, unit, models_dir)
    steps = _steps(params, unit, user, models_dir)
    steps += _moving(params, system, unit, user, store)
    _check_host(params, user, store, steps)
    for step in steps:
        if isinstance(step, install.ReleaseStep) and not step.unpacked():
            _check_archives(step.release.sources, params["remote_src"], check_mode)
    gate = OllamaGate(
        effective=declared.effective,
        facts=facts,
        devices=devices,
        spread=declared.effective.get("OLLAMA_SCHED_SPREAD") == "true",
        model=params["prove_model"],
        version=params["version"],
        gather=gather,
    )
    outcome = engine.converge(
        engine.Change(
            unit=unit,
            environment=declared.environment,
            enabled=params["enabled"],
            started=True,
            timeout=params["timeout"],
        ),
        gate=gate,
        steps=steps,
        check_mode=check_mode,
        system=system,
    )
    for step in steps:
        if isinstance(step, (install.ReleaseStep, stores.MoveStep)):
            step.finish()
    for warning in outcome.warnings:
        warn(warning)
    proven = gate.proven()
    return dict(
        _result(outcome, sentence(outcome, declared, proven, params["prove_model"], check_mode)),
        version=gate.version,
        visible_devices=visible,
        gpus=proven,
    )


def _choose(
    wanted: Any, environment: Mapping[str, Any], facts: Dict[str, Any], unit: str
) -> Tuple[List[Dict[str, Any]], Optional[str]]:
    """The declared GPUs and the value of CUDA_VISIBLE_DEVICES; no GPUs and None when none are declared."""
    by_hand = environment.get("CUDA_VISIBLE_DEVICES")
    fault = facts["fault"]
    if fault and (wanted is None or all(device["health"]["lost"] for device in facts["devices"])):
        # GPUs that still answer may be chosen by a list or a policy while another one is lost
        raise Refused("%s: %s; %s" % (fault["code"], fault["text"], fault["remedy"]))
    try:
        if "CUDA_VISIBLE_DEVICES" in environment:
            if wanted is not None:
                raise Refused("environment.CUDA_VISIBLE_DEVICES: already given by visible_devices; keep one of the two")
            return select(facts["devices"], settings.visible_list(by_hand)), str(by_hand)
        if wanted is None:
            return [], None
        chosen = select(facts["devices"], wanted, held_by_unit(facts["devices"], unit))
        return chosen, visible_devices(chosen, facts["devices"], wanted)
    except SelectionError as error:
        raise Refused("%s: %s" % ("visible_devices" if by_hand is None else "CUDA_VISIBLE_DEVICES", error)) from None
    except settings.SettingsError as error:
        raise Refused(str(error)) from None


def _steps(params: Mapping[str, Any], unit: str, user: str, models_dir: Optional[str]) -> List[engine.Step]:
    """What has to be there before the unit can run: the release with its user and unit, and the models' directory."""
    steps = []  # type: List[engine.Step]
    release = _release(params)
    if release:
        if user == install.USER:
            steps.append(install.UserStep())
        steps.append(install.ReleaseStep(release, params["prefix"]))
        steps.append(install.UnitStep(unit, params["prefix"]))
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
            source._replace(checksum=source.checksum or install.sha256_of(source.place)) for source in release.sources
        )
    )


def _check_archives(sources: Sequence[releases.Source], remote_src: bool, check_mode: bool) -> None:
    """The archives of a release that is to be unpacked must be within reach, and readable here."""
    for source in sources:
        if source.name.endswith(".zst") and not install.has_zstd():
            raise Refused(
                "%s is packed with zstd, and this host has no program zstd: install the package zstd" % source.place
            )
    if not (check_mode or remote_src or all(releases.is_url(source.place) for source in sources)):
        raise ArchiveNeeded([source.place for source in sources])


def _check_host(params: Mapping[str, Any], user: str, store: Optional[str], steps: List[engine.Step]) -> None:
    """What is known to fail before anything is touched: a store that the user may not write, names without files."""
    why = stores.refused(store, user) if store else None
    if why:
        raise Refused("the models' directory: %s" % why)
    model = params["prove_model"]
    if model:
        moved_from = [step.old for step in steps if isinstance(step, stores.MoveStep)]
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


def _user_and_store(system: Any, unit: str, models_dir: Optional[str]) -> Tuple[str, Optional[str]]:
    """The user that the unit runs as, and where its models are; what upstream's unit has where there is none yet."""
    files = [file for file in system.load([unit]) if os.path.basename(file[0]) != engine.DROP_IN]
    if not any(content and not path.endswith(".conf") for path, content in files):  # a masked one is empty
        return install.USER, models_dir or stores.default_store(install.USER)
    merged = merge(files)
    lines = merged.in_force("Service", "User")
    user = lines[-1].value if lines else "root"
    by_others = merged.environment(system.specifiers(unit), system.environment_files).get("OLLAMA_MODELS")
    return user, models_dir or (by_others and by_others.text) or stores.default_store(user)


def _moving(params: Mapping[str, Any], system: Any, unit: str, user: str, store: Optional[str]) -> List[engine.Step]:
    """The step that moves the models, where the store in force is another one than will be."""
    files = system.load([unit])
    former = None
    if any(content and not path.endswith(".conf") for path, content in files):
        in_force = merge(files).environment(system.specifiers(unit), system.environment_files).get("OLLAMA_MODELS")
        former = in_force.text if in_force else stores.default_store(user)
    try:
        step = stores.plan(former, store, params["models_dir_change"], user, unit)
    except stores.StoreError as error:
        raise Refused(str(error)) from None
    return [step] if step else []


def sentence(
    outcome: engine.Outcome, declared: settings.Declared, gpus: List[Dict[str, Any]], model: Optional[str], check: bool
) -> str:
    """The outcome in one line for a person."""
    parts = [outcome.verdict.name]
    if check and outcome.changed:
        parts = ["would change %s" % (", ".join(sorted(outcome.drift)) or "the installation")]
    counts = {}  # type: Dict[str, int]
    for gpu in gpus:
        short = (gpu["name"] or "GPU").replace("NVIDIA ", "").replace("GeForce ", "")
        counts[short] = counts.get(short, 0) + 1
    parts.append(" + ".join("%d× %s" % (count, name) for name, count in counts.items()) or "no GPU")
    spread = declared.effective.get("OLLAMA_SCHED_SPREAD") == "true"
    if "CUDA_VISIBLE_DEVICES" in declared.environment:
        visible = declared.environment["CUDA_VISIBLE_DEVICES"]
        parts.append("CUDA_VISIBLE_DEVICES=%s%s" % (visible, " spread" if spread else ""))
    holding = [gpu for gpu in gpus if gpu["held_bytes"]]
    if model and holding:
        parts.append("%s on %d GPU%s" % (model, len(holding), "s"[: len(holding) != 1]))
    if outcome.restarted and not check:
        parts.append("restart %.1f s" % (outcome.unavailable_ms / 1000.0))
    return " · ".join(parts)


def _result(outcome: engine.Outcome, message: str) -> Dict[str, Any]:
    return dict(outcome.as_result(), msg=message)
