# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of one Ollama server: what it reports, next to what NVML does."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Dict, Mapping, Optional

from ..gpu import facts as gpu_facts
from ..gpu.processes import held_by_unit
from ..systemd.manager import System
from ..systemd.unit import unit_name
from ..toolbox.errors import Failed
from . import log, server
from .api import ApiError

_SHOWS = 60.0  # seconds for what is asked of all loaded models; a server may name as many as it likes


def read(
    params: Mapping[str, Any],
    check_mode: bool,
    warn: Any,
    system: Optional[Any] = None,
    gather: Optional[Callable[[], Dict[str, Any]]] = None,
) -> Dict[str, Any]:
    """The result of the module ``ollama_info``.

    :raises Failed: the unit runs, or a host is named, and nothing usable answers.
    """
    system = system or System()
    unit = unit_name(params["name"])
    state = system.show(unit)
    if params["host"] is None and not int(state.get("MainPID") or 0):
        others = server.running_instances(unit, system)
        said = "; these are: %s" % ", ".join(others) if others else ""
        return {"changed": False, "running": False, "unit": unit, "msg": "%s is not running%s" % (unit, said)}
    found = server.find(unit, params["host"], system)
    result: Dict[str, Any] = {"changed": False, "running": True, "unit": unit, "url": found.api.url}
    result["store"] = found.store
    try:
        result["version"] = found.api.version()
        models, loaded = found.api.tags(), found.api.loaded()
        until = time.monotonic() + _SHOWS
        weights = {str(one.get("name")): _weights(found, str(one.get("name")), until) for one in loaded}
    except ApiError as error:
        raise Failed("%s; expected Ollama's API at %s" % (error, found.api.url)) from None
    own = bool(found.environ)  # else the unit is another server's
    facts = gather() if gather else gpu_facts.gather_for(params["facts_timeout"])
    result.update(_started(system, state.get("InvocationID") or "") if own else _started(system, ""))
    result["models"] = [_stored(one) for one in models]
    result["loaded"] = [_resident(one, weights, facts, unit if own else "") for one in loaded]
    held = held_by_unit(facts["devices"], unit) if own else {}
    result["gpus"] = [
        {
            "index": device["index"],
            "uuid": device["uuid"],
            "name": device["name"],
            "held_bytes": held.get(device["uuid"], 0),
        }
        for device in facts["devices"]
    ]
    result["gpu_source"] = facts["source"]
    result["msg"] = "Ollama %s at %s: %d models, %d loaded" % (
        result["version"],
        found.api.url,
        len(models),
        len(loaded),
    )
    return result


def _started(system: Any, invocation: str) -> Dict[str, Any]:
    """What the server logged at its start; nulls when the journal no longer has it."""
    start = log.parse(log.before_serving(system.journal_from_start(invocation))) if invocation else log.StartLog()
    return {
        "configuration": start.config,
        "misread": start.replaced if start.config is not None else None,
        "devices": [
            {
                "id": device.id,
                "library": device.library,
                "description": device.description,
                "pci_bus_id": device.pci_bus_id,
            }
            for device in start.compute
        ]
        if start.compute
        else None,
    }


def _weights(found: server.Server, name: str, until: float) -> str:
    """Name of the file of a model's weights, by which its worker is known; empty when the server does not say."""
    shown = found.api.show(name, max(0.01, until - time.monotonic()))
    lines = str(shown.body.get("modelfile") or "").split("\n")
    return next((os.path.basename(line[5:].strip()) for line in lines if line.startswith("FROM /")), "")


def _stored(entry: Dict[str, Any]) -> Dict[str, Any]:
    details = entry.get("details")
    details = details if isinstance(details, dict) else {}
    return {
        "name": entry.get("name"),
        "digest": entry.get("digest"),
        "size_bytes": entry.get("size"),
        "modified_at": entry.get("modified_at"),
        "family": details.get("family"),
        "parameters": details.get("parameter_size"),
        "quantization": details.get("quantization_level"),
        "capabilities": entry.get("capabilities") or [],
    }


def _resident(entry: Dict[str, Any], weights: Dict[str, str], facts: Dict[str, Any], unit: str) -> Dict[str, Any]:
    name = str(entry.get("name"))
    held = server.held_by_worker(facts, unit, weights[name])[0] if weights[name] and unit else {}
    return {
        "name": name,
        "digest": entry.get("digest"),
        "size_bytes": entry.get("size"),
        "size_vram_bytes": entry.get("size_vram"),
        "context": entry.get("context_length"),
        "expires_at": entry.get("expires_at"),
        "held_bytes": {
            str(device["index"]): held[device["uuid"]] for device in facts["devices"] if device["uuid"] in held
        },
    }
