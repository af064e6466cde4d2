# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Prometheus reads the metrics of, from what the inventory declares. Pure."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

from .gateway_pools import ENGINES, address_of, services

GATEWAY_STATUS_PORT = 8404
"""The default of ``gateway_status_port``, which an inventory need not repeat."""


class Found(NamedTuple):
    """What was derived."""

    targets: List[Dict[str, Any]]
    """``job``, ``host``, ``address``, ``port``, ``labels``, ``tls``, and ``key``: the name of its key, or empty."""
    keys: Dict[str, str]
    """Name of a key to the key."""
    left_out: List[str]
    """A sentence for each service that this Prometheus cannot reach."""


def targets(
    hostvars: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    asking: str,
    exporters: Mapping[str, int],
) -> Found:
    """The targets, in the order of the inventory.

    :param groups: the hosts of each group: those of the engines, ``gateway`` and ``monitoring`` are looked at.
    :param asking: the host with the Prometheus, which also reaches what listens on its own loopback address.
    :param exporters: job to port of what runs on every GPU host, such as ``node``; port 0 means that it does not.
    """
    found = Found([], {}, [])
    for host, service, address in services(hostvars, groups, asking):
        if service.metrics is None:
            continue
        if address is None:
            found.left_out.append(_out_of_reach(service.unit, host, service.listens))
            continue
        row = _row(service.engine, host, address, service.port, unit=service.unit)
        found.targets.append(dict(row, tls=service.tls, key=_named(found.keys, service.metrics)))
    for host in groups.get("gateway", ()):
        port = int(hostvars[host].get("gateway_status_port", GATEWAY_STATUS_PORT))
        others = hostvars[host].get("gateway_status_clients")
        if port and (host == asking or others):
            address = "127.0.0.1" if host == asking else address_of(host, hostvars[host])
            found.targets.append(_row("gateway", host, address, port))
        elif port:
            found.left_out.append(_out_of_reach("the status port of the gateway", host, "127.0.0.1"))
    for job, port, members in _exporters(exporters, groups):
        for host in members if port else ():
            address = "127.0.0.1" if host == asking else address_of(host, hostvars[host])
            found.targets.append(_row(job, host, address, port))
    return found


def _exporters(
    exporters: Mapping[str, int], groups: Mapping[str, Sequence[str]]
) -> Iterator[Tuple[str, int, List[str]]]:
    gpu_hosts = [host for group in ENGINES for host in groups.get(group, ())]
    others = [host for group in ("gateway", "monitoring") for host in groups.get(group, ())]
    for job, port in exporters.items():
        yield job, port, list(dict.fromkeys(gpu_hosts + (others if job == "node" else [])))


def _out_of_reach(what: str, host: str, listens: str) -> str:
    return "%s on %s listens on %s, where this Prometheus does not reach it" % (what, host, listens)


def _row(job: str, host: str, address: str, port: int, **labels: str) -> Dict[str, Any]:
    row: Dict[str, Any] = {"job": job, "host": host, "address": address, "port": port, "labels": labels}
    return dict(row, tls=False, key="")


def _named(keys: Dict[str, str], key: str) -> str:
    """The name of a key, the same for all services that have it."""
    if not key:
        return ""
    known = {text: name for name, text in keys.items()}
    return known.get(key) or _added(keys, key)


def _added(keys: Dict[str, str], key: str) -> str:
    name = "key-%d" % (len(keys) + 1)
    keys[name] = key
    return name
