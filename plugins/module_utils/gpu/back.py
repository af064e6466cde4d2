# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host has all its GPUs back after work on it, nothing new against them, and the expected driver. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Set, Tuple

_OF_PROGRAMS = ("none", "restart")
"""Actions of Xid codes after which the GPU is as good as before."""


def snapshot(facts: Mapping[str, Any]) -> Dict[str, Any]:
    """What is kept of the facts from before the work, as plain data."""
    return {
        "gpus": {str(gpu["pci_bus_id"]): gpu["uuid"] for gpu in facts["devices"]},
        "findings": sorted(_found(facts)),
        "fault": (facts["fault"] or {}).get("code"),
    }


def missing(before: Mapping[str, Any], facts: Mapping[str, Any], replaced: bool, driver: Optional[str]) -> List[str]:
    """What is not as before, in a sentence each; empty once the host may serve again.

    :param before: a snapshot.
    :param replaced: whether other GPUs may be in the place of the previous ones.
    :param driver: the version that the driver must have, or its first parts, such as ``580``; None for any.
    """
    said = []
    fault, gpus = facts["fault"], [gpu["uuid"] for gpu in facts["devices"]]
    if fault and fault["code"] != before["fault"]:
        said.append("%s: %s (%s)" % (fault["code"], fault["text"], fault["remedy"]))
    if len(gpus) < len(before["gpus"]):
        said.append("%d GPUs, and %d before" % (len(gpus), len(before["gpus"])))
    away = ["%s (%s)" % (uuid, place) for place, uuid in before["gpus"].items() if uuid and uuid not in gpus]
    if away and not replaced:
        said.append("missing: %s; if they were replaced, say so with new_gpus" % ", ".join(away))
    known = {tuple(one) for one in before["findings"]}
    said += sorted("GPU %s: %s, which is new" % one for one in _found(facts) if one not in known)
    version = str(facts["driver"]["version"])
    if driver and version.split(".")[: len(driver.split("."))] != driver.split("."):
        said.append("the driver is %s; expected %s" % (version, driver))
    return said


def _found(facts: Mapping[str, Any]) -> Set[Tuple[str, str]]:
    """The place of a GPU and what was found of it. Its number may change, and its UUID with the board."""
    places = {gpu["index"]: str(gpu["pci_bus_id"]) for gpu in facts["devices"]}
    return {
        (places.get(one["gpu"], "unknown"), one["check"])
        for one in facts["findings"]
        if not (one["check"].startswith("xid_") and one["action"] in _OF_PROGRAMS)
        and not (one["gpu"] is None and one["check"] == (facts["fault"] or {}).get("code"))  # it is said as the fault
    }
