# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run as its journal has it: admissions, failures, kills; and whole random runs against a pretended fleet."""

from __future__ import annotations

import random
from itertools import count

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import ENGINES
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import plan, state
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.draft import draft
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.given import Given
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.inventory import Inventory
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.plan import Unit

CLOCK = count(1.0)


def event(kind, **fields):
    return {"t": next(CLOCK), "event": kind, **fields}


def begun():
    return event("begin", run="r1", by="1", measured={}, away=[], holder="f1", reserved=[])


def planned(units, pools, width=4, failures=0, canary=(), as_declared=(), in_a_row=None):
    return event(
        "plan",
        units=[[list(unit.hosts), unit.takes] for unit in units],
        pools={name: [list(pool.hosts), pool.minimum] for name, pool in pools.items()},
        width=width,
        failures=failures,
        in_a_row=in_a_row,
        canary=list(canary),
        as_declared=list(as_declared),
        services={},
        gateways=[],
        traffic={},
        reserve=[],
    )


def admitted(*hosts, **ready):
    return event("admitted", hosts=list(hosts), ready=ready, generations=dict.fromkeys(hosts, "2026-11-30T08:00:00Z"))


UNITS = [Unit((name,), ("chat",)) for name in "abcd"]
POOLS = plan.pools({"chat": list("abcd")}, 2)


def fold(*events):
    return state.fold([begun(), *events])


def test_an_empty_journal():
    found = state.fold([])
    assert found.run == "" and state.remaining(found) == [] and not state.resumes(found, set())


def test_a_host_is_admitted_while_its_pool_has_room():
    found = fold(planned(UNITS, POOLS), admitted("a"))
    assert state.admit(found, UNITS[1], set("abcd"), "").go
    refused = state.admit(found, UNITS[1], set("abc"), "")
    assert refused == (False, "pool chat has 2 of 4 hosts ready, and 2 must stay so", False)
    assert state.admit(found, UNITS[3], set("abc"), "").go, "a host that does not serve takes nothing"
    assert state.admit(found, UNITS[0], set(), "stop").go, "a host in hand is never left alone"


def test_the_width_counts_hosts_in_hand():
    found = fold(planned(UNITS, {}, width=1), admitted("a"))
    assert state.admit(found, UNITS[1], set("abcd"), "").why == "no room next to a (rollout_width)"
    assert state.admit(fold(planned(UNITS, {}, width=1)), Unit(("a", "b"), ("chat",)), set(), "").go, (
        "else it could never go"
    )


def test_a_lost_host_is_not_counted_on():
    found = fold(
        planned(UNITS, plan.pools({"chat": list("abcd")}, 3), failures=1), admitted("a"), event("lost", host="a")
    )
    assert "has 3 of 4" in state.admit(found, UNITS[1], set("abcd"), "").why
    later = state.fold(
        [event("begin", run="r2", by="2", measured={}, away=["a"], holder="f1", reserved=[]), planned(UNITS[1:], POOLS)]
    )
    assert state.lost(later) == {"a"}
    again = [event("begin", run="r2", by="2", measured={}, away=["a"], holder="f1", reserved=[]), planned(UNITS, POOLS)]
    assert state.lost(state.fold(again)) == {"a"}, "until it is found as declared"
    assert state.lost(state.fold([*again, admitted("a"), event("done", host="a")])) == set()


def test_a_host_counts_once_as_failed_in_a_row():
    first = [planned(UNITS, POOLS, failures=3), admitted("a"), event("lost", host="a")]
    found = fold(*first, event("resume", by="2"), planned(UNITS, POOLS, failures=3), event("lost", host="a"))
    assert found.row == ["a"]


@pytest.mark.parametrize(
    ("failures", "canary", "why"),
    [(0, [], "1 failed (a), and rollout_max_failures allows 0"), (1, ["a"], "the canary a failed"), (1, [], "")],
)
def test_failures_stop_the_run(failures, canary, why):
    found = fold(planned(UNITS, POOLS, failures=failures, canary=canary), admitted("a"), event("failed", host="a"))
    told = state.admit(found, UNITS[1], set("abcd"), "")
    assert told == ((True, "", False) if not why else (False, why, True))
    assert state.verdict(found) == ("failed" if why else "incomplete")
    assert state.remaining(found) == ([] if why else UNITS[1:]), "nobody waits for room that is not needed"


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        (["failed", "lost"], "2 failed in a row (a, b), and rollout_max_failures allows 1"),
        (["failed", "done", "failed"], ""),
        (["done", "failed", "failed"], "2 failed in a row (b, c), and rollout_max_failures allows 1"),
    ],
)
def test_failures_in_a_row_stop_the_run(outcomes, why):
    ended = [event(outcome, host=host) for host, outcome in zip("abc", outcomes)]
    found = fold(planned(UNITS, POOLS, failures=3, in_a_row=1), *ended)
    assert state.exceeded(found) == why and state.verdict(found) == ("failed" if why else "incomplete")


def test_a_request_stops_the_run_and_the_next_one_resumes_it():
    found = fold(planned(UNITS, POOLS), admitted("a"), event("done", host="a"))
    assert state.admit(found, UNITS[1], set("abcd"), "stop") == (False, "stopped by request", True)
    found = fold(planned(UNITS, POOLS), admitted("a"), event("done", host="a"), event("stop", why="stopped by request"))
    assert state.verdict(found) == "stopped" and state.remaining(found) == []
    assert state.resumes(found, {"b", "c", "d"})
    assert not state.resumes(found, {"a", "b"}), "what is declared has changed since, or somebody has changed the host"


def test_a_lost_host_that_answers_again_comes_first():
    events = [planned(UNITS, POOLS, failures=1), admitted("a"), event("done", host="a"), admitted("b")]
    found = fold(*events, event("lost", host="b"), event("resume", by="3"), planned(UNITS[1:], POOLS, failures=1))
    assert [unit.hosts for unit in state.remaining(found)] == [("b",), ("c",), ("d",)]
    assert found.of(*state.FAILED) == []


def test_a_resumed_run_reports_the_whole_run():
    before = [planned(UNITS, POOLS, canary=["a"]), admitted("a"), event("done", host="a"), event("resume", by="3")]
    found = fold(*before, planned(UNITS[2:], POOLS, as_declared=["a", "b"]))
    assert [unit.hosts for unit in found.plan.units] == [("a",), ("c",), ("d",)], "b was changed by somebody else"
    assert found.plan.as_declared == ["b"] and [unit.hosts for unit in state.remaining(found)] == [("c",), ("d",)]


def test_measured_restarts_outlive_a_run():
    found = fold(planned(UNITS, POOLS), admitted("a"), event("applied", host="a", measured={"ollama": 2.5}))
    assert found.measured == {"a": {"ollama": [2.5]}} and found.hosts["a"].measured == {"ollama": 2.5}
    found = fold(planned(UNITS, POOLS), admitted("a"), event("failed", host="a", measured={"ollama": 9.0}))
    assert found.measured == {} and found.hosts["a"].measured == {"ollama": 9.0}, "with the rollback"


ROW = {"service": "ollama", "why": "X changes", "restart": True, "predicted": 10.0, "restarts": []}
CANARY = [admitted("a"), event("applied", host="a", measured={"ollama": 2.5}), event("done", host="a")]


def test_the_canary_renews_the_plan():
    plans = dict(planned(UNITS, POOLS, canary=["a"]), services={name: [ROW] for name in "abc"})
    assert "renewed" not in fold(plans, *CANARY[:2]).plan.services["b"][0], "it may still fail"
    found = fold(plans, *CANARY, admitted("b"))
    assert [found.plan.services[name][0].get("renewed") for name in "abc"] == [None, 2.5, 2.5]
    rest = dict(planned(UNITS[1:], POOLS, canary=["a"]), services={name: [ROW] for name in "bc"})
    found = fold(plans, *CANARY, event("resume", by="3"), rest)
    assert found.plan.services["c"][0]["renewed"] == 2.5, "also in a resumed run"
    assert "renewed" not in fold(dict(plans, canary=[]), *CANARY).plan.services["b"][0]


def test_a_canary_knows_what_takes_it_back_and_how_it_did():
    watched = event("watched", host="a", worse=["too slow"], unknown=["few requests"])
    found = fold(planned(UNITS, POOLS, canary=["a"]), admitted("a"), watched)
    assert found.hosts["a"].generation == "2026-11-30T08:00:00Z" and found.hosts["a"].status == "admitted"
    assert (found.worse, found.unknown) == ({"a": ["too slow"]}, {"a": ["few requests"]})


def test_the_hosts_that_serve_as_before():
    found = fold(planned(UNITS, POOLS), admitted("a"), event("done", host="b"), event("lost", host="c"))
    assert state.unchanged(found, "abcde") == {"d", "e"}


class World:
    """A pretended fleet: what is applied there, who serves, and how often a host was changed."""

    def __init__(self, chance, hosts):
        self.chance, self.hosts = chance, hosts
        self.applied, self.broken, self.changes = set(), set(), dict.fromkeys(hosts, 0)
        self.bad = {host for host in hosts if chance.random() < 0.1}
        self.worse = {host for host in hosts if chance.random() < 0.1}

    def serving(self):
        return set(self.hosts) - self.broken

    def looks(self):
        row = {"service": "ollama", "engine": "ollama", "why": "X changes", "restart": True}
        return {
            host: {"state": "as declared"} if host in self.applied else {"state": "differs", "services": [row]}
            for host in self.hosts
        }

    def apply(self, host):
        """One host's change: ``done``, or how it failed."""
        if host in self.applied:
            return "done"
        if host in self.bad:
            self.bad.discard(host)
            if self.chance.random() < 0.5:
                return "failed"
            self.broken.add(host)
            return "lost"
        self.applied.add(host)
        self.broken.discard(host)
        self.changes[host] += 1
        return "done"

    def take_back(self, host):
        self.applied.discard(host)
        self.changes[host] -= 1


class Killed(Exception):
    pass


class Run:
    """The rollout's own steps, in memory; killed with some chance after any of them."""

    def __init__(self, world, journal, inventory, chance, kill, **variables):
        self.world, self.journal, self.inventory, self.chance, self.kill = world, journal, inventory, chance, kill
        self.given = Given(variables, lambda value: value)

    def write(self, kind, **fields):
        self.journal.append(event(kind, **fields))
        if self.chance.random() < self.kill:
            raise Killed

    def state(self):
        return state.fold(self.journal)

    def go(self):
        last = self.state()
        found = draft(self.given, self.inventory, ENGINES, self.world.looks(), last, forks=5)
        if found.resumed:
            self.write("resume", by="3")
        else:
            kept = {"measured": last.measured, "away": last.of("lost"), "holder": "f1", "reserved": last.reserved}
            self.write("begin", run="r", by="1", **kept)
        for host in last.of("lost", *state.IN_HAND) if found.resumed else ():
            if host in found.fields["as_declared"]:
                self.write("done", host=host)
        self.write("plan", **found.fields, gateways=[], traffic={})
        for chosen in self.parts():
            self.change(chosen)
        verdict = state.verdict(self.state())
        if verdict in ("complete", "failed"):
            self.write("end", verdict=verdict)
        return verdict

    def parts(self):
        """Batches, as the plays have them: the canary first and alone."""
        for part in ("held", "canary", "rest", "rest"):
            found = self.state()
            held = state.in_hand(found)
            canary = [unit for unit in found.plan.units if set(unit.hosts) & set(found.plan.canary)]
            left = [unit for unit in state.remaining(found) if unit not in held]
            units = {"held": held, "canary": [unit for unit in left if unit in canary]}
            yield from plan.batches(
                units.get(part, [one for one in left if one not in canary]), found.plan.pools, found.plan.width
            )

    def change(self, chosen):
        going = []
        for unit in chosen:
            before = self.state()
            if state.admit(before, unit, self.world.serving(), "").go:
                if before.hosts[unit.hosts[0]].status == "waiting":
                    _check_room(before, unit, self.world)
                    self.write("admitted", hosts=list(unit.hosts), ready={}, generations={})
                going.append(unit.hosts[0])
        self.chance.shuffle(going)
        for host in going:
            outcome = self.world.apply(host)
            if self.chance.random() < self.kill:
                raise Killed
            if outcome == "done" and host in self.state().plan.canary:
                outcome = self.watch(host)
            self.write(outcome, host=host)

    def watch(self, host):
        worse = host in self.world.worse or bool(self.state().worse.get(host))
        self.world.worse.discard(host)
        self.write("watched", host=host, worse=["too slow"] * worse, unknown=[])
        if worse:
            self.world.take_back(host)
        return "failed" if worse else "done"


def _check_room(before, unit, world):
    for pool in before.plan.pools.values():
        ready = world.serving() & set(pool.hosts) - set(before.of(*state.IN_HAND))
        if unit.hosts[0] in ready:
            assert len(ready - set(unit.hosts)) >= pool.minimum


def test_random_runs_with_failures_and_kills():
    watched = 0
    for seed in range(1000):
        chance = random.Random(seed)
        hosts = ["h%d" % number for number in range(chance.randint(1, 10))]
        models = {host: {"ollama_models": [name for name in "pqr" if chance.random() < 0.6]} for host in hosts}
        inventory, minimum = Inventory({"ollama": hosts}, models), chance.choice([None, 0, "50%"])
        pools = plan.pools(inventory.served(ENGINES), minimum)
        if plan.impossible([Unit((host,), tuple(pools)) for host in hosts], pools):
            continue
        world, journal, verdict = World(chance, hosts), [], ""
        for attempt in range(14):
            failures = chance.choice([0, 2, {"total": 3, "in_a_row": 1}])
            wishes = {"rollout_min_ready": minimum, "rollout_max_failures": failures}
            run = Run(
                world, journal, inventory, chance, 0.15 * (attempt < 4), rollout_width=chance.randint(1, 4), **wishes
            )
            try:
                verdict = run.go()
            except Killed:
                continue
            found = state.fold(journal)
            assert set(found.of("waiting", "done", *state.FAILED)) == set(found.hosts), (
                "exactly one state, none in hand"
            )
            watched += bool(found.worse)
            if verdict == "complete":
                assert set(found.plan.canary) <= {*found.worse, *found.plan.as_declared}, "each canary was watched"
                break
        assert verdict == "complete" and world.applied == set(hosts), (seed, verdict)
        assert set(world.changes.values()) == {1}, "no host is changed twice"
        for length in range(0, len(journal), 1 + seed % 7):
            state.remaining(state.fold(journal[:length]))
            state.verdict(state.fold(journal[:length]))
    assert watched > 500
