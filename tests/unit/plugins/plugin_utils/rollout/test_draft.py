# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan from what was found on the hosts, and what a person may not give."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import ENGINES
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.draft import draft
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.given import Given, Refused
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.inventory import Inventory
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.plan import Unit
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.state import HostState, Planned, State

HOSTS = ["a", "b", "c"]
ROW = {"service": "ollama", "engine": "ollama", "why": "X changes", "restart": True, "restarts": []}
INVENTORY = Inventory({"ollama": HOSTS}, {host: {"ollama_models": ["chat"]} for host in HOSTS})
CHANGES, SAME = {"state": "differs", "services": [ROW]}, {"state": "as declared", "services": []}


def given(hostvars=None, **variables):
    return Given({"hostvars": hostvars or dict.fromkeys(HOSTS, variables), **variables}, lambda value: value)


def drafted(*looks, last=None, forks=5, **variables):
    return draft(given(**variables), INVENTORY, ENGINES, dict(zip(HOSTS, looks)), last or State(), forks)


def test_a_plan():
    found = drafted(SAME, CHANGES, CHANGES, last=State(measured={"b": {"ollama": [2.0]}}))
    assert found.fields["units"] == [[["b"], ["chat"]], [["c"], ["chat"]]]
    assert (found.fields["canary"], found.fields["as_declared"]) == (["b"], ["a"])
    assert [found.fields["services"][host][0]["basis"] for host in "bc"] == [
        "last restart here",
        "restarts of other hosts",
    ]
    assert not found.resumed and found.remarks == []


@pytest.mark.parametrize(("wish", "forks", "width"), [(2, 5, 2), (9, 2, 2), ("100%", 3, 3)])
def test_no_more_hosts_at_a_time_than_forks(wish, forks, width):
    found = drafted(CHANGES, CHANGES, CHANGES, forks=forks, rollout_width=wish, rollout_min_ready=0)
    assert found.fields["width"] == width
    assert found.remarks == ["no more than 2 hosts at a time, as Ansible has 2 forks (--forks)"] * (wish == 9)


def in_hand(status):
    planned = Planned([Unit((host,)) for host in HOSTS], ["a"], {}, 1, 0, None, [], {"a": [ROW]}, [])
    return State("r1", plan=planned, hosts={"a": HostState(status), "b": HostState(), "c": HostState()})


@pytest.mark.parametrize("status", ["admitted", "applied"])
def test_a_canary_that_was_changed_but_not_watched_is_in_hand_again(status):
    found = drafted(SAME, CHANGES, CHANGES, last=in_hand(status))
    assert found.resumed and found.fields["canary"] == ["a"] and found.fields["as_declared"] == []
    assert [unit[0] for unit in found.fields["units"]] == [["a"], ["b"], ["c"]]


def test_another_host_that_was_changed_is_done():
    last = in_hand("done")
    last.hosts["b"] = HostState("applied")
    found = drafted(SAME, SAME, CHANGES, last=last)
    assert found.resumed and found.fields["as_declared"] == ["a", "b"]


def test_a_host_in_hand_cannot_be_left_out():
    with pytest.raises(Refused, match="b was being changed when the last run ended: include it"):
        draft(given(), INVENTORY, ENGINES, {"a": CHANGES}, State("r1", hosts={"b": HostState("applied")}), 5)


@pytest.mark.parametrize(
    ("hostvars", "extra", "said"),
    [
        ({"a": {"rollout_soak": 5}, "b": {}, "c": {}}, {}, "rollout_soak: a and b differ in it"),
        ({"a": {}, "b": {}, "c": {"rollout_width": 5}}, {}, "rollout_width: a and c differ in it"),
        ({"a": {}, "b": {"rollout_sook": 5}, "c": {}}, {}, "rollout_sook: no such variable"),
        ({host: {"rollout_check": 1} for host in HOSTS}, {"rollout_check": 1}, "rollout_check: no such variable"),
    ],
)
def test_the_variables_of_every_host_are_checked(hostvars, extra, said):
    with pytest.raises(Refused, match=said):
        given(hostvars).check(HOSTS, extra)


def test_alike_variables_are_accepted():
    given({host: {"rollout_soak": 5, "rollout_look": host, "other": host} for host in HOSTS}).check(HOSTS, {})
