# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout has done so far, from its journal, and what follows from that. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import AbstractSet, Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Set

from . import plan
from .plan import Pool, Unit

IN_HAND = ("admitted", "applied")
"""A run is, or was, changing the host."""
FAILED = ("failed", "lost")
"""It serves as before; its state is unknown, or it does not serve."""


@dataclass
class Planned:
    """What a run has decided before it changes anything."""

    units: List[Unit]
    canary: List[str]
    pools: Dict[str, Pool]
    width: int
    failures: int
    """Failed hosts that do not stop the run."""
    as_declared: List[str]
    services: Dict[str, List[Dict[str, Any]]]
    """For each host: ``service``, ``why``, ``restart``, ``predicted`` (seconds) and ``basis`` of the prediction."""
    gateways: List[str]
    """Gateways that report who serves."""


@dataclass
class HostState:
    status: str = "waiting"
    """``waiting``, ``admitted``, ``applied``, ``done``, ``failed``, ``lost``."""
    why: str = ""
    rolled_back: bool = False
    measured: Dict[str, float] = field(default_factory=dict)
    """Service to the seconds that it did not serve."""
    times: Dict[str, float] = field(default_factory=dict)


@dataclass
class State:
    """The last run, and what earlier runs have left to it."""

    run: str = ""
    began: float = 0.0
    plan: Optional[Planned] = None
    hosts: Dict[str, HostState] = field(default_factory=dict)
    stopped: str = ""
    """Why no further host is changed."""
    ended: str = ""
    """The verdict of a run that is not resumed."""
    resumed: int = 0
    least: Dict[str, int] = field(default_factory=dict)
    """Pool to the fewest hosts that were ready at once."""
    measured: Dict[str, Dict[str, float]] = field(default_factory=dict)
    """Of this run and earlier ones: host to service to the seconds of the last restart."""
    away: List[str] = field(default_factory=list)
    """Hosts that an earlier run has lost."""

    def of(self, *statuses: str) -> List[str]:
        """The hosts with one of these statuses."""
        return [name for name, host in self.hosts.items() if host.status in statuses]


def fold(events: Iterable[Mapping[str, Any]]) -> State:
    """The state after these events; what is unknown is skipped."""
    state = State()
    for event in events:
        kind, host = event.get("event"), event.get("host")
        if kind == "begin":
            state = State(event["run"], event["t"], measured=event["measured"], away=event["away"])
        elif kind == "resume":
            state.resumed += 1
            state.stopped = ""
        elif kind == "plan":
            _plan(state, event)
        elif kind == "stop":
            state.stopped = event["why"]
        elif kind == "end":
            state.ended = event["verdict"]
        elif kind == "admitted":
            for name in event["hosts"]:
                _set(state, name, event)
            for pool, count in event["ready"].items():
                state.least[pool] = min(count, state.least.get(pool, count))
        elif host:
            _set(state, host, event)
    return state


def _plan(state: State, event: Mapping[str, Any]) -> None:
    state.plan = Planned(
        [Unit(tuple(hosts), stops) for hosts, stops in event["units"]],
        event["canary"],
        {name: Pool(tuple(hosts), minimum) for name, (hosts, minimum) in event["pools"].items()},
        event["width"],
        event["failures"],
        event["as_declared"],
        event["services"],
        event["gateways"],
    )
    for unit in state.plan.units:
        for host in unit.hosts:
            known = state.hosts.setdefault(host, HostState())
            if known.status == "lost":  # it answers again, and is repaired first
                known.status = "admitted"
    seen = {*state.plan.as_declared, *(host for unit in state.plan.units for host in unit.hosts)}
    state.away = [host for host in state.away if host not in seen]


def _set(state: State, name: str, event: Mapping[str, Any]) -> None:
    host = state.hosts.setdefault(name, HostState())
    host.status = event["event"]
    host.times[host.status] = event["t"]
    host.why = event.get("why", host.why)
    host.rolled_back = event.get("rolled_back", host.rolled_back)
    host.measured.update(event.get("measured", {}))
    if event.get("measured"):
        state.measured.setdefault(name, {}).update(event["measured"])


def remaining(state: State) -> List[Unit]:
    """The units that are left, those in hand first; none once the run has stopped, apart from those in hand."""
    if not state.plan:
        return []
    held = [unit for unit in state.plan.units if any(state.hosts[host].status in IN_HAND for host in unit.hosts)]
    if state.ended:
        return []
    waiting = [unit for unit in state.plan.units if all(state.hosts[host].status == "waiting" for host in unit.hosts)]
    return held + ([] if state.stopped else waiting)


def taken(state: State) -> Set[str]:
    """Hosts that cannot be counted on: in hand, or lost."""
    return {*state.of("lost", *IN_HAND), *state.away}


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
    if any(state.hosts[host].status in IN_HAND for host in unit.hosts):
        return Admission(True, "it was in hand already")
    why = state.stopped or exceeded(state) or ("stopped by request" if request == "stop" else "")
    if why:
        return Admission(False, why, stops=True)
    busy = taken(state)
    beside = state.of(*IN_HAND)
    if beside and len(beside) + len(unit.hosts) > planned.width:
        return Admission(False, "no room next to %s (rollout_width)" % ", ".join(beside))
    for name, pool in planned.pools.items():
        ready = (set(serving) - busy) & set(pool.hosts)
        if not plan.fits(unit, {name: pool}, ready):
            counts = (name, len(ready), len(pool.hosts), pool.minimum)
            return Admission(False, "pool %s has %d of %d hosts ready, and %d must stay so" % counts)
    return Admission(True, "")


def ready(state: State, serving: AbstractSet[str], unit: Optional[Unit] = None) -> Dict[str, int]:
    """How many hosts of each pool serve, without those in hand and this unit."""
    busy = taken(state) | (set(unit.hosts) if unit and unit.stops else set())
    pools = state.plan.pools if state.plan else {}
    return {name: len((set(serving) - busy) & set(pool.hosts)) for name, pool in pools.items()}


def exceeded(state: State) -> str:
    """Why the failures so far stop the run; empty if they do not."""
    failed = state.of(*FAILED)
    canary = [host for host in failed if state.plan and host in state.plan.canary]
    if canary:
        return "the canary %s failed" % ", ".join(canary)
    if state.plan and len(failed) > state.plan.failures:
        return "%d failed (%s), and rollout_max_failures allows %d" % (
            len(failed),
            ", ".join(failed),
            state.plan.failures,
        )
    return ""


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
