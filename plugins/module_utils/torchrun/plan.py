# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the facts of all hosts of a job to its ranks, rendezvous, interfaces and variables. Pure."""

from __future__ import annotations

import ipaddress
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ..toolbox.errors import Refused
from . import diagnostics, fabric

RENDEZVOUS = ("static", "c10d", "standalone")

_OWN_STORE = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": ("1", "after a failure hosts would read addresses of the previous round")
}
"""Seen with torch 2.13.0: after one process was killed, hosts whose agents had counted restarts differently went on to
read each other's old addresses (connection refused) until no restart was left."""

PORT = 29500


def make(
    facts: Mapping[str, Optional[Mapping[str, Any]]],
    reach: Optional[fabric.Reach] = None,
    *,
    job: str = "",
    nnodes: Optional[int] = None,
    min_nodes: Optional[int] = None,
    nproc_per_node: Optional[int] = None,
    gpus: Optional[Sequence[int]] = None,
    max_restarts: int = 0,
    rendezvous: Optional[str] = None,
    master: Optional[str] = None,
    master_addr: Optional[str] = None,
    master_port: int = PORT,
    network: Optional[str] = None,
) -> Dict[str, Any]:
    """Plan one job.

    :param facts: the hosts in the order of their ranks, each with its facts or None where it has none.
    :param reach: what each host has found when it tried the others; None when none has tried.
    :param job: name of the job, whose own processes may hold the rendezvous port.
    :param nnodes: the expected number of hosts; not checked if left out.
    :param min_nodes: with how many hosts an elastic job may run; None for one that needs all.
    :param nproc_per_node: processes a host; None for one on each GPU, or one where there is no GPU.
    :param gpus: indexes of the GPUs to use on each host, as nvidia-smi counts them; [] for none; None for all.
    :param rendezvous: one of RENDEZVOUS; None to choose.
    :param master: the host of the rendezvous, that is rank 0; None for the first.
    :param master_addr: its address; chosen if left out.
    :param network: the subnet to use; chosen if left out.
    :returns: the plan; ``findings`` with a level ``error`` say why it would not run.
    :raises Refused: when there is nothing to plan.
    """
    hosts = list(facts)
    if not hosts:
        raise Refused("there is no host to plan for: expected the hosts of a group")
    if master is not None:
        if master not in facts:
            raise Refused("master: %s is none of the hosts %s" % (master, ", ".join(hosts)))
        hosts = [master] + [host for host in hosts if host != master]
    needed = len(hosts) if min_nodes is None else min_nodes
    if not 1 <= needed <= len(hosts):
        raise Refused("min_nodes: %d of %d hosts: expected 1 to %d" % (needed, len(hosts), len(hosts)))
    nodes = {host: facts[host] or {} for host in hosts if facts[host]}
    unit = "torchrun@%s.service" % job
    findings = diagnostics.size(hosts, nnodes, [host for host in hosts if host not in nodes], needed)
    kind = _rendezvous(rendezvous, len(hosts), needed, max_restarts)
    plan = {
        "nnodes": len(hosts),
        "min_nodes": needed,
        "rendezvous": kind,
        "master": hosts[0],
        "master_addr": "127.0.0.1" if len(hosts) == 1 else master_addr,
        "master_port": master_port,
        "max_restarts": max_restarts,
    }  # type: Dict[str, Any]
    chosen = {}  # type: Dict[str, Dict[str, Any]]
    if len(hosts) > 1 and hosts[0] in nodes:
        chosen = _choose(nodes, reach, network, needed, findings)
    if chosen:
        plan["master_addr"] = master_addr or chosen[hosts[0]]["address"]
        findings += _network_findings(nodes, chosen, reach, plan)
    plan["nodes"] = _nodes(nodes, chosen, nproc_per_node, gpus, kind == "c10d", unit, findings)
    _give_ranks(plan)
    findings += diagnostics.versions(nodes) + diagnostics.code(nodes)
    if hosts[0] in nodes and kind != "standalone":
        findings += diagnostics.ports(hosts[0], nodes[hosts[0]], master_port, unit)
    plan["findings"] = findings
    plan["errors"] = [one["text"] for one in findings if one["level"] == "error"]
    plan["text"] = text(plan)
    plan["matrix"] = matrix(hosts, reach, plan) if reach else []
    return plan


def _choose(
    nodes: Dict[str, Mapping[str, Any]],
    reach: Optional[fabric.Reach],
    network: Optional[str],
    needed: int,
    findings: List[diagnostics.Finding],
) -> Dict[str, Dict[str, Any]]:
    """The addresses of the hosts; an elastic job does without hosts that do not reach the master, nor it them."""
    try:
        return fabric.choose(nodes, reach, network)
    except Refused as error:
        master = next(iter(nodes))
        silent = [host for host in nodes if host != master and not _reaches(host, master, reach)]
        if silent and len(nodes) - len(silent) >= needed:
            for host in silent:
                del nodes[host]
            text = "%s and %s cannot reach each other; the job runs without: %s" % (master, ", ".join(silent), error)
            findings.append(diagnostics.warning("no_network", None, text))
            return _choose(nodes, reach, network, needed, findings)
        findings.append(diagnostics.error("no_network", None, "no network joins the hosts: %s" % error))
        return {}


def _reaches(host: str, master: str, reach: Optional[fabric.Reach]) -> bool:
    tried = ((reach or {}).get(master, {}).get(host) or {}).values()
    return any(one["data"]["ok"] for one in tried)


def _rendezvous(wanted: Optional[str], nnodes: int, needed: int, max_restarts: int) -> str:
    """Static keeps the order of the inventory, but cannot gather the hosts again after a failure; c10d can."""
    elastic = needed < nnodes
    if wanted not in (None, *RENDEZVOUS):
        raise Refused("rendezvous: %s: expected one of %s" % (wanted, ", ".join(RENDEZVOUS)))
    if wanted == "standalone" and nnodes > 1:
        raise Refused("rendezvous: standalone is for one host, but there are %d: use static or c10d" % nnodes)
    if wanted == "static" and elastic:
        raise Refused("rendezvous: static needs all %d hosts, but min_nodes is %d: use c10d" % (nnodes, needed))
    if wanted == "static" and max_restarts and nnodes > 1:
        raise Refused(
            "rendezvous: static does not reconnect %d hosts after a failure, but max_restarts is %d: use c10d"
            % (nnodes, max_restarts)
        )
    if wanted:
        return wanted
    if nnodes == 1:
        return "standalone"
    return "c10d" if elastic or max_restarts else "static"


def _network_findings(
    nodes: fabric.Nodes, chosen: Mapping[str, Dict[str, Any]], reach: Optional[fabric.Reach], plan: Mapping[str, Any]
) -> List[diagnostics.Finding]:
    found = []
    master, address, port = plan["master"], plan["master_addr"], plan["master_port"]
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = address == "localhost"
    if loopback:
        text = "master_addr is %s, where each host finds only itself: leave it out, or give an address of %s"
        found.append(diagnostics.error("loopback_master", master, text % (address, master)))
    found += diagnostics.names(nodes)
    found += diagnostics.mtu(nodes, chosen)
    if reach is None:
        text = "no host has tried to reach another: run torchrun_facts with peers to find out before the job does"
        found.append(diagnostics.warning("not_tried", None, text))
    else:
        found += diagnostics.reachability(nodes, chosen, reach, master, port)
        found += diagnostics.clocks(nodes, reach, plan["rendezvous"] == "c10d")
    return found


def _nodes(
    nodes: fabric.Nodes,
    chosen: Mapping[str, Dict[str, Any]],
    wanted: Optional[int],
    only: Optional[Sequence[int]],
    c10d: bool,
    unit: str,
    findings: List[diagnostics.Finding],
) -> Dict[str, Dict[str, Any]]:
    """What each host needs, in the order given; its ranks come later."""
    ports = fabric.choose_rdma(nodes) if chosen else {}
    found = {}
    for host, node in nodes.items():
        gpus, used = node["gpus"]["count"], node["gpus"]["devices"]
        variables = {}  # type: fabric.Variables
        if node["torch"] and node["torch"]["conda"]:
            variables["CONDA_PREFIX"] = (
                node["venv"],
                "PyTorch's compiler finds its libraries by it, as after activation",
            )
        if node["torch"] and node["torch"]["compat"]:
            variables["LD_LIBRARY_PATH"] = (node["torch"]["compat"], "the environment needs them next to this driver")
        if only is not None:
            findings += diagnostics.gpus(host, only, gpus)
            gpus, used = len(only), [device for device in used if device["index"] in only]
            variables["CUDA_DEVICE_ORDER"] = ("PCI_BUS_ID", "GPUs are counted as nvidia-smi counts them")
            variables["CUDA_VISIBLE_DEVICES"] = (",".join(map(str, only)), "the declared GPUs" if only else "no GPU")
        nproc = wanted or gpus or 1
        findings += diagnostics.processes(host, nproc, gpus) + diagnostics.in_use(host, used, unit)
        if host in chosen:
            version = node["torch"]["nccl"] if node["torch"] else None
            variables.update(fabric.environment(node, chosen[host], ports[host], version))
            if c10d:
                variables.update(_OWN_STORE)
        found[host] = {
            "nproc_per_node": nproc,
            "script": (node["code"] or {}).get("digest"),
            "gpus": [{key: device[key] for key in ("index", "uuid")} for device in used],
            "address": chosen[host]["address"] if host in chosen else None,
            "interface": chosen[host]["interface"] if host in chosen else None,
            "rdma": ports.get(host, []),
            "environment": {name: value for name, (value, _why) in variables.items()},
            "reasons": {name: why for name, (_value, why) in variables.items()},
        }
    return found


def _give_ranks(plan: Dict[str, Any]) -> None:
    """The rank of each node and of each process, as torchrun will count them.

    Static: in the order given. c10d sorts the nodes by the text of the addresses under which they announce themselves.
    """
    names = list(plan["nodes"])
    if plan["rendezvous"] == "c10d":
        names.sort(key=lambda host: plan["nodes"][host]["address"] or "")
    ranks = []  # type: List[Dict[str, Any]]
    for node_rank, host in enumerate(names):
        node = plan["nodes"][host]
        node["node_rank"] = node_rank
        node["first_rank"] = len(ranks)
        for local_rank in range(node["nproc_per_node"]):
            ranks.append({"rank": len(ranks), "host": host, "node_rank": node_rank, "local_rank": local_rank})
    plan["ranks"] = ranks
    plan["world_size"] = len(ranks)


# --- for a person


def text(plan: Mapping[str, Any]) -> str:
    """The plan on one page."""
    nodes = plan["min_nodes"], plan["nnodes"]
    lines = [
        "%s hosts, %d processes, rendezvous %s%s"
        % (
            "%d" % nodes[1] if nodes[0] == nodes[1] else "%d to %d" % nodes,
            plan["world_size"],
            plan["rendezvous"],
            "" if plan["rendezvous"] == "standalone" else " at %s:%s" % (plan["master_addr"], plan["master_port"]),
        )
    ]
    rows = [("HOST", "NODE", "RANKS", "ADDRESS", "INTERFACE", "RDMA")]
    for host, node in sorted(plan["nodes"].items(), key=lambda item: item[1]["node_rank"]):
        last = node["first_rank"] + node["nproc_per_node"] - 1
        rows.append(
            (
                host,
                str(node["node_rank"]),
                "%d-%d" % (node["first_rank"], last) if last > node["first_rank"] else str(last),
                node["address"] or "-",
                node["interface"] or "-",
                ",".join("%s:%d" % (port["device"], port["port"]) for port in node["rdma"]) or "-",
            )
        )
    lines += table(rows)
    for host, node in plan["nodes"].items():
        for name, value in node["environment"].items():
            lines.append("%s: %s=%s  # %s" % (host, name, value, node["reasons"][name]))
    lines += [
        "%s%s: %s" % (one["level"], " (%s)" % one["host"] if one["host"] else "", one["text"])
        for one in plan["findings"]
    ]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Sequence[str]]) -> List[str]:
    """Rows of cells in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def matrix(hosts: Sequence[str], reach: fabric.Reach, plan: Mapping[str, Any]) -> List[str]:
    """Who reaches whom, from row to column, at the planned addresses: the rendezvous port, and a free one for data."""

    def cell(one: str, other: str, kind: str) -> str:
        if one == other:
            return "-"
        address = plan["nodes"].get(other, {}).get("address")
        tried = reach.get(one, {}).get(other, {})
        answer = tried.get(address) or next(iter(tried.values()), None)
        return "?" if not answer else "ok" if answer[kind]["ok"] else "no"

    lines = []
    for kind, title in (("rendezvous", "port %d" % plan["master_port"]), ("data", "data port")):
        rows = [(title, *hosts), *((one, *(cell(one, other, kind) for other in hosts)) for one in hosts)]
        lines += table(rows)
    return lines
