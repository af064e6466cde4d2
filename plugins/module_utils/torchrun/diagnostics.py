# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The classic mistakes of jobs over several hosts, found in the hosts' facts before anything starts. Pure.

A finding is ``level`` (``error``: the job would not run; ``warning``), ``code``, ``host`` and ``text``, which says what
was found, what was expected and what to do.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ..placement.memory import holders

Finding = Dict[str, Any]

SKEW = 1.0
"""Seconds between two clocks from which on the times in logs mislead."""
LEASE = 15.0
"""Seconds after which c10d takes a node for dead, by the clock of the others (keep_alive_interval x max_attempt)."""


def finding(level: str, code: str, host: Optional[str], text: str) -> Finding:
    return {"level": level, "code": code, "host": host, "text": text}


def error(code: str, host: Optional[str], text: str) -> Finding:
    return finding("error", code, host, text)


def warning(code: str, host: Optional[str], text: str) -> Finding:
    return finding("warning", code, host, text)


def size(hosts: Sequence[str], nnodes: Optional[int], without_facts: Sequence[str], needed: int) -> List[Finding]:
    """Whether the group is the job's size, and all of it has answered.

    ``needed`` hosts are enough for an elastic job, if the first of all, the master, is among them.
    """
    found = []
    if nnodes is not None and nnodes != len(hosts):
        text = "the group has %d hosts (%s), nnodes is %d: correct one of the two" % (
            len(hosts),
            ", ".join(hosts),
            nnodes,
        )
        found.append(error("group_size", None, text))
    enough = len(hosts) - len(without_facts) >= needed and hosts[0] not in without_facts
    level = "warning" if enough else "error"
    for host in without_facts:
        text = (
            "%s has no facts from this run: it was not reached, or torchrun_facts has not run on it; the job needs %d "
            "of %d hosts, so repair it or remove it from the group" % (host, needed, len(hosts))
        )
        found.append(finding(level, "no_facts", host, text))
    return found


def names(nodes: Mapping[str, Mapping[str, Any]]) -> List[Finding]:
    """Hosts whose own name leads to loopback: whatever advertises itself by name is then reached by nobody else."""
    found = []
    for host, node in nodes.items():
        own = node["own_names"].get(node["hostname"]) or []
        if own and ipaddress.ip_address(own[0]).is_loopback:
            text = (
                "the name %s resolves to %s on the host itself (see /etc/hosts); the plan gives addresses instead of"
                " names, but a script that uses the name reaches no other host" % (node["hostname"], own[0])
            )
            found.append(warning("loopback_name", host, text))
    return found


def versions(nodes: Mapping[str, Mapping[str, Any]]) -> List[Finding]:
    """PyTorch must be there, and it and NCCL the same everywhere."""
    found = []
    for host, node in nodes.items():
        if node["torch"] is None and node["venv"]:
            text = "there is no PyTorch in %s: %s" % (node["venv"], node.get("torch_missing") or "install it first")
            found.append(error("no_torch", host, text))
    for code, key, what in (("torch_differs", "version", "PyTorch"), ("nccl_differs", "nccl", "NCCL")):
        have: Dict[str, List[str]] = {}
        for host, node in nodes.items():
            if node["torch"] and node["torch"][key]:
                have.setdefault(node["torch"][key], []).append(host)
        if len(have) > 1:
            text = "%s differs among the hosts: %s; processes of different versions hang or fail" % (what, _who(have))
            found.append(error(code, _odd(have), text))
    return found


def _who(have: Mapping[str, Sequence[str]]) -> str:
    """Who has what: ``2.13.0 on gpu1, gpu2; 2.12.0 on gpu3``."""
    return "; ".join("%s on %s" % (what, ", ".join(hosts)) for what, hosts in sorted(have.items()))


def _odd(have: Mapping[str, Sequence[str]]) -> Optional[str]:
    """The only host that has something else; None where there are several."""
    few = min(have.values(), key=len)
    return few[0] if len(few) == 1 else None


def code(nodes: Mapping[str, Mapping[str, Any]]) -> List[Finding]:
    """The script must be the same everywhere; of the Python files next to it the first that differs is named."""
    told = {host: node["code"] for host, node in nodes.items() if node["code"]}
    have: Dict[str, List[str]] = {}
    for host, one in told.items():
        if one["digest"]:
            have.setdefault(one["digest"], []).append(host)
    if len(have) > 1:
        path = next(one["path"] for one in told.values() if one["digest"])
        text = "the script %s differs among the hosts: SHA-256 %s; bring the same one to all of them"
        return [error("script_differs", _odd(have), text % (path, _who(have)))]
    names = sorted({name for one in told.values() for name in one["files"]})
    differing = [name for name in names if len({one["files"].get(name) for one in told.values()}) > 1]
    if not differing:
        return []
    have = {}
    for host, one in told.items():
        have.setdefault(one["files"].get(differing[0]) or "none", []).append(host)
    text = "%s in %s differs among the hosts: SHA-256 %s%s; bring the same folder to all of them"
    more = ", and so do %d more files" % (len(differing) - 1) if len(differing) > 1 else ""
    folder = next(iter(told.values()))["folder"]
    return [warning("code_differs", _odd(have), text % (differing[0], folder, _who(have), more))]


def gpus(host: str, wanted: Sequence[int], count: int) -> List[Finding]:
    """Whether the declared GPUs are there, each once; an empty list is for a job that uses none."""
    if len(set(wanted)) == len(wanted) and all(0 <= index < count for index in wanted):
        return []
    text = "gpus: %s: expected different indexes of the %d GPUs of %s, from 0 on" % (list(wanted), count, host)
    return [error("no_gpu", host, text)]


def in_use(host: str, devices: Sequence[Dict[str, Any]], unit: str) -> List[Finding]:
    """Whether others compute on the job's GPUs already, which may leave it too little memory."""
    said = holders(devices, unit)
    return [warning("gpu_in_use", host, "%s, which the job uses, too: stop it, or choose gpus" % said)] if said else []


def processes(host: str, wanted: int, gpus: int) -> List[Finding]:
    """Whether each process has a GPU, and each GPU a process; a host without GPUs computes on its CPU.

    More processes than GPUs are right for Gloo, which computes on the CPU, and with MPS or MIG.
    """
    if gpus and wanted > gpus:
        text = "%d processes on %d GPUs: NCCL refuses two processes on one GPU; with NCCL, ask for %d at most"
        return [warning("too_many_processes", host, text % (wanted, gpus, gpus))]
    if gpus and wanted < gpus:
        return [warning("idle_gpus", host, "%d processes on %d GPUs: the other GPUs stay idle" % (wanted, gpus))]
    return []


def ports(host: str, node: Mapping[str, Any], port: int, unit: str) -> List[Finding]:
    """Whether the rendezvous port of the master is free, or held by the job itself."""
    holder = (node.get("listener") or {}).get("busy", {}).get(str(port))
    if holder and unit not in holder:
        text = "port %d, of the rendezvous, is held by %s: stop it, or choose another master_port" % (port, holder)
        return [error("port_taken", host, text)]
    return []


def clocks(nodes: Mapping[str, Any], reach: Mapping[str, Mapping[str, Mapping[str, Any]]], c10d: bool) -> List[Finding]:
    """Clocks that differ: the worst pair is reported."""
    worst, pair = 0.0, ("", "")
    for host in nodes:
        for peer, addresses in reach.get(host, {}).items():
            for tried in addresses.values():
                offset = tried.get("clock_offset_s")
                if offset is not None and abs(offset) > abs(worst):
                    worst, pair = offset, (host, peer)
    if abs(worst) <= SKEW:
        return []
    text = "the clock of %s is %.1f s %s that of %s: synchronize the clocks of all hosts" % (
        pair[1],
        abs(worst),
        "ahead of" if worst > 0 else "behind",
        pair[0],
    )
    if c10d and abs(worst) >= LEASE:
        return [error("clock_skew", pair[1], text + "; c10d considers a host dead after %d s" % LEASE)]
    return [warning("clock_skew", pair[1], text)]


def reachability(
    nodes: Mapping[str, Any],
    chosen: Mapping[str, Mapping[str, Any]],
    reach: Mapping[str, Mapping[str, Mapping[str, Any]]],
    master: str,
    port: int,
) -> List[Finding]:
    """Who does not reach the master's rendezvous port at its chosen address."""
    found = []
    address = chosen[master]["address"]
    for host in nodes:
        tried = reach.get(host, {}).get(master, {}).get(address) if host != master else None
        if tried and not tried["rendezvous"]["ok"]:
            text = "%s does not reach the rendezvous %s:%d on %s: %s" % (
                host,
                address,
                port,
                master,
                tried["rendezvous"]["why"],
            )
            if tried["data"]["ok"]:
                text += "; other ports there answer: a firewall between them, or on %s, stops this one" % master
            found.append(error("rendezvous_blocked", host, text))
    return found


def mtu(nodes: Mapping[str, Mapping[str, Any]], chosen: Mapping[str, Mapping[str, Any]]) -> List[Finding]:
    """Different frame sizes on the interfaces of one network: large packets may be lost in silence."""
    sizes: Dict[int, List[str]] = {}
    for host, node in nodes.items():
        for interface in node["interfaces"]:
            if interface["name"] == chosen[host]["interface"]:
                sizes.setdefault(interface["mtu"], []).append(host)
    if len(sizes) < 2:
        return []
    said = "; ".join("%d on %s" % (size, ", ".join(hosts)) for size, hosts in sorted(sizes.items()))
    return [warning("mtu_differs", None, "the MTU differs: %s; packets larger than the smallest may be lost" % said)]
