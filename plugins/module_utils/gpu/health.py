# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a GPU is fit for work, and what else was found about it, from the facts. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .checks import ACTIONS, AMONG_GPUS, CHECKS, NOTE, SLOW, TWINS, UNFIT, URGENT, XIDS, Check

MISSING = "gpu_missing"


def missing(count: int, expected: int) -> List[Dict[str, Any]]:
    """The finding that there are fewer GPUs than the inventory says; none if it says nothing (0)."""
    if count >= expected:
        return []
    text = "%d of %d GPUs are missing on the PCI bus" % (expected - count, expected)
    return [_finding(None, MISSING, UNFIT, "look", text, "check their seat and power, and power-cycle the host")]


def matters(finding: Mapping[str, Any]) -> bool:
    """Whether a finding may cost service soon. Other notes are for the facts, the metrics and the report."""
    return finding.get("effect") in (UNFIT, SLOW) or finding.get("action") in URGENT


def health(device: Dict[str, Any], lost: Optional[str] = None) -> Dict[str, Any]:
    """What is known against using a GPU.

    :param device: one of the facts' devices.
    :param lost: why it does not answer; None when it does.
    :returns: ``ok`` (bool: nothing is known against it), ``fit`` (bool: the same, apart from what makes it slow),
        ``lost`` (bool: no answer), ``reasons`` (list of str). A value that is not known counts neither for nor against.
    """
    known = _found(device)
    found = [(check.effect, _with(text, check.remedy)) for check, text in known if check.effect != NOTE]
    if lost:
        found.insert(0, (UNFIT, lost))
    return {
        "ok": not found,
        "fit": all(effect == SLOW for effect, _text in found),
        "lost": bool(lost),
        "reasons": [text for _effect, text in found],
    }


def findings(
    devices: Sequence[Dict[str, Any]],
    xids: Sequence[Mapping[str, Any]],
    faults: Sequence[Tuple[Optional[int], Mapping[str, str]]] = (),
) -> List[Dict[str, Any]]:
    """Everything that was found, of all GPUs. Every view takes it from here, and none has a name of its own.

    :param devices: the facts' devices.
    :param xids: what kernel_log.read() gives.
    :param faults: index of a GPU that does not answer, or None for the host as a whole, and its fault.
    :returns: for each: ``gpu`` (its index; None for the host, and for a GPU that is not known by its place on the PCI
        bus), ``check``, ``effect`` (``unfit``, ``slow``, ``note``), ``action``, ``text``, ``remedy`` (what to do, in
        words), ``line`` (place, name and text, and what the check itself says is to be done).
    """
    found = [_finding(gpu, fault["code"], UNFIT, "look", fault["text"], fault["remedy"]) for gpu, fault in faults]
    found += [
        _of_check(device["index"], check, text)
        for device in devices
        for check, text in _found(device)
        if len(devices) > 1 or check.name != AMONG_GPUS
    ]
    found += [_finding(device["index"], "unlike_twins", NOTE, "look", text) for device, text in _unlike(devices)]
    indexes = {device["pci_bus_id"]: device["index"] for device in devices}
    for xid in xids:
        action, meaning = XIDS.get(xid["code"], ("look", "see NVIDIA's list of Xid errors"))
        text = "Xid %d, %s: %s %s ago" % (xid["code"], meaning, _times(xid["count"]), _ago(xid["age_seconds"]))
        gpu = indexes.get(xid["pci_bus_id"])
        text += " (at %s, where there is no GPU now)" % xid["pci_bus_id"] if gpu is None else ""
        found.append(_finding(gpu, "xid_%d" % xid["code"], NOTE, action, text))
    return found


def _finding(gpu: Optional[int], check: str, effect: str, action: str, text: str, remedy: str = "") -> Dict[str, Any]:
    line = "%s%s: %s" % ("" if gpu is None else "GPU %d: " % gpu, check, text)
    said = {"gpu": gpu, "check": check, "effect": effect, "action": action, "text": text, "line": line}
    return dict(said, remedy=remedy or ACTIONS[action])


def _of_check(gpu: int, check: Check, text: str) -> Dict[str, Any]:
    found = _finding(gpu, check.name, check.effect, check.action, text, check.remedy)
    return dict(found, line=_with(found["line"], check.remedy))


def _with(text: str, remedy: str) -> str:
    return "%s: %s" % (text, remedy) if remedy else text


def _found(device: Dict[str, Any]) -> List[Tuple[Check, str]]:
    values = ((check, check.found(device)) for check in CHECKS)
    return [(check, check.says % value if "%s" in check.says else check.says) for check, value in values if value]


def _unlike(devices: Sequence[Dict[str, Any]]) -> List[Tuple[Dict[str, Any], str]]:
    """GPUs that differ from most others of their name on this host, and how they differ."""
    found = []
    for name in sorted({str(device["name"]) for device in devices}):
        twins = [device for device in devices if device["name"] == name]
        for path, title in TWINS:
            known = [
                (device, value) for device, value in ((one, _leaf(one, path)) for one in twins) if value is not None
            ]
            usual, times = Counter(value for _device, value in known).most_common(1)[0] if known else (None, 0)
            if times * 2 > len(known):  # else nobody can say which of them is the odd one
                found += [
                    (device, "its %s: %s; of %d others: %s" % (title, value, times, usual))
                    for device, value in known
                    if value != usual
                ]
    return found


def _leaf(device: Dict[str, Any], path: str) -> Any:
    for name in path.split("."):
        device = device[name]
    return device


def _times(count: int) -> str:
    return "once," if count == 1 else "%d times, the last" % count


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return "%d %s" % (seconds // size, unit)
    return "%d s" % seconds
