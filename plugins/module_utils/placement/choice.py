# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPUs of a service: its wish and the facts in; the devices and CUDA_VISIBLE_DEVICES out. Pure."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

from ..gpu.processes import held_by_unit
from ..gpu.select import select, visible_devices
from ..toolbox.errors import Refused

VARIABLE = "CUDA_VISIBLE_DEVICES"


class Placed(NamedTuple):
    """The GPUs of a service."""

    devices: List[Dict[str, Any]]
    """The chosen GPUs, out of the facts; empty when none were declared, or the service uses none."""
    visible: Optional[str]
    """Value of CUDA_VISIBLE_DEVICES; None when none were declared."""
    cpu: bool = False
    """The service is declared to use no GPU."""


def place(options: Mapping[str, Any], facts: Dict[str, Any], unit: str, counts_visible: bool) -> Placed:
    """The GPUs that ``visible_devices``, or CUDA_VISIBLE_DEVICES in ``environment``, means.

    :param options: the service's; ``visible_devices`` is a wish as gpu.select takes it, ``none`` for no GPU, or None.
    :param counts_visible: whether the engine understands nothing but numbers in CUDA_VISIBLE_DEVICES. Where the service
        can open no GPUs but its own (``isolate``), CUDA and NVML count these from 0.
    :raises Refused: the wish cannot be fulfilled on this host.
    """
    wanted, environment, isolate = options["visible_devices"], options["environment"], options["isolate"]
    if wanted == "none":
        if isolate:
            raise Refused("isolate requires GPUs, but visible_devices is none")
        return Placed([], None, cpu=True)
    fault = facts["fault"]
    dead = all(device["health"]["lost"] for device in facts["devices"])
    if fault and (wanted is None or dead):
        others = "" if dead else ", or set visible_devices: all to serve on the others"
        raise Refused("%s: %s; %s%s" % (fault["code"], fault["text"], fault["remedy"], others))
    by_hand = environment.get(VARIABLE)
    if VARIABLE in environment:
        wish: Any = _by_variable(wanted, by_hand, isolate)
    elif wanted is not None:
        wish = wanted
    elif isolate:
        raise Refused("isolate requires visible_devices")
    else:
        return Placed([], None)
    try:
        chosen = select(facts["devices"], wish, held_by_unit(facts["devices"], unit))
    except Refused as error:
        raise Refused("%s: %s" % (VARIABLE if VARIABLE in environment else "visible_devices", error)) from None
    if VARIABLE in environment:
        return Placed(chosen, str(by_hand))
    if counts_visible:
        indexes = [device["index"] for device in chosen]
        return Placed(chosen, ",".join(str(sorted(indexes).index(index) if isolate else index) for index in indexes))
    if not isolate:
        return Placed(chosen, visible_devices(chosen, facts["devices"], wanted))
    # numbers would count what the unit may open: with them it would serve on the CPU without a word
    return Placed(chosen, ",".join(device["uuid"] for device in chosen))


def _by_variable(wanted: Any, written: Any, isolate: bool) -> List[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES among the variables names."""
    if wanted is not None:
        raise Refused("environment.%s: already given by visible_devices; keep one of the two" % VARIABLE)
    listed = visible_list(written)
    if isolate and not listed[0].startswith("GPU-"):
        raise Refused(
            "environment.%s: %r are indexes, which count otherwise where only the declared GPUs can be opened "
            "(isolate); write UUIDs, or use visible_devices" % (VARIABLE, written)
        )
    return listed


def visible_list(value: Any) -> List[str]:
    """The GPUs that a hand-written CUDA_VISIBLE_DEVICES names.

    :raises Refused: a value with which CUDA sees no GPU, or fewer than it names: a server would serve on the CPU.
    """
    listed = [item.strip() for item in str(value).split(",")]

    def refused(why: str) -> Refused:
        return Refused("environment.%s: %r %s" % (VARIABLE, value, why))

    if listed == [""]:
        raise refused("is set but empty, which hides every GPU: the server would use the CPU; leave it out to use all")
    for item in listed:
        if item.startswith("-"):
            raise refused("hides every GPU from %r on: the server would use the rest, or the CPU" % item)
        if not re.match(r"[0-9]+\Z|GPU-[0-9a-fA-F-]+\Z", item):
            raise refused("holds %r, which is neither an index nor a GPU's UUID; CUDA stops reading there" % item)
    if len(set(listed)) < len(listed):
        raise refused("names a GPU twice: CUDA then shows none, and the server would use the CPU")
    if len({item.startswith("GPU-") for item in listed}) > 1:
        raise refused("mixes indexes and UUIDs: CUDA stops reading at the first of the other kind")
    return listed
