# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of work on a host: which one was begun and how the GPUs were then, and which ones have ended.

It is on the host, so a run that is killed is resumed rightly from any controller.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Mapping

from ..gpu import back
from ..gpu import facts as gpu_facts
from ..toolbox import record
from ..toolbox.errors import Failed, Refused

PLACE = "/var/lib/gpufleet/maintenance.json"
KEPT = 20
"""Ended maintenances that are remembered."""
_PAUSE = 2.0  # seconds between two looks at the GPUs


def step(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The result of the module ``host_maintenance``.

    :param params: the module's parameters.
    :raises Refused: this maintenance was not begun here.
    :raises Failed: the GPUs did not come back in time.
    """
    found = record.read(PLACE)
    if params["state"] == "begun":
        return _begin(params, check_mode, found)
    if params["name"] in _ended(found):
        return {"changed": False, "msg": "maintenance %s has ended" % params["name"]}
    if found.get("name") != params["name"]:
        raise Refused("maintenance %s was not begun on this host; use state begun first" % params["name"])
    if params["state"] == "returned":
        return _await(params, check_mode, found)
    return _end(params, check_mode, found)


def _ended(found: Mapping[str, Any]) -> List[str]:
    return [str(name) for name in found.get("ended") or []]


def _begin(params: Mapping[str, Any], check_mode: bool, found: Mapping[str, Any]) -> Dict[str, Any]:
    """An unfinished one has the GPUs from before it; they may be missing by now."""
    name = params["name"]
    if name in _ended(found):
        return {"changed": False, "service": "maintenance", "ended": True, "msg": "maintenance %s has ended" % name}
    resumed = found.get("name") == name
    if not check_mode and not resumed:
        before = found.get("before") or back.snapshot(gpu_facts.gather_for(params["facts_timeout"]))
        began = {"name": name, "before": before, "began": time.time(), "worked": False}
        record.write(PLACE, dict(began, ended=_ended(found)), mode=0o600)
    return {
        "changed": True,
        "service": "maintenance",
        "restarted": True,
        "reasons": [name],
        "stopped": not check_mode,
        "work": not check_mode and not (resumed and found.get("worked")),
        "msg": "maintenance %s" % name,
    }


def _await(params: Mapping[str, Any], check_mode: bool, found: Mapping[str, Any]) -> Dict[str, Any]:
    if check_mode:
        return {"changed": False, "msg": "the GPUs are not waited for in check mode"}
    worked = not found.get("worked")
    if worked:
        record.write(PLACE, dict(found, worked=True), mode=0o600)
    until = time.monotonic() + params["timeout"]
    while True:
        facts = gpu_facts.gather_for(params["facts_timeout"])
        wrong = back.missing(found["before"], facts, params["new_gpus"], params["driver"])
        if not wrong:
            said = "%d GPUs as before, driver %s" % (facts["count"], facts["driver"]["version"])
            return {"changed": worked, "msg": said}
        if time.monotonic() >= until:
            raise Failed(
                "the GPUs are not as before the maintenance, after %d s: %s" % (params["timeout"], "; ".join(wrong)),
                {"changed": worked},
            )
        # the driver sends no word when a GPU is ready
        time.sleep(_PAUSE)


def _end(params: Mapping[str, Any], check_mode: bool, found: Mapping[str, Any]) -> Dict[str, Any]:
    seconds = max(0.0, time.time() - float(found["began"]))
    if not check_mode:
        record.write(PLACE, {"ended": [*_ended(found), params["name"]][-KEPT:]}, mode=0o600)
    return {
        "changed": True,
        "service": "maintenance",
        "restarted": True,
        "downtime_ms": round(seconds * 1000),
        "msg": "maintenance %s took %.0f s" % (params["name"], seconds),
    }
