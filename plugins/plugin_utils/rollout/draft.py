# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a rollout, from what was found on the hosts and what a person has given; or why there is none. Pure."""

from __future__ import annotations

from os.path import isabs
from typing import Any, Callable, Dict, List, Mapping, NamedTuple

from . import look, plan, predict, wishes
from . import state as states
from .given import Given, Refused
from .inventory import Inventory
from .state import State


class Draft(NamedTuple):
    """What a run is going to do."""

    fields: Dict[str, Any]
    """Of the plan's event in the journal, apart from the gateways."""
    resumed: bool
    """Whether it continues the last run."""
    remarks: List[str]


Engines = Mapping[str, Callable[..., Any]]


def draft(
    given: Given,
    inventory: Inventory,
    engines: Engines,
    looks: Mapping[str, Mapping[str, Any]],
    last: State,
    forks: int,
) -> Draft:
    """The plan.

    :param engines: group → what a host of it serves, as for :meth:`Inventory.served`.
    :param looks: what was found on each host of the run.
    :param last: the last run.
    :param forks: how many hosts Ansible works on at a time.
    :raises Refused: a host is unfit, a pool could not keep its ready minimum, or a variable is wrong.
    """
    unfit = ["%s: %s" % (host, look.reason(found)) for host, found in looks.items() if found.get("state") not in _FIT]
    if unfit:
        raise Refused("not all hosts can be: %s" % "; ".join(unfit))
    outside = sorted(set(last.of(*states.IN_HAND)) - set(looks))
    if outside:
        raise Refused("%s was being changed when the last run ended: include it in this run" % ", ".join(outside))
    changing = {host: list(found["services"]) for host, found in looks.items() if found["state"] == "differs"}
    rates = predict.rates(changing)
    services = {
        host: [dict(row, **predict.predicted(last.measured, rates, host, row)) for row in rows]
        for host, rows in changing.items()
    }
    resumed = states.resumes(last, set(services))
    former = last if resumed else State()
    services = {**_unwatched(former, services), **services}
    # those that are out of service anyway come first
    away = {*last.away, *last.of("lost", *states.IN_HAND)}
    services = dict(sorted(services.items(), key=lambda row: row[0] not in away))
    return _fields(given, inventory, engines, list(looks), services, former, forks)._replace(resumed=resumed)


_FIT = ("as declared", "differs")


def _unwatched(former: State, services: Mapping[str, Any]) -> Dict[str, Any]:
    """Canaries that were changed before the last run ended, but not watched."""
    canary, known = (former.plan.canary, former.plan.services) if former.plan else ([], {})
    left = [host for host in former.of(*states.IN_HAND) if host in canary and host not in services]
    return {host: known.get(host, []) for host in left}


def _fields(
    given: Given,
    inventory: Inventory,
    engines: Engines,
    hosts: List[str],
    services: Mapping[str, List[Dict[str, Any]]],
    former: State,
    forks: int,
) -> Draft:
    changing = sorted(services, key=lambda host: host not in inventory.hosts(*engines))  # as in site.yml
    served = inventory.served(engines)
    takes = {host: look.left(host, rows, served) for host, rows in services.items()}
    units = plan.units(changing, inventory.together(), takes)
    away = sorted({host for unit in units for host in unit.hosts} - set(hosts))
    if away:
        raise Refused("%s shares a model with a host of this run: include it" % ", ".join(away))
    pools = given.wish("rollout_min_ready", None, lambda wish: plan.pools(served, wish))
    never = plan.impossible(units, pools)
    if never:
        raise Refused("; ".join(never))
    number = sum(len(unit.hosts) for unit in units)
    width = given.wish("rollout_width", 4, lambda wish: plan.number(wish, number or 1, 1))
    failures, in_a_row = given.wish("rollout_max_failures", 0, lambda wish: wishes.failures(wish, number))
    fields = {
        "units": [[list(unit.hosts), list(unit.takes)] for unit in units],
        "canary": former.plan.canary
        if former.plan and former.of("done", *states.IN_HAND)
        else given.wish("rollout_canary", None, lambda wish: wishes.canary(wish, hosts, units)),
        "pools": {name: [list(pool.hosts), pool.minimum] for name, pool in pools.items()},
        "width": min(width, forks),
        "failures": failures,
        "in_a_row": in_a_row,
        "as_declared": [host for host in hosts if host not in services],
        "services": services,
        # tasks of your own may need no root
        "reserve": [] if isabs(given.value("rollout_apply", "")) else [host for unit in units for host in unit.hosts],
    }
    said = "no more than %d hosts at a time, as Ansible has %d forks (--forks)" % (forks, forks)
    return Draft(fields, False, [said] * (min(width, number) > forks))
