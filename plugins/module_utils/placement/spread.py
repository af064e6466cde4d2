# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a spread came out uneven because other processes hold memory of the GPUs, and who they are. Pure.

llama.cpp gives each GPU layers in proportion to its free memory. The last GPU gets fewer layers than the others, and a
small model cannot be divided evenly, so unevenness alone proves nothing: the emptier GPU must also have had less room.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

from ..gpu.processes import held_by_unit
from ..toolbox.text import one_line

EVEN = 2 / 3.0  # of what the fullest GPU holds, relative to its size; recorded placements have 0.86 and more
_MIB = 1 << 20


def uneven(devices: Sequence[Dict[str, Any]], unit: str) -> List[Dict[str, Any]]:
    """How a unit's memory is divided, if it is uneven on account of others; else an empty list.

    :param devices: the GPUs that the service uses, out of the facts.
    :param unit: such as ``ollama.service``.
    :returns: for each GPU ``index``, ``held_bytes`` by the unit, ``foreign_bytes`` held by others, and ``holders``:
        ``pid``, ``name``, ``unit`` and ``used_bytes`` of each other process, the largest first.
    """
    own = held_by_unit(list(devices), unit)
    found, filled, room = [], [], []
    for device in devices:
        total, free = device["memory"]["total_bytes"], device["memory"]["free_bytes"]
        if not total or free is None:
            return []
        held = own.get(device["uuid"], 0)
        filled.append(held / float(total))
        room.append((free + held) / float(total))
        found.append(
            {
                "index": device["index"],
                "held_bytes": held,
                "foreign_bytes": max(0, total - free - held),
                "holders": _holders(device, unit),
            }
        )
    least, most = filled.index(min(filled)), filled.index(max(filled))
    if filled[least] < EVEN * filled[most] and room[least] < EVEN * room[most]:
        return found
    return []


def _holders(device: Dict[str, Any], unit: str) -> List[Dict[str, Any]]:
    others = [process for process in device["processes"] or () if process["unit"] != unit]
    others.sort(key=lambda process: -(process["used_bytes"] or 0))
    return [{key: process[key] for key in ("pid", "name", "unit", "used_bytes")} for process in others]


def describe(found: Sequence[Dict[str, Any]]) -> str:
    """``42000 MiB on GPU 0, 6400 MiB on GPU 1; others hold 120616 MiB of GPU 1 (process 4711 …)``."""
    most = max(found, key=lambda gpu: gpu["foreign_bytes"])  # the driver itself takes a little of each
    held = ", ".join("%d MiB on GPU %s" % (gpu["held_bytes"] // _MIB, gpu["index"]) for gpu in found)
    return "%s; others hold %s" % (held, ", ".join(_foreign(gpu) for gpu in found if gpu["holders"] or gpu is most))


def _foreign(gpu: Dict[str, Any]) -> str:
    known = ["%s %s MiB" % (_who(holder), _mib(holder["used_bytes"])) for holder in gpu["holders"]]
    return "%d MiB of GPU %s (%s)" % (
        gpu["foreign_bytes"] // _MIB,
        gpu["index"],
        ", ".join(known) or "the driver names no process for it",
    )


def _who(holder: Dict[str, Any]) -> str:
    words = ["process %s" % holder["pid"], holder["name"], holder["unit"] and "of %s" % holder["unit"]]
    return one_line(" ".join(word for word in words if word))


def _mib(used: Optional[int]) -> str:
    return "?" if used is None else str(used // _MIB)
