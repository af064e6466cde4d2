# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts a rollout changes together, and when: pools, their ready minimums, batches. Pure."""

from __future__ import annotations

import math
import re
from typing import AbstractSet, Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Set, Tuple


class Pool(NamedTuple):
    """What clients ask for, and the hosts that serve it."""

    hosts: Tuple[str, ...]
    minimum: int
    """How many of them must serve at any moment."""


class Unit(NamedTuple):
    """Hosts that change together: one, or all that share a model."""

    hosts: Tuple[str, ...]
    takes: Tuple[str, ...] = ()
    """The pools that they leave for a while, as a service that is in them restarts."""


Pools = Mapping[str, Pool]


def pools(served: Mapping[str, Iterable[str]], wish: Any) -> Dict[str, Pool]:
    """The pools of an inventory.

    :param served: pool → its hosts.
    :param wish: the ready minimum: a number, a share such as ``75%``, or a mapping of pools to either; None means all
        hosts of a pool but one.
    :raises ValueError: the wish is something else, or names a pool that does not exist.
    """
    if isinstance(wish, Mapping):
        unknown = sorted(set(map(str, wish)) - set(served))
        if unknown:
            raise ValueError("no pool %s; the pools are %s" % (", ".join(unknown), ", ".join(sorted(served)) or "none"))
    found = {}
    for name, hosts in served.items():
        hosts = tuple(dict.fromkeys(hosts))
        own = wish.get(name) if isinstance(wish, Mapping) else wish
        found[name] = Pool(hosts, len(hosts) - 1 if own is None else number(own, len(hosts)))
    return found


def number(wish: Any, size: int, least: int = 0) -> int:
    """How many of ``size`` a number or a share such as ``75%`` is; a share is rounded up.

    :raises ValueError: it is neither, or less than ``least``.
    """
    text = str(wish).strip()
    share = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)
    if re.fullmatch(r"\d+", text):
        found = int(text)
    elif share and float(share[1]) <= 100:
        found = math.ceil(size * float(share[1]) / 100 - 1e-9)
    else:
        raise ValueError("%r is neither a number nor a share such as 75%%" % (wish,))
    if found < least:
        raise ValueError("%s is %d, and must be at least %d" % (text, found, least))
    return found


def units(changing: Sequence[str], together: Iterable[Sequence[str]], takes: Mapping[str, Iterable[str]]) -> List[Unit]:
    """The units of the hosts that change, in their order.

    :param together: sets of hosts that share a model. One that has a changing host changes as a whole.
    :param takes: host → the pools that it leaves for a while.
    """
    sets = [set(hosts) for hosts in together]
    found: List[Unit] = []
    for host in changing:
        if any(host in unit.hosts for unit in found):
            continue
        members, before = {host}, 0
        while len(members) != before:
            before = len(members)
            members.update(*(hosts for hosts in sets if hosts & members))
        left = {pool for member in members for pool in takes.get(member, ())}
        found.append(Unit((host, *sorted(members - {host})), tuple(sorted(left))))
    return found


def ready(name: str, pool: Pool, serving: AbstractSet[str], out: Iterable[Unit]) -> Set[str]:
    """The hosts of a pool that serve while some units are being changed."""
    return set(pool.hosts) & serving - {host for unit in out if name in unit.takes for host in unit.hosts}


def lacking(unit: Unit, pools: Pools, serving: AbstractSet[str], out: Sequence[Unit] = ()) -> str:
    """The first pool that would fall below its minimum without the unit, or an empty string.

    A host that does not serve takes nothing from a pool.
    """
    for name, pool in pools.items():
        before, after = ready(name, pool, serving, out), ready(name, pool, serving, [*out, unit])
        if before != after and len(after) < pool.minimum:
            return name
    return ""


def impossible(changing: Sequence[Unit], pools: Pools) -> List[str]:
    """Pools whose minimum could not be kept even if all of their hosts served, in a sentence each."""
    found = []
    for name, pool in pools.items():
        stuck = [unit for unit in changing if lacking(unit, {name: pool}, set(pool.hosts))]
        if stuck:
            found.append(
                "pool %s has %d host%s, of which %d must serve at any moment: %s can never be restarted; lower "
                "rollout_min_ready for it, or add a host"
                % (
                    name,
                    len(pool.hosts),
                    "s"[: len(pool.hosts) != 1],
                    pool.minimum,
                    ", ".join(host for unit in stuck for host in unit.hosts),
                )
            )
    return found


def batch(
    waiting: Sequence[Unit], pools: Pools, serving: AbstractSet[str], width: int, out: Sequence[Unit] = ()
) -> List[Unit]:
    """The units that can be changed now, in the given order.

    Hosts that share a model form a batch of their own: one that fails there ends the others' turn.

    :param serving: hosts that serve now.
    :param width: hosts at a time.
    :param out: units that are being changed already.
    """
    chosen: List[Unit] = []
    for unit in waiting:
        if chosen and (len(unit.hosts) > 1 or len(chosen) >= width):
            continue
        if not lacking(unit, pools, serving, [*out, *chosen]):
            chosen.append(unit)
            if len(unit.hosts) > 1:
                break
    return chosen


def batches(waiting: Sequence[Unit], pools: Pools, width: int) -> List[List[Unit]]:
    """All batches, provided that all hosts serve and nothing fails. Units without room in any are in none."""
    everybody = {host for pool in pools.values() for host in pool.hosts}
    waiting, found = list(waiting), []
    while waiting:
        chosen = batch(waiting, pools, everybody, width)
        if not chosen:
            break
        found.append(chosen)
        waiting = [unit for unit in waiting if unit not in chosen]
    return found
