# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout has done so far, from its journal, and what follows from that. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import AbstractSet, Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Set

from . import plan, predict
from .plan import Pool, Unit
from .predict import Series

IN_HAND = ("admitted", "applied")
"""A run is, or was, changing the host."""
FAILED = ("failed", "lost")
"""It serves as before; its state is unknown, or it does not serve."""
ENDED = ("done", *FAILED)


@dataclass
class Planned:
    """What a run has decided before it changes anything."""

    units: List[Unit]
    canary: List[str]
    pools: Dict[str, Pool]
    width: int
    failures: int
    """Failed hosts that do not stop the run."""
    in_a_row: Optional[int]
    """The same for hosts that failed one after the other; None for any number."""
    as_declared: List[str]
    services: Dict[str, List[Dict[str, Any]]]
    """For each host: ``service``, ``why``, ``restart``, ``predicted`` (seconds), its ``basis``, the ``restarts``
    measured there, and the prediction as ``renewed`` after the canary."""
    gateways: List[str]
    """Gateways that report who serves."""
    traffic: Dict[str, List[float]] = field(default_factory=dict)
    """Of each pool, as the gateways count it: requests per second, and seconds for one of them."""
    reserve: List[str] = field(default_factory=list)
    """The hosts that are reserved before the first one changes."""


@dataclass
class HostState:
    status: str = "waiting"
    """``waiting``, ``admitted``, ``applied``, ``done``, ``failed``, ``lost``."""
    why: str = ""
    rolled_back: bool = False
    measured: Dict[str, float] = field(default_factory=dict)
    """Service to the seconds that it did not serve."""
    generation: str = ""
    """What takes it back to before the change."""
    times: Dict[str, float] = field(default_factory=dict)


@dataclass
class State:
    """The last run, and what earlier runs have left to it."""

    run: str = ""
    by: str = ""
    """The process that began or resumed it."""
    began: float = 0.0
    plan: Optional[Planned] = None
    hosts: Dict[str, HostState] = field(default_factory=dict)
    stopped: str = ""
    """Why no further host is changed."""
    ended: str = ""
    """The verdict of a run that is not resumed."""
    resumed: int = 0
    row: List[str] = field(default_factory=list)
    """The hosts that have failed since the last one that did not."""
    least: Dict[str, int] = field(default_factory=dict)
    """Pool to the fewest hosts that were ready at once."""
    measured: Series = field(default_factory=dict)
    """Of this run and earlier ones."""
    worse: Dict[str, List[str]] = field(default_factory=dict)
    """Of each canary that was compared with the others: what it did worse."""
    unknown: Dict[str, List[str]] = field(default_factory=dict)
    """What of it could not be compared."""
    away: List[str] = field(default_factory=list)
    """Hosts that an earlier run has lost."""
    holder: str = ""
    """By what the hosts know the runs of this state folder."""
    reserved: List[str] = field(default_factory=list)
    """Hosts that are reserved for it, or were about to be; earlier runs' too."""

    def of(self, *statuses: str) -> List[str]:
        """The hosts with one of these statuses."""
        return [name for name, host in self.hosts.items() if host.status in statuses]


def fold(events: Iterable[Mapping[str, Any]]) -> State:
    """The state after these events; what is unknown is skipped."""
    state = State()
    for event in events:
        kind, host = event.get("event"), event.get("host")
        if kind == "begin":
            kept = {name: event[name] for name in ("measured", "away", "holder", "reserved")}
            state = State(event["run"], event["by"], event["t"], **kept)
        elif kind == "resume":
            state.resumed += 1
            state.by, state.stopped = event["by"], ""
        elif kind == "plan":
            _plan(state, event)
        elif kind == "stop":
            state.stopped = event["why"]
        elif kind == "released":
            state.reserved = [name for name in state.reserved if name not in event["hosts"]]
        elif kind == "end":
            state.ended = event["verdict"]
        elif kind == "admitted":
            for name in event["hosts"]:
                _set(state, name, event)
                state.hosts[name].generation = event["generations"].get(name, "")
            for pool, count in event["ready"].items():
                state.least[pool] = min(count, state.least.get(pool, count))
        elif kind == "watched":
            state.worse[str(host)], state.unknown[str(host)] = event["worse"], event["unknown"]
        elif host:
            _set(state, host, event)
    return state


def _plan(state: State, event: Mapping[str, Any]) -> None:
    """A plan; that of a resumed run has what is left."""
    units = [Unit(tuple(hosts), tuple(takes)) for hosts, takes in event["units"]]
    planned = {host for unit in units for host in unit.hosts}
    past = [
        unit
        for unit in (state.plan.units if state.plan else ())
        if not planned & set(unit.hosts) and all(state.hosts[host].status in ENDED for host in unit.hosts)
    ]
    known = {host: rows for host, rows in (state.plan.services if state.plan else {}).items() if host not in planned}
    ended = {host for unit in past for host in unit.hosts}
    state.plan = Planned(
        past + units,
        event["canary"],
        {name: Pool(tuple(hosts), minimum) for name, (hosts, minimum) in event["pools"].items()},
        event["width"],
        event["failures"],
        event["in_a_row"],
        [host for host in event["as_declared"] if host not in ended],
        {**known, **event["services"]},
        event["gateways"],
        event["traffic"],
        event["reserve"],
    )
    state.reserved = state.reserved + [host for host in event["reserve"] if host not in state.reserved]
    for host in planned:
        if state.hosts.setdefault(host, HostState()).status == "lost":  # it answers again, and is repaired first
            state.hosts[host].status = "admitted"
    state.row = [host for host in state.row if state.hosts[host].status in FAILED]
    state.away = [host for host in state.away if host not in event["as_declared"]]
    for host in state.of("done"):
        _renew(state, host)


def _set(state: State, name: str, event: Mapping[str, Any]) -> None:
    host = state.hosts.setdefault(name, HostState())
    host.status = event["event"]
    host.times[host.status] = event["t"]
    host.why = event.get("why", host.why)
    host.rolled_back = event.get("rolled_back", host.rolled_back)
    host.measured.update(event.get("measured", {}))
    if event.get("measured") and host.status == "applied":  # a rollback's seconds predict nothing
        predict.remember(state.measured, name, event["measured"])
    if host.status == "done":
        state.row = []
        state.away = [one for one in state.away if one != name]
        _renew(state, name)
    elif host.status in FAILED:
        state.row.append(name)


def _renew(state: State, done: str) -> None:
    """What the canary took predicts the hosts after it."""
    planned = state.plan
    if planned is None or done not in planned.canary:
        return
    for name in state.of("waiting"):
        rows = planned.services.get(name, [])
        planned.services[name] = predict.renewed(rows, planned.services.get(done, []), state.hosts[done].measured)


def remaining(state: State) -> List[Unit]:
    """The units that are left, those in hand first; only these once the run has stopped or too many hosts failed."""
    if not state.plan:
        return []
    if state.ended:
        return []
    waiting = [unit for unit in state.plan.units if all(state.hosts[host].status == "waiting" for host in unit.hosts)]
    return in_hand(state) + ([] if state.stopped or exceeded(state) else waiting)


def lost(state: State) -> Set[str]:
    """Hosts that cannot be counted on."""
    return {*state.of("lost"), *state.away}


def unchanged(state: State, hosts: Iterable[str]) -> Set[str]:
    """Those that this run has not changed."""
    return set(hosts) - set(state.of(*IN_HAND, *ENDED))


def in_hand(state: State) -> List[Unit]:
    """The units that are being changed."""
    units = state.plan.units if state.plan else []
    return [unit for unit in units if any(state.hosts[host].status in IN_HAND for host in unit.hosts)]


class Admission(NamedTuple):
    """Whether a host may be changed now."""

    go: bool
    why: str
    stops: bool = False
    """Whether the run changes no further host."""


def admit(state: State, unit: Unit, serving: AbstractSet[str], request: str) -> Admission:
    """May this unit be changed now?

    :param serving: the hosts that serve, as far as the gateways report; all, where there is none.
    :param request: ``stop`` if somebody has asked the run to stop.
    """
    planned = state.plan
    if planned is None:
        return Admission(False, "there is no plan")
    out = in_hand(state)
    if unit in out:
        return Admission(True, "it was in hand already")
    why = state.stopped or exceeded(state) or ("stopped by request" if request == "stop" else "")
    if why:
        return Admission(False, why, stops=True)
    busy = [host for other in out for host in other.hosts]
    if busy and len(busy) + len(unit.hosts) > planned.width:
        return Admission(False, "no room next to %s (rollout_width)" % ", ".join(busy))
    name = plan.lacking(unit, planned.pools, set(serving) - lost(state), out)
    if name:
        pool = planned.pools[name]
        counts = (name, ready(state, serving)[name], len(pool.hosts), pool.minimum)
        return Admission(False, "pool %s has %d of %d hosts ready, and %d must stay so" % counts)
    return Admission(True, "")


def ready(state: State, serving: AbstractSet[str], *more: Unit) -> Dict[str, int]:
    """How many hosts of each pool serve, without those in hand and these units."""
    pools = state.plan.pools if state.plan else {}
    out, serving = [*in_hand(state), *more], set(serving) - lost(state)
    return {name: len(plan.ready(name, pool, serving, out)) for name, pool in pools.items()}


def exceeded(state: State) -> str:
    """Why the failures so far stop the run; empty if they do not."""
    failed = state.of(*FAILED)
    canary = [host for host in failed if state.plan and host in state.plan.canary]
    if canary:
        return "the canary %s failed" % ", ".join(canary)
    if state.plan and len(failed) > state.plan.failures:
        return _too_many(failed, "failed", state.plan.failures)
    if state.plan and state.plan.in_a_row is not None and len(state.row) > state.plan.in_a_row:
        return _too_many(state.row, "failed in a row", state.plan.in_a_row)
    return ""


def _too_many(hosts: List[str], words: str, allowed: int) -> str:
    return "%d %s (%s), and rollout_max_failures allows %d" % (len(hosts), words, ", ".join(hosts), allowed)


def resumes(state: State, changing: AbstractSet[str]) -> bool:
    """Whether a run continues the last one: that has not ended, and its finished hosts are still as declared."""
    return bool(state.run and state.plan and not state.ended and not changing & set(state.of("done")))


def verdict(state: State) -> str:
    """``complete``, ``failed``, ``stopped`` or ``incomplete``: the last two can be resumed."""
    if state.of(*IN_HAND):
        return "incomplete"
    if exceeded(state):
        return "failed"
    if state.stopped:
        return "stopped"
    if remaining(state):
        return "incomplete"
    return "failed" if state.of(*FAILED) else "complete"
