# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One Ollama service, from the options of the module to the proof on the GPUs."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.select import (
    SelectionError,
    select,
    visible_devices,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import install, names, settings
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.gate import OllamaGate
from ansible_collections.gpufleet.inference.plugins.module_utils.service import engine
from ansible_collections.gpufleet.inference.plugins.module_utils.service.systemd import System
from ansible_collections.gpufleet.inference.plugins.module_utils.service.unit import merge


class Refused(Exception):
    """Something is wrong before anything was touched."""


class ArchiveNeeded(Exception):
    """The release is not on this host yet, and its archive lies on the controller."""


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
    devices, visible = _choose(params["visible_devices"], params["environment"], facts)
    try:
        declared = settings.declare(params, params["environment"], visible)
    except settings.SettingsError as error:
        raise Refused(str(error)) from None
    for warning in declared.warnings:
        warn(warning)
    user = _user_of(system, unit)
    steps = _steps(params, unit, user)
    _check_host(params, user, steps)
    needs_archive = [step for step in steps if isinstance(step, install.ReleaseStep) and not step.unpacked()]
    if needs_archive and not (check_mode or params["remote_src"] or install.is_url(params["archive"])):
        raise ArchiveNeeded()
    gate = OllamaGate(
        effective=declared.effective,
        facts=facts,
        devices=devices,
        spread=declared.effective.get("OLLAMA_SCHED_SPREAD") == "true",
        model=params["prove_model"],
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
    for warning in outcome.warnings:
        warn(warning)
    proven = gate.proven()
    return dict(
        _result(outcome, sentence(outcome, declared, proven, params["prove_model"], check_mode)),
        version=gate.version,
        visible_devices=visible,
        gpus=proven,
    )


def _choose(wanted: Any, environment: Mapping[str, Any], facts: Dict[str, Any]) -> Tuple[List[Dict[str, Any]], Optional[str]]:
    """The declared GPUs and the value of CUDA_VISIBLE_DEVICES; no GPUs and None when none are declared."""
    by_hand = environment.get("CUDA_VISIBLE_DEVICES")
    fault = facts["fault"]
    if fault and (wanted is None or all(device["health"]["lost"] for device in facts["devices"])):
        # GPUs that still answer may be chosen by a list or a policy while another one is lost
        raise Refused("%s: %s; %s" % (fault["code"], fault["text"], fault["remedy"]))
    try:
        spread = declared.effective.get("OLLAMA_SCHED_SPREAD") == "true"
    if "CUDA_VISIBLE_DEVICES" in environment:
        parts.append("CUDA_VISIBLE_DEVICES=%s%s" % (environment["CUDA_VISIBLE_DEVICES"], " spread" if spread else ""))
    holding = [gpu for gpu in gpus if gpu["held_bytes"]]
    if model and holding:
        parts.append("%s on %d GPU%s" % (model, len(holding), "s"[: len(holding) != 1]))
    if outcome.restarted and not check:
        parts.append("restart %.1f s" % (outcome.unavailable_ms / 1000.0))
    return " · ".join(parts)


def _result(outcome: engine.Outcome, message: str) -> Dict[str, Any]:
    return dict(outcome.as_result(), msg=message)
