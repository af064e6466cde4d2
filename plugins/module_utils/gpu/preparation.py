# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the role gpu_host has anything to judge or to do on a host, from the facts of its GPUs."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping

from . import health
from .checks import UNFIT


def missing(gpu: Mapping[str, Any], required: bool, pynvml: bool, persistence: bool, expected: int) -> List[str]:
    """What keeps a host from being prepared, each in a few words; empty for a prepared host. Pure.

    :param gpu: the facts of gather().
    :param required: the host must have a GPU.
    :param pynvml: its GPUs must be read through NVML.
    :param expected: how many GPUs it has by the inventory; 0 for any number.
    :param persistence: its GPUs must be in persistence mode, unless one of them is at fault.
    """
    fault, devices = gpu["fault"], gpu["devices"]
    found = [one["line"] for one in gpu["findings"] if one["effect"] == UNFIT and one["check"] != health.MISSING]
    found += [one["line"] for one in health.missing(gpu["count"], expected)]
    if required and not gpu["count"]:
        found.append("the host has no GPU")
    if pynvml and gpu["count"] and gpu["source"] != "nvml":
        found.append("pynvml is missing")
    if persistence and not fault and any(device["persistence_mode"] is False for device in devices):
        found.append("persistence mode is off")
    return found


def check(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """Whether a run of the role would find anything to do; reads the GPUs unless gpu_facts has just done so.

    :param params: the parameters of missing(), and ``timeout`` in seconds.
    """
    from . import facts

    wanted = {name: params[name] for name in ("required", "pynvml", "persistence", "expected")}
    found = missing(facts.first_look(params["timeout"]), **wanted)
    return {"changed": bool(found), "msg": "; ".join(found) or "the GPUs are prepared"}
