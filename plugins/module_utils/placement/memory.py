# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory of a GPU is used, by whom, and whether there is room for a service."""

from __future__ import annotations

import math
import time
from typing import Any, Callable, Dict, List, Sequence

from ..gpu.processes import held_by_unit
from ..gpu.select import label
from ..toolbox.errors import Refused

GIB = 1024**3
_RESERVED = 2 << 30  # bytes that the driver itself may keep of a GPU
_ENDING = 10.0  # seconds for which a process that has no unit any more may hold memory


def gib(size: float) -> str:
    return "%.1f GiB" % (size / GIB)


def holders(devices: Sequence[Dict[str, Any]], unit: str) -> str:
    """Who uses memory of these GPUs apart from a unit: ``PID 7 (python3, ollama.service) holds 4.0 GiB on GPU 1``."""
    found: List[str] = []
    for device in devices:
        for process in device["processes"] or ():
            if process["unit"] != unit:
                whose = ", ".join(filter(None, (process["name"], process["unit"]))) or "unknown"
                held = gib(process["used_bytes"]) if process["used_bytes"] else "some memory"
                found.append("PID %s (%s) holds %s on GPU %s" % (process["pid"], whose, held, device["index"]))
    return ", ".join(found)


def check_free(device: Dict[str, Any], own: int, wanted: int, unit: str, option: str) -> None:
    """Refuse a start for which a GPU has too little free memory; those who use it are named.

    :param own: bytes that the service itself uses there, which are free again once it is stopped.
    :param wanted: bytes that it will take.
    :param option: its option for the share that it takes, for the message.
    :raises Refused: with the numbers and the holders.
    """
    total, free = device["memory"]["total_bytes"], device["memory"]["free_bytes"]
    if total is None or free is None:
        return
    available = min(total, free + own)
    if available >= wanted:
        return
    said = holders([device], unit)
    raise Refused(
        "GPU %s has %s of %s free%s, but %s of it is to be taken; %sset %s to %.2f at most, or free the memory (this "
        "collection kills no other process)"
        % (
            label(device),
            gib(free),
            gib(total),
            " besides what %s uses" % unit if own else "",
            gib(wanted),
            "%s; " % said if said else "",
            option,
            math.floor(available / total * 100) / 100,
        )
    )


def check_weights(devices: List[Dict[str, Any]], units: Sequence[str], size: int, advice: str) -> None:
    """Refuse a model whose weights alone are larger than the memory that its GPUs have.

    :param units: the service, and those whose memory is free before it starts.
    :param advice: what to do, as the end of the message.
    :raises Refused: with the numbers and the holders.
    """
    own = sum(used for unit in units for used in held_by_unit(devices, unit).values())
    free = own + sum(device["memory"]["free_bytes"] or 0 for device in devices)
    if devices and size > free:
        used = holders(devices, units[0])
        where = "GPU%s %s" % ("s"[: len(devices) > 1], ", ".join(str(device["index"]) for device in devices))
        raise Refused(
            "the weights take %s, but %s %s %s free%s; %s"
            % (gib(size), where, "have" if len(devices) > 1 else "has", gib(free), used and " (%s)" % used, advice)
        )


def await_room(
    devices: List[Dict[str, Any]],
    unit: str,
    share: float,
    option: str,
    gather: Callable[[], Dict[str, Any]],
    leaving: Sequence[str] = (),
) -> List[Dict[str, Any]]:
    """The GPUs as they are when there is room on them.

    A process that is ending, such as those of this host when another host of the model is being stopped, belongs to no
    unit any more, and later to no list either, and holds its memory for a moment.

    :param share: of each GPU's memory that the service takes, 0 to 1.
    :param leaving: units whose memory is free by then: the same run stops or moves them before.
    :raises Refused: there is none.
    """
    until = time.monotonic() + _ENDING
    while True:
        try:
            for device in devices:
                own = sum(held_by_unit([device], one).get(device["uuid"], 0) for one in (unit, *leaving))
                check_free(device, own, int(share * (device["memory"]["total_bytes"] or 0)), unit, option)
            return devices
        except Refused:
            if not any(map(_unclaimed, devices)) or time.monotonic() >= until:
                raise
        # the driver frees memory some time after a process ended, and sends no word
        time.sleep(0.25)
        now = {device["uuid"]: device for device in gather()["devices"]}
        devices = [now.get(device["uuid"], device) for device in devices]


def _unclaimed(device: Dict[str, Any]) -> bool:
    """Whether a GPU has memory in use that no process of a unit accounts for."""
    total, free = device["memory"]["total_bytes"], device["memory"]["free_bytes"]
    if total is None or free is None:
        return False
    processes = device["processes"] or ()
    claimed = sum(process["used_bytes"] or 0 for process in processes if process["unit"])
    return any(process["unit"] is None for process in processes) or total - free - claimed > _RESERVED
