# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pools, units and batches, on tables and on random fleets."""

from __future__ import annotations

import random

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import plan
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.plan import Pool, Unit

ALL = ("chat", "embed")


def unit(*hosts, takes=ALL):
    return Unit(hosts, takes)


@pytest.mark.parametrize(
    ("wish", "size", "found"),
    [(2, 4, 2), ("2", 4, 2), ("75%", 4, 3), ("50%", 3, 2), ("66.7 %", 3, 3), ("0%", 3, 0), ("100%", 3, 3), (0, 3, 0)],
)
def test_a_number_or_a_share(wish, size, found):
    assert plan.number(wish, size) == found


@pytest.mark.parametrize("wish", ["many", "-1", -1, "120%", None, [2], True])
def test_neither_a_number_nor_a_share(wish):
    with pytest.raises(ValueError, match="is neither a number nor a share such as 75%"):
        plan.number(wish, 4)


@pytest.mark.parametrize("wish", [0, "0", "0%"])
def test_a_number_has_a_least_value(wish):
    with pytest.raises(ValueError, match="is 0, and must be at least 1"):
        plan.number(wish, 4, least=1)


def test_the_minimum_of_each_pool():
    served = {"chat": ["a", "b", "c", "b"], "embed": ["c"]}
    assert plan.pools(served, None) == {"chat": Pool(("a", "b", "c"), 2), "embed": Pool(("c",), 0)}
    assert plan.pools(served, "50%") == {"chat": Pool(("a", "b", "c"), 2), "embed": Pool(("c",), 1)}
    assert plan.pools(served, {"chat": 1}) == {"chat": Pool(("a", "b", "c"), 1), "embed": Pool(("c",), 0)}
    with pytest.raises(ValueError, match="no pool chatt; the pools are chat, embed"):
        plan.pools(served, {"chatt": 1})


def test_hosts_that_share_a_model_are_one_unit():
    together = [["a", "b"], ["b", "c"], ["x", "y"]]
    takes = {"a": ["chat"], "c": ["embed", "chat"]}
    assert plan.units(["d", "c", "a"], together, takes) == [unit("d", takes=()), unit("c", "a", "b")]


def test_a_pool_that_could_never_spare_a_host_is_refused_with_the_numbers():
    pools = {"chat": Pool(("a", "b"), 2), "embed": Pool(("b", "c"), 1)}
    (said,) = plan.impossible([unit("a"), unit("c")], pools)
    assert said.startswith("pool chat has 2 hosts, of which 2 must serve at any moment: a can never be restarted")
    assert plan.impossible([unit("a", takes=["embed"])], pools) == []


def test_batches_keep_overlapping_pools_and_the_order():
    pools = {"chat": Pool(("a", "b", "c"), 2), "embed": Pool(("c", "d"), 1)}
    waiting = [unit(name) for name in "abcd"]
    assert plan.batches(waiting, pools, 9) == [[unit("a"), unit("d")], [unit("b")], [unit("c")]]
    assert plan.batch(waiting, pools, set("abd"), 9) == [unit("c")], "it does not serve, and takes nothing"
    assert plan.batch(waiting[1:], pools, set("abcd"), 9, out=[unit("a")]) == [unit("d")]


def test_shared_hosts_are_a_batch_of_their_own():
    waiting = [unit("a"), unit("b", "c"), unit("d")]
    found = plan.batches(waiting, {}, 2)
    assert found == [[unit("a"), unit("d")], [unit("b", "c")]]


def test_random_fleets_keep_their_minimums_and_lose_no_host():
    chance = random.Random(15)
    for _round in range(1000):
        hosts = ["h%d" % number for number in range(chance.randint(1, 24))]
        served = {
            "p%d" % number: chance.sample(hosts, chance.randint(1, len(hosts)))
            for number in range(chance.randint(0, 5))
        }
        pools = plan.pools(served, chance.choice([None, 0, 1, "50%", "90%"]))
        together = [chance.sample(hosts, 2) for _pair in range(chance.randint(0, 2)) if len(hosts) > 2]
        changing = chance.sample(hosts, chance.randint(1, len(hosts)))
        takes = {host: [pool for pool in served if chance.random() < 0.8] for host in changing}
        units = plan.units(changing, together, takes)
        if plan.impossible(units, pools):
            continue
        width = chance.randint(1, 8)
        found = plan.batches(units, pools, width)
        assert sorted(one for chosen in found for one in chosen) == sorted(units)
        for chosen in found:
            assert len(chosen) == 1 or sum(len(one.hosts) for one in chosen) <= width
            for name, pool in pools.items():
                out = {host for one in chosen if name in one.takes for host in one.hosts}
                assert len(set(pool.hosts) - out) >= pool.minimum or not out & set(pool.hosts)
