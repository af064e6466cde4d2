# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape of one GPU in the facts, the same whatever source it is read from. Pure.

A leaf is a value, or None with the reason under its dotted path in ``unavailable``: ``"unsupported"`` when the card or
the driver has no such datum, else the error's text.
"""

from __future__ import annotations

from typing import Any, Dict

from ..toolbox.text import one_line

UNSUPPORTED = "unsupported"
SLOW = "only read by the doctor, as it takes long"

# A device's branches ("" is the trunk) and the leaves on each.
_SHAPE = (
    ("", "index uuid name pci_bus_id pci_device_id minor device_node serial board_part_number vbios_version"),
    ("", "gsp_firmware_version brand architecture compute_capability module_id virtualization_mode"),
    ("memory", "total_bytes used_bytes free_bytes reserved_bytes"),
    ("bar1", "total_bytes used_bytes free_bytes"),
    ("ecc", "enabled pending sram_threshold_exceeded"),
    ("ecc.volatile", "corrected uncorrected"),
    ("ecc.aggregate", "corrected uncorrected"),
    ("remapped_rows", "corrected uncorrected pending failure"),
    ("remapped_rows.spare_banks", "full high partial low none"),
    ("retired_pages", "single_bit double_bit pending"),
    ("repair", "channel_pending tpc_pending"),
    ("", "recovery_action unrepairable_memory inforom_corrupt"),
    ("mig", "enabled pending max_instances"),
    ("power", "usage_watts limit_watts enforced_limit_watts default_limit_watts min_limit_watts max_limit_watts"),
    ("power", "energy_joules"),
    ("clocks", "graphics_mhz sm_mhz memory_mhz video_mhz"),
    ("clocks", "max_graphics_mhz max_sm_mhz max_memory_mhz max_video_mhz"),
    ("", "clocks_event_reasons"),
    ("utilization", "gpu_percent memory_percent"),
    ("temperature", "gpu_celsius memory_celsius margin_celsius"),
    ("temperature", "shutdown_celsius slowdown_celsius memory_max_celsius gpu_max_celsius"),
    ("", "fan_speed_percent persistence_mode compute_mode performance_state display_active"),
    ("pcie", "generation width max_generation max_width replay_count uncorrectable_errors acs_redirects"),
    ("nvlink", "link_count active_count recovery_errors"),
    ("slowdown", "thermal_seconds power_brake_seconds"),
    ("fabric", "state status clique_id cluster_uuid problems"),
    ("", "numa_node cpu_affinity processes"),
)

#: Every leaf of a device as a dotted path, in the order in which it is shown.
LEAVES = tuple("%s.%s" % (branch, leaf) if branch else leaf for branch, leaves in _SHAPE for leaf in leaves.split())

#: Bits of the clocks' event reasons, in nvidia-smi's words.
EVENT_REASONS = (
    (0x1, "gpu_idle"),
    (0x2, "applications_clocks_setting"),
    (0x4, "sw_power_cap"),
    (0x8, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal_slowdown"),
    (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake_slowdown"),
    (0x100, "display_clocks_setting"),
)

MIB = 1024 * 1024


def blank(index: int, reason: str) -> Dict[str, Any]:
    """A device of which nothing but its index is known, for one and the same reason."""
    device = {}  # type: Dict[str, Any]
    for path in LEAVES:
        branch, _sep, leaf = path.rpartition(".")
        _branch(device, branch)[leaf] = None
    device["unavailable"] = dict.fromkeys(LEAVES, reason)
    put(device, "index", index)
    return device


def put(device: Dict[str, Any], path: str, value: Any) -> None:
    """Set a leaf that is known."""
    branch, _sep, leaf = path.rpartition(".")
    _branch(device, branch)[leaf] = value
    device["unavailable"].pop(path, None)


def refuse(device: Dict[str, Any], path: str, reason: str) -> None:
    """Say why a leaf is None."""
    device["unavailable"][path] = reason


def known(device: Dict[str, Any], path: str) -> bool:
    """Whether a leaf has a value."""
    return path not in device["unavailable"]


def _branch(device: Dict[str, Any], path: str) -> Dict[str, Any]:
    for name in path.split(".") if path else ():
        device = device.setdefault(name, {})
    return device


def event_reasons(mask: int) -> list:
    """The names of the bits set in a mask of event reasons; bits without a name are left out."""
    return [name for bit, name in EVENT_REASONS if mask & bit]


def cpu_list(words: Any) -> str:
    """A CPU mask of 64-bit words, lowest first, as ``0-31,64``."""
    spans = []  # type: list
    for number in (64 * place + bit for place, word in enumerate(words) for bit in range(64) if word >> bit & 1):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join("%d" % low if low == high else "%d-%d" % (low, high) for low, high in spans)


def process_name(text: str) -> str:
    """A process' name without its options, which may carry secrets; it is what the process calls itself."""
    return one_line(text.split(" -")[0])
