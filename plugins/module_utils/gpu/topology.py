# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How near the GPUs and RDMA devices of a host are to each other, in nvidia-smi's words. Pure.

``X`` itself, ``NV18`` so many NVLinks, ``PIX`` at most one PCIe bridge, ``PXB`` several bridges, ``PHB`` a host bridge,
``NODE`` host bridges of one NUMA node, ``SYS`` between NUMA nodes, None when unknown.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

#: NVML's nvmlGpuTopologyLevel_t; None where it is unknown, 0 is two GPUs on one board, which nvidia-smi calls PIX too.
LEVELS = {None: None, 0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}

#: NVML's nvmlGpuP2PStatus_t in the words of nvidia-smi topo -p2p.
P2P_STATUS = {None: None, 0: "OK", 1: "CNS", 2: "GNS", 3: "TNS", 4: "DR", 5: "NS", 6: "U"}

Matrix = List[List[Optional[str]]]


def from_nvml(
    devices: Sequence[Dict[str, Any]], pairs: Dict[Any, Dict[str, Any]], link_ends: Dict[int, Dict[str, int]]
) -> Matrix:
    """The matrix from NVML's data about pairs of GPUs.

    :param devices: devices in index order.
    :param pairs: by (lower index, higher index): ``level`` (nvmlGpuTopologyLevel_t) and ``nvlink`` (status of peer to
        peer over NVLink, 0 is good), each None when unknown.
    :param link_ends: per index, how many of its active links end at which PCI bus id.
    """
    bus_ids = {device["pci_bus_id"] for device in devices}

    def links(one: Dict[str, Any], other: Dict[str, Any], pair: Dict[str, Any]) -> int:
        ends = link_ends.get(one["index"], {})
        if ends.get(other["pci_bus_id"]):
            return ends[other["pci_bus_id"]]
        # all links end at switches, or a hypervisor hides where: then every link of both sides serves the pair
        if pair.get("nvlink") == 0 and not bus_ids.intersection(ends):
            return min(one["nvlink"]["active_count"] or 0, other["nvlink"]["active_count"] or 0)
        return 0

    def word(one: Dict[str, Any], other: Dict[str, Any]) -> Optional[str]:
        if one is other:
            return "X"
        low, high = sorted((one["index"], other["index"]))
        pair = pairs.get((low, high), {})
        count = links(one, other, pair)
        return "NV%d" % count if count else LEVELS.get(pair.get("level"))

    return [[word(one, other) for other in devices] for one in devices]


def peer_to_peer(devices: Sequence[Dict[str, Any]], pairs: Dict[Any, Dict[str, Any]]) -> Matrix:
    """Whether GPUs may read each other's memory, in the words of ``nvidia-smi topo -p2p r``."""

    def word(one: int, other: int) -> Optional[str]:
        if one == other:
            return "X"
        return P2P_STATUS.get(pairs.get((min(one, other), max(one, other)), {}).get("read"))

    indexes = [device["index"] for device in devices]
    return [[word(one, other) for other in indexes] for one in indexes]


def from_sysfs(places: Sequence[Optional[Dict[str, Any]]]) -> Matrix:
    """The matrix from places in sysfs; NVLinks do not show there."""
    return [
        ["X" if row == column else distance(one, other) for column, other in enumerate(places)]
        for row, one in enumerate(places)
    ]


def distance(one: Optional[Dict[str, Any]], other: Optional[Dict[str, Any]]) -> Optional[str]:
    """The word for two PCI devices.

    :param one: and ``other``: ``path`` (components below /sys/devices, from the root complex to the device itself) and
        ``numa_node`` (int or None); None for a device without a place.
    """
    if not one or not other or not one["path"] or not other["path"]:
        return None
    shared = 0
    for left, right in zip(one["path"], other["path"]):
        if left != right:
            break
        shared += 1
    if shared == 0:
        return "NODE" if one["numa_node"] == other["numa_node"] else "SYS"
    if shared == 1:
        return "PHB"
    # two functions of one device, or two ports of one switch: each side has at most its own port below what they share
    return "PIX" if max(len(one["path"]), len(other["path"])) - shared <= 2 else "PXB"
