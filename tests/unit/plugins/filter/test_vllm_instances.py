# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's variables in, the instances as the module takes them out."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from ansible_collections.gpufleet.inference.plugins.filter.vllm_instances import SHARING, instances
from ansible_collections.gpufleet.inference.plugins.modules import vllm_service

ROLE = Path(__file__).resolve().parents[4] / "roles/vllm"
CHAT = {"name": "chat", "model": "org/chat", "environment": {"B": "2"}}
BIG = {"name": "big", "model": "/m/big", "hosts": ["gpu1", "gpu2"], "network": "10.1.0.0/16", "user": "big"}


def test_instances_of_one_host_are_passed_as_they_are():
    gone = {"name": "gone", "state": "absent"}
    assert instances([CHAT, gone], "gpu1", "present", {"A": "1"}) == [CHAT, gone]


def test_shared_instances_are_separate_until_they_are_absent():
    assert instances([CHAT, BIG], "gpu1") == [CHAT]
    assert instances([CHAT, BIG], "gpu1", planned={}) == [BIG]
    assert instances([CHAT, BIG], "gpu3", planned={}) == []
    for gone in (instances([dict(BIG, state="absent")], "gpu3"), instances([BIG], "gpu3", "absent")):
        assert [one["name"] for one in gone] == ["big"] and not set(SHARING) & set(gone[0])


def test_the_inventory_overrides_the_environment_of_the_plan():
    plan = {"nodes": [{"name": "gpu1", "address": "10.1.0.1"}], "node_rank": 0, "environment": {"NCCL": "x", "B": "0"}}
    declared = [dict(BIG, environment={"B": "2"})]
    (found,) = instances(declared, "gpu1", environment={"A": "1", "B": "1"}, planned={"big": plan})
    assert found["environment"] == {"NCCL": "x", "A": "1", "B": "2"} and found["nodes"] == plan["nodes"]
    assert not set(SHARING) & set(found) and found["user"] == "big"


def test_the_role_knows_every_option_of_an_instance():
    """So that a misspelt key is rejected by name, before a host is contacted."""
    spec = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text(encoding="utf-8"))
    known = spec["argument_specs"]["main"]["options"]["vllm_instances"]["options"]
    options = set(vllm_service.argument_spec()["instances"]["options"])
    assert set(known) == (options - {"nodes", "node_rank", "restart"}) | set(SHARING)
    assert known["api_key"]["no_log"] and known["hf_token"]["no_log"]


def test_the_role_calls_the_module_once_for_all_instances():
    calls = [
        task["gpufleet.inference.vllm_service"]
        for path in sorted((ROLE / "tasks").glob("*.yml"))
        for task in tasks(yaml.safe_load(path.read_text(encoding="utf-8")))
        if "gpufleet.inference.vllm_service" in task
    ]
    assert [list(call) for call in calls] == [["instances", "venv"]] * 3, (
        "those of the host, a check of shared ones, a change"
    )
    text = "".join(path.read_text(encoding="utf-8") for path in (ROLE / "tasks").glob("*.yml"))
    assert not re.search(r"loop:[^#]*vllm_(local|instances)", text)


def tasks(block):
    for task in block:
        yield task
        yield from tasks(task.get("block", []))
