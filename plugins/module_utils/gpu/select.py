# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which GPUs a service gets: a wish (all, a list, a policy) and the facts in, devices out. Pure."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from ..toolbox.errors import Refused

_GIB = 1024**3


def _count(value: Any) -> int:
    if isinstance(value, bool) or int(str(value)) < 1:
        raise ValueError
    return int(str(value))


def _gib(value: Any) -> float:
    if isinstance(value, bool) or not 0 <= float(value) < float("inf"):
        raise ValueError
    return float(value)


def _pattern(value: Any) -> "re.Pattern":
    if isinstance(value, (bool, dict, list, tuple)):
        raise ValueError
    return re.compile(str(value), re.IGNORECASE)


def _truth(value: Any) -> bool:
    """As YAML reads it; ``-e`` and INI inventories give texts, and every text that is not empty is true in Python."""
    return {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}[
        str(value).lower()
    ]


_READ: Mapping[str, Tuple[Callable[[Any], Any], str]] = {
    "count": (_count, "a whole number, at least 1"),
    "min_memory_gib": (_gib, "a number of GiB, without a unit"),
    "min_free_memory_gib": (_gib, "a number of GiB, without a unit"),
    "model": (_pattern, "a regular expression for the name of the GPU"),
    "healthy": (_truth, "true or false"),
    "exclude_display": (_truth, "true or false"),
}
"""By the key of a policy, how its value is read, and what is expected."""
POLICY_KEYS = tuple(_READ)


def select(
    devices: List[Dict[str, Any]], wanted: Union[str, List[Any], Dict[str, Any]], own: Optional[Dict[str, int]] = None
) -> List[Dict[str, Any]]:
    """The devices a wish means.

    :param devices: ``devices`` of the facts.
    :param wanted: one of

        * ``"all"``: every GPU of the host that can serve (``health.fit``); the others are left out.
        * a list of indexes, UUIDs and PCI bus ids, kept in its order. What a person names is obeyed even when its
          health is in doubt, except for a GPU that no longer answers.
        * a policy, a dict of ``count`` (int, the first so many of those that fit, by index; default all of them, at
          least one), ``min_memory_gib`` (float, total), ``min_free_memory_gib`` (float, free at this moment or held by
          the service itself), ``model`` (regular expression searched in the name, case ignored), ``healthy`` (bool,
          default true), ``exclude_display`` (bool, default false: GPUs that drive a display).

    :param own: bytes that the service itself holds, by UUID (processes.held_by_unit); without them a second run would
        choose other GPUs than the first.
    :returns: devices out of ``devices``, at least one.
    :raises Refused: nothing fits, a name is unknown or twice there, a GPU is unhealthy, lost, or cut into MIG
        instances.
    """
    if not devices:
        raise Refused("This host has no GPU to choose from; see count and fault in the facts of gpu_facts")
    if wanted == "all":
        chosen = _all(devices)
    elif isinstance(wanted, dict):
        chosen = _by_policy(devices, wanted, own or {})
    elif isinstance(wanted, (list, tuple)):
        chosen = _by_name(devices, wanted)
    else:
        raise Refused(
            "GPUs are wanted as %r; expected 'all', a list of indexes, UUIDs or PCI bus ids, or a policy of %s"
            % (wanted, ", ".join(POLICY_KEYS))
        )
    for device in chosen:
        if _cut_into_instances(device):
            raise Refused(
                "GPU %s is cut into MIG instances and cannot be used as a whole; "
                "disable MIG on it (nvidia-smi -i %s -mig 0) or leave it out" % (label(device), device["index"])
            )
    return chosen


def visible_devices(selected: List[Dict[str, Any]], devices: List[Dict[str, Any]], wanted: Any = None) -> str:
    """The selection as a value of CUDA_VISIBLE_DEVICES.

    Indexes (``0,1,2,3``) when every GPU of the host is of the same model and answers: then CUDA counts them as NVML
    does. UUIDs otherwise, and when the wish named one. Never a mix: CUDA stops reading at the first of another kind.

    :param selected: what select() gave.
    :param devices: all devices of the facts.
    :param wanted: the wish given to select(), looked at only for UUIDs.
    """
    by_uuid = isinstance(wanted, (list, tuple)) and any(str(name).upper().startswith("GPU-") for name in wanted)
    counted_alike = len({device["name"] for device in devices}) == 1 and not any(
        device["health"]["lost"] or _cut_into_instances(device) for device in devices
    )
    if counted_alike and not by_uuid:
        return ",".join(str(device["index"]) for device in selected)
    return ",".join(device["uuid"] for device in selected)


def label(device: Dict[str, Any]) -> str:
    """How messages name a GPU: ``0 (NVIDIA H200, GPU-…, 0000:00:06.0)``; unknown parts are left out."""
    parts = [device[key] for key in ("name", "uuid", "pci_bus_id") if device[key]]
    return "%s (%s)" % (device["index"], ", ".join(parts)) if parts else str(device["index"])


def pci_bus_id(text: str) -> str:
    """A PCI bus id in sysfs' form, ``0000:00:06.0``, from NVML's ``00000000:00:06.0`` or CUDA's ``00:06.0``."""
    text = text.lower()
    domain, _sep, rest = text.partition(":")
    if rest.count(":") == 0:  # CUDA's short form, without a domain
        domain, rest = "0", text
    try:
        return "%04x:%s" % (int(domain, 16), rest)
    except ValueError:
        return text


def _all(devices: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    chosen = [device for device in devices if device["health"]["fit"]]
    if not chosen:
        sick = ("GPU %s: %s" % (label(device), "; ".join(device["health"]["reasons"])) for device in devices)
        raise Refused("no GPU of this host is healthy: %s; repair one, or name what to use anyway" % " | ".join(sick))
    return chosen


def _by_name(devices: List[Dict[str, Any]], names: Union[List[Any], tuple]) -> List[Dict[str, Any]]:
    if not names:
        raise Refused("The list of wanted GPUs is empty; name at least one of %s" % _names(devices, "index"))
    chosen = []  # type: List[Dict[str, Any]]
    for name in names:
        device = find(devices, name)
        if device is None:
            key = "uuid" if str(name).upper().startswith("GPU-") else "index"
            raise Refused("There is no GPU %s on this host; there are %s" % (name, _names(devices, key)))
        if device in chosen:
            raise Refused("GPU %s is named twice in the list of wanted GPUs; name each once" % label(device))
        if device["health"]["lost"]:
            raise Refused(
                "GPU %s is wanted but does not answer: %s" % (label(device), "; ".join(device["health"]["reasons"]))
            )
        chosen.append(device)
    return chosen


def find(devices: List[Dict[str, Any]], name: Any) -> Optional[Dict[str, Any]]:
    """The device with this index, UUID or PCI bus id; None if there is none."""
    if isinstance(name, bool):
        return None
    text = str(name)
    for device in devices:
        if text.isdigit():
            if device["index"] == int(text):
                return device
        elif text == device["uuid"] or pci_bus_id(text) == device["pci_bus_id"]:
            return device
    return None


def _by_policy(devices: List[Dict[str, Any]], policy: Dict[str, Any], own: Dict[str, int]) -> List[Dict[str, Any]]:
    unknown = sorted(set(policy) - set(POLICY_KEYS))
    if unknown:
        raise Refused(
            "The GPU policy has unknown keys: %s; known are %s" % (", ".join(unknown), ", ".join(POLICY_KEYS))
        )
    rules = {key: _read(key, value) for key, value in policy.items() if value is not None}
    fitting = []
    refused = {}  # type: Dict[str, List[str]]
    for device in devices:
        why = _why_not(device, rules, own.get(device["uuid"], 0))
        if why:
            refused.setdefault(why, []).append(str(device["index"]))
        else:
            fitting.append(device)
    count = rules.get("count")
    if len(fitting) < (count or 1):
        raise Refused(
            "The GPU policy wants %s but %d of %d GPUs fit it; left out: %s"
            % (
                "%d GPUs" % count if count else "at least one GPU",
                len(fitting),
                len(devices),
                " | ".join("GPU %s: %s" % (", ".join(which), why) for why, which in refused.items()) or "none",
            )
        )
    return fitting[:count]


def _read(key: str, value: Any) -> Any:
    read, expected = _READ[key]
    try:
        return read(value)
    except (KeyError, TypeError, ValueError, re.error) as error:
        why = " (%s)" % error if isinstance(error, re.error) else ""
        raise Refused("The GPU policy's %s is %r; expected %s%s" % (key, value, expected, why)) from None


def _why_not(device: Dict[str, Any], rules: Dict[str, Any], own: int) -> Optional[str]:
    """Why a GPU does not fit a policy, or None when it does."""
    if device["health"]["lost"] or (rules.get("healthy", True) and not device["health"]["fit"]):
        return "; ".join(device["health"]["reasons"])
    if _cut_into_instances(device):
        return "cut into MIG instances"
    if "model" in rules and not (device["name"] and rules["model"].search(device["name"])):
        return "its name does not match %r" % rules["model"].pattern
    if rules.get("exclude_display") and device["display_active"]:
        return "it drives a display"
    for key, memory in (("min_memory_gib", "total_bytes"), ("min_free_memory_gib", "free_bytes")):
        if key in rules:
            what = "memory" if memory == "total_bytes" else "free memory"
            there = device["memory"][memory]
            if there is None:
                return "its %s is not known" % what
            if memory == "free_bytes":
                there += own
            if there < rules[key] * _GIB:
                return "%.1f GiB of %s, less than %g" % (there / _GIB, what, rules[key])
    return None


def _cut_into_instances(device: Dict[str, Any]) -> bool:
    return bool(device["mig"]["enabled"])


def _names(devices: List[Dict[str, Any]], key: str) -> str:
    return ", ".join(str(device[key]) for device in devices)
