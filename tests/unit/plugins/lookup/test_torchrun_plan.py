# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup and the filter as a playbook has them, and what the action plugin hands on."""

from __future__ import annotations

import pytest
import yaml
from ansible.errors import AnsibleError

from ansible_collections.gpufleet.inference.plugins.action import torchrun_facts as action
from ansible_collections.gpufleet.inference.plugins.filter.torchrun_verdict import FilterModule
from ansible_collections.gpufleet.inference.plugins.lookup import torchrun_plan


def facts(number):
    address = {"address": "10.1.0.%d" % number, "prefix": 24}
    card = {"name": "eth0", "up": True, "loopback": False, "mtu": 1500, "speed_mbps": None, "addresses": [address]}
    return {
        "hostname": "gpu%d" % number, "interfaces": [card], "own_names": {}, "venv": None, "torch": None, "code": None,
        "gpus": {"count": 0, "fault": None, "nvlink": False, "devices": []}, "rdma": [],
        "listener": {"token": "t%d" % number, "port": 40000, "busy": {}},
    }  # fmt: skip


class Lookup(torchrun_plan.LookupModule):
    """Takes its defaults from its documentation, as Ansible's loader would have it do."""

    def set_options(self, task_keys=None, var_options=None, direct=None):
        documented = yaml.safe_load(torchrun_plan.DOCUMENTATION)["options"]
        defaults = {name: option.get("default") for name, option in documented.items() if name != "_terms"}
        assert set(defaults) == set(torchrun_plan.OPTIONS)
        self._options = {**defaults, **(direct or {})}


@pytest.fixture
def lookup():
    hostvars = {"gpu%d" % n: {"ansible_facts": {"torchrun": facts(n)}} for n in (1, 2)}
    hostvars["gpu3"] = {"ansible_facts": {}}
    variables = {"hostvars": hostvars, "inventory_hostname": "gpu2", "ansible_play_hosts_all": ["gpu1", "gpu2"]}
    return lambda *terms, **options: Lookup().run(list(terms), variables, **options)[0]


def test_the_hosts_of_the_play(lookup):
    made = lookup()
    assert (made["host"], list(made["nodes"]), made["master_addr"]) == ("gpu2", ["gpu1", "gpu2"], "10.1.0.1")


def test_hosts_and_options_by_name(lookup):
    made = lookup(["gpu2", "gpu1"], nproc_per_node=3)
    assert (made["master"], made["world_size"], made["errors"]) == ("gpu2", 6, [])


def test_a_host_without_facts_is_a_finding(lookup):
    assert "gpu3 has no facts" in lookup("gpu1", "gpu3")["errors"][0]


@pytest.mark.parametrize(
    "terms, options, message",
    [
        (["gpu9"], {}, "the inventory has no host gpu9"),
        ([], {"network": "x"}, "'x' does not appear to be an IPv4 or IPv6 network"),
        ([], {"min_nodes": 3}, "min_nodes: 3 of 2 hosts: expected 1 to 2"),
    ],
)
def test_errors(lookup, terms, options, message):
    with pytest.raises(AnsibleError, match=message):
        lookup(*terms, **options)


def test_verdict(lookup):
    verdict = FilterModule().filters()["torchrun_verdict"]
    assert verdict({"gpu1": {"verdict": "ok", "msg": "m"}}, lookup())["name"] == "ok"
    with pytest.raises(AnsibleError, match="expected a dictionary of results by host"):
        verdict([], {})


def test_what_a_host_is_handed_of_its_peers():
    hostvars = {"gpu1": {"ansible_facts": {"torchrun": facts(1)}}, "gpu2": {"ansible_facts": {}}, "gpu3": {}}
    assert action.known(["gpu1", "gpu2", "gpu3", "gpu4"], hostvars, 29500) == [
        {"name": "gpu1", "addresses": ["10.1.0.1"], "rendezvous": 29500, "token": "t1", "port": 40000, "busy": {}}
    ]
    assert action.known([{"name": "x"}], {}, 1) == [{"name": "x"}]


# --- a host that says what it likes


@pytest.mark.parametrize(
    "odd",
    [
        {"listener": {"token": "t", "port": "many", "busy": {}}},
        {"listener": {"token": "t"}},
        {"listener": ["t"]},
        {"interfaces": None},
        {"interfaces": [{"name": "eth0", "up": True, "loopback": False, "addresses": [{"address": "x", "prefix": 1}]}]},
    ],
)
def test_odd_facts_of_a_host_are_no_failure_of_its_peers(odd):
    hostvars = {
        "gpu1": {"ansible_facts": {"torchrun": {**facts(1), **odd}}},
        "gpu2": {"ansible_facts": {"torchrun": facts(2)}},
    }
    assert [peer["name"] for peer in action.known(["gpu1", "gpu2"], hostvars, 29500)] == ["gpu2"]


def test_odd_facts_are_an_error_that_names_the_hosts():
    hostvars = {"gpu1": {"ansible_facts": {"torchrun": {"interfaces": "\x1b[2J"}}}}
    variables = {"hostvars": hostvars, "inventory_hostname": "gpu1"}
    with pytest.raises(AnsibleError, match="torchrun_plan: the facts of one of gpu1 are not those of"):
        Lookup().run(["gpu1"], variables)


@pytest.mark.parametrize(
    "odd",
    [
        {"allreduce": [{}]},
        {"allreduce": [{"MiB": "x"}, {"MiB": 1}]},
        {"failures": [{}]},
        {"failures": 3},
        {"rounds": [1]},
        {"nccl": []},
        {"nccl": {"via": []}},
        {"pairs": [{"a": 1}]},
        {"restarts": "x"},
    ],
)
def test_an_odd_result_is_an_error_or_nothing(lookup, odd):
    verdict = FilterModule().filters()["torchrun_verdict"]
    try:
        assert verdict({"gpu1": {"verdict": "failed", "msg": "m", **odd}}, lookup())["name"] == "failed"
    except AnsibleError as error:
        assert "a host's result is not one of gpufleet.inference.torchrun_job" in str(error)


def test_a_verdict_is_safe_for_a_terminal(lookup):
    verdict = FilterModule().filters()["torchrun_verdict"]
    told = verdict({"gpu1": {"verdict": "failed", "msg": "\x1b[2Jm\nfatal: [gpu2]: FAILED\x07" + "x" * 9999}}, lookup())
    assert told["lines"][1][:60].startswith("gpu1: m fatal: [gpu2]: FAILED?xxx")
    assert all(line.isprintable() and len(line) <= 2000 for line in [*told["lines"], told["text"]])


def test_a_plan_is_safe_for_a_terminal(lookup):
    odd = facts(1)
    odd["listener"]["busy"] = {"29500": "\x1b[2Jevil\nfatal: [gpu2]: FAILED"}
    odd["interfaces"][0]["name"] = "eth\x1b]0;title\x07"
    hostvars = {"gpu1": {"ansible_facts": {"torchrun": odd}}, "gpu2": {"ansible_facts": {"torchrun": facts(2)}}}
    made = Lookup().run(["gpu1", "gpu2"], {"hostvars": hostvars, "inventory_hostname": "gpu1"})[0]
    shown = [*made["text"].splitlines(), *made["errors"], *(one["text"] for one in made["findings"]), *made["matrix"]]
    assert any("evil fatal: [gpu2]: FAILED" in line for line in shown)
    assert all(line.isprintable() for line in shown)
