# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network and the RDMA ports that several hosts share, and the variables that make NCCL and Gloo use them. Pure.

Only what they might not choose themselves is set, each variable with its reason.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..toolbox.errors import Refused

Nodes = Mapping[str, Mapping[str, Any]]
Reach = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Host, peer, the peer's address, and what came of trying it: ``data`` and ``rendezvous``, each ``ok`` and ``why``."""

VIRTUAL = ("docker", "lo", "virbr")
"""Beginnings of the names of interfaces that are the last choice, as with NCCL."""


# --- addresses


def candidates(node: Mapping[str, Any], network: Optional[str] = None) -> List[Dict[str, Any]]:
    """The addresses of a host at which peers may reach it: of interfaces that are up, no loopback, not link-local."""
    wanted = ipaddress.ip_network(network, strict=False) if network else None
    found = []
    for interface in node["interfaces"]:
        for one in interface["addresses"] if interface["up"] and not interface["loopback"] else ():
            address = ipaddress.ip_address(one["address"])
            if address.is_link_local or address.is_loopback or (wanted and address not in wanted):
                continue
            subnet = ipaddress.ip_network("%s/%d" % (one["address"], one["prefix"]), strict=False)
            found.append(
                {
                    "address": one["address"],
                    "interface": interface["name"],
                    "subnet": str(subnet),
                    "speed": interface.get("speed_mbps") or 0,
                    "virtual": interface["name"].startswith(VIRTUAL),
                    "version": address.version,
                }
            )
    return found


def choose(nodes: Nodes, reach: Optional[Reach] = None, network: Optional[str] = None) -> Dict[str, Dict[str, Any]]:
    """For each host the address at which all others reach it, and its interface.

    One subnet for all is preferred, then the fastest, then the order of the first host; IPv4 before IPv6. Hosts of
    different subnets are taken where the addresses are proven to be reached.

    :raises Refused: when a host has no such address.
    """
    found_on = Counter(one["address"] for node in nodes.values() for one in candidates(node))
    usable = {
        host: [
            one
            for one in candidates(node, network)
            # the bridges of containers have the same address on every host
            if found_on[one["address"]] == 1 and _reached(host, one["address"], nodes, reach)
        ]
        for host, node in nodes.items()
    }
    lost = [host for host, found in usable.items() if not found]
    if lost:
        raise Refused("; ".join(_tried(host, nodes, reach, network) for host in lost))
    first = next(iter(usable.values()))
    shared = [
        one["subnet"]
        for one in first
        if all(one["subnet"] in [other["subnet"] for other in found] for found in usable.values())
    ]
    chosen = {}
    if shared:
        best = max(dict.fromkeys(shared), key=lambda subnet: _worth(subnet, usable))
        for host, found in usable.items():
            chosen[host] = next(one for one in found if one["subnet"] == best)
    elif reach is None:
        raise Refused(
            "the hosts share no subnet, and no host has tried to reach another: %s"
            % "; ".join("%s has %s" % (host, _names(found)) for host, found in usable.items())
        )
    else:
        for host, found in usable.items():
            chosen[host] = max(found, key=lambda one: (not one["virtual"], one["version"] == 4, one["speed"]))
    return chosen


def _worth(subnet: str, usable: Mapping[str, Sequence[Mapping[str, Any]]]) -> Tuple[bool, bool, int]:
    ends = [next(one for one in found if one["subnet"] == subnet) for found in usable.values()]
    return (not any(one["virtual"] for one in ends), ends[0]["version"] == 4, min(one["speed"] for one in ends))


def _reached(host: str, address: str, nodes: Nodes, reach: Optional[Reach]) -> bool:
    if reach is None:
        return True
    tries = [reach.get(peer, {}).get(host, {}).get(address) for peer in nodes if peer != host]
    return all(one is not None and one["data"]["ok"] for one in tries)


def _tried(host: str, nodes: Nodes, reach: Optional[Reach], network: Optional[str]) -> str:
    found = candidates(nodes[host], network)
    if not found:
        return "%s has no address%s on an interface that is up (it has: %s)" % (
            host,
            " in %s" % network if network else "",
            _names(candidates(nodes[host])) or "none but loopback",
        )
    said = []
    for one in found:
        for peer in nodes:
            if peer != host and one["address"] in [other["address"] for other in candidates(nodes[peer])]:
                said.append("%s (%s) is an address of %s, too" % (one["address"], one["interface"], peer))
                continue
            tried = (reach or {}).get(peer, {}).get(host, {}).get(one["address"])
            if peer != host and not (tried and tried["data"]["ok"]):
                why = tried["data"]["why"] if tried else "not tried"
                said.append("%s does not reach %s (%s): %s" % (peer, one["address"], one["interface"], why))
    return "%s is not reached by all: %s" % (host, "; ".join(said))


def _names(found: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join("%s %s" % (one["interface"], one["address"]) for one in found)


# --- RDMA


def rdma_ports(node: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """The RDMA ports of a host that NCCL would use: of adapters, active, with a link."""
    return [
        {
            "device": device["name"],
            "port": port["port"],
            "layer": port["link_layer"],
            "rate_gbps": port["rate_gbps"] or 0,
            "gid_index": port.get("roce_v2_gid_index"),
            "near_gpus": _near(device.get("gpu_distances") or []),
        }
        for device in node.get("rdma") or []
        for port in device["ports"]
        if device["node_type"] in ("ca", "rnic") and port["state"] == "ACTIVE" and port["phys_state"] == "LinkUp"
    ]


def _near(distances: Sequence[Optional[str]]) -> List[int]:
    """Indexes of the GPUs that reach the device without leaving their PCIe switch or, failing that, their NUMA node."""
    for words in (("PIX", "PXB"), ("PHB", "NODE")):
        near = [index for index, word in enumerate(distances) if word in words]
        if near:
            return near
    return []


def choose_rdma(nodes: Nodes) -> Dict[str, List[Dict[str, Any]]]:
    """For each host the RDMA ports to use: of one link layer on all hosts, of each host the fastest rate alone.

    No ports on any host when one host has none of that layer: then all must talk over sockets.
    """
    found = {host: rdma_ports(node) for host, node in nodes.items()}
    totals = {}
    for layer in ("InfiniBand", "Ethernet"):
        per_host = [sum(port["rate_gbps"] for port in ports if port["layer"] == layer) for ports in found.values()]
        if per_host and all(per_host):
            totals[layer] = min(per_host)
    if not totals:
        return {host: [] for host in nodes}
    layer = max(totals, key=lambda name: totals[name])
    chosen = {}
    for host, ports in found.items():
        of_layer = [port for port in ports if port["layer"] == layer]
        fastest = max(port["rate_gbps"] for port in of_layer)
        chosen[host] = [port for port in of_layer if port["rate_gbps"] == fastest]
    return chosen


# --- variables

Variables = Dict[str, Tuple[str, str]]
"""Name to value and reason."""


def environment(
    node: Mapping[str, Any], address: Mapping[str, Any], chosen: Sequence[Mapping[str, Any]], nccl: Optional[str]
) -> Variables:
    """The variables that NCCL and Gloo need on one of several hosts.

    :param node: the host's facts.
    :param address: its chosen address, of :func:`choose`.
    :param chosen: its chosen RDMA ports, of :func:`choose_rdma`.
    :param nccl: version of NCCL, where known.
    """
    needed: Variables = {}
    interface = address["interface"]
    if address["version"] == 6:
        needed["NCCL_SOCKET_FAMILY"] = ("AF_INET6", "the hosts reach each other over IPv6, but NCCL would choose IPv4")
    # Always: containers that come and go bring interfaces that NCCL would use, and must not change the job.
    reason = "%s (%s) is where the other hosts reach this one; NCCL would use each interface, a container's too"
    needed["NCCL_SOCKET_IFNAME"] = ("=" + interface, reason % (interface, address["address"]))
    named = node["own_names"].get(node["hostname"]) or []
    if named[:1] != [address["address"]]:
        where = "resolves to %s here" % named[0] if named else "does not resolve here"
        needed["GLOO_SOCKET_IFNAME"] = (
            interface,
            "Gloo looks up the host's own name: %s %s" % (node["hostname"], where),
        )
    if node.get("rdma"):
        needed.update(_rdma_environment(rdma_ports(node), chosen, nccl))
    return needed


def _rdma_environment(
    active: Sequence[Mapping[str, Any]], chosen: Sequence[Mapping[str, Any]], nccl: Optional[str]
) -> Variables:
    if not chosen:
        reason = "not every host has an active RDMA port of one kind" if active else "there is no active RDMA port here"
        return {"NCCL_IB_DISABLE": ("1", reason + "; all hosts must talk over sockets")}
    needed: Variables = {}
    left_out = [_port(port) for port in active if port not in chosen]
    if left_out:
        reason = "%s of %g Gb/s; left out: %s" % (
            chosen[0]["layer"],
            chosen[0]["rate_gbps"],
            ", ".join("%s (%s, %g Gb/s)" % (_port(port), port["layer"], port["rate_gbps"]) for port in active
                      if port not in chosen),
        )  # fmt: skip
        needed["NCCL_IB_HCA"] = ("=" + ",".join(_port(port) for port in chosen), reason)
    indexes = {port["gid_index"] for port in chosen}
    if (
        chosen[0]["layer"] == "Ethernet"
        and nccl
        and _older(nccl, (2, 21))
        and len(indexes) == 1
        and None not in indexes
    ):
        needed["NCCL_IB_GID_INDEX"] = (
            str(indexes.pop()),
            "the GID of RoCE v2 and of an IPv4 address; NCCL %s, older than 2.21, does not find it itself" % nccl,
        )
    return needed


def _port(port: Mapping[str, Any]) -> str:
    return "%s:%d" % (port["device"], port["port"])


def _older(version: str, than: Tuple[int, ...]) -> bool:
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    return numbers < than
