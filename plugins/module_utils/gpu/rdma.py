# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""RDMA devices and their ports, from sysfs. Reads files only."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Union

from .procfs import listing, place, read_text
from .select import pci_bus_id

_NODE_TYPES = {"1": "ca", "2": "switch", "3": "router", "4": "rnic", "5": "usnic"}


def read(root: str = "/") -> List[Dict[str, Any]]:
    """Every device under /sys/class/infiniband; none on a host without RDMA, whether the folder exists or not."""
    folder = os.path.join(root, "sys/class/infiniband")
    return [_device(os.path.join(folder, name), name) for name in listing(folder)]


def _device(folder: str, name: str) -> Dict[str, Any]:
    hardware = os.path.join(folder, "device")
    bus_id = os.path.basename(os.path.realpath(hardware)) if os.path.exists(hardware) else ""
    numbers = sorted(int(number) for number in listing(folder, "ports"))
    ports = [_port(os.path.join(folder, "ports", str(number)), number) for number in numbers]
    netdevs = set(listing(hardware, "net"))
    netdevs.update(port["netdev"] for port in ports if port["netdev"])
    found = {
        "name": name,
        "node_type": _NODE_TYPES.get((read_text(folder, "node_type") or "").partition(":")[0]),
        "node_guid": read_text(folder, "node_guid"),
        "hca_type": read_text(folder, "hca_type") or None,
        "board_id": read_text(folder, "board_id") or None,
        "firmware_version": read_text(folder, "fw_ver") or None,
        # software devices (rxe, siw) belong to no PCI device
        "pci_bus_id": pci_bus_id(bus_id) if bus_id.count(":") == 2 else None,
        "netdevs": sorted(netdevs),
        "ports": ports,
    }
    found.update(place(hardware))
    return found


def _port(folder: str, number: int) -> Dict[str, Any]:
    layer = read_text(folder, "link_layer")
    lid = read_text(folder, "lid")
    return {
        "port": number,
        "state": _word(read_text(folder, "state")),
        "phys_state": _word(read_text(folder, "phys_state")),
        "link_layer": layer,
        "rate_gbps": _rate(read_text(folder, "rate")),
        "lid": int(lid, 16) if lid and layer == "InfiniBand" else None,
        "netdev": read_text(folder, "gid_attrs/ndevs/0") or None,
        "roce_v2_gid_index": _roce_v2_gid_index(folder) if layer == "Ethernet" else None,
    }


def _word(text: Optional[str]) -> Optional[str]:
    """``ACTIVE`` out of ``4: ACTIVE``."""
    return text.partition(":")[2].strip() or None if text else None


def _rate(text: Optional[str]) -> Union[int, float, None]:
    """400 out of ``400 Gb/sec (4X NDR)``."""
    try:
        rate = float(text.split()[0]) if text else None
    except ValueError:
        return None
    return int(rate) if rate is not None and rate == int(rate) else rate


def _roce_v2_gid_index(folder: str) -> Optional[int]:
    """The first GID of RoCE v2 and of an IPv4 address, which is what NCCL_IB_GID_INDEX wants; None without one."""
    indexes = sorted(int(name) for name in listing(folder, "gids") if name.isdigit())
    for index in indexes:
        # unused entries refuse to be read
        if read_text(folder, "gid_attrs/types", str(index)) != "RoCE v2":
            continue
        gid = read_text(folder, "gids", str(index)) or ""
        if gid.startswith("0000:0000:0000:0000:0000:ffff:"):
            return index
    return None
