# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's variables in, the instances as the module takes them out."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.filter.vllm_instances import SHARING, instances
from ansible_collections.gpufleet.inference.plugins.modules import vllm_service

ROLE = Path(__file__).resolve().parents[4] / "roles/vllm"
DEFAULTS = {"user": "serve", "environment": {"A": "1", "B": "1"}}
CHAT = {"name": "chat", "model": "org/chat", "environment": {"B": "2"}}
BIG = {"name": "big", "model": "/m/big", "hosts": ["gpu1", "gpu2"], "network": "10.1.0.0/16", "user": "big"}
MODELS = [{"item": {"name": "org/chat"}, "path": "/srv/org/chat"}, {"item": {"name": "org/missing"}, "missing": True}]


def test_defaults_paths_and_keys_are_merged():
    found = instances([CHAT, {"name": "code", "model": "/m"}], DEFAULTS, "gpu1", MODELS, {"chat": "sesame"})
    assert found == [
        {
            "name": "chat",
            "user": "serve",
            "model": "/srv/org/chat",
            "served_model_name": ["org/chat"],
            "environment": {"A": "1", "B": "2"},
            "api_key": "sesame",
        },
        {"name": "code", "user": "serve", "model": "/m", "environment": {"A": "1", "B": "1"}},
    ]
    named = instances([dict(CHAT, served_model_name=["chat"])], {}, "gpu1", MODELS)
    assert named[0]["served_model_name"] == ["chat"]
    assert instances([{"name": "gone", "state": "absent"}], {}, "gpu1") == [{"name": "gone", "state": "absent"}]


def test_what_hosts_share_is_apart_until_it_is_absent():
    assert instances([CHAT, BIG], {}, "gpu1") == [CHAT]
    assert instances([CHAT, BIG], {}, "gpu1", planned={}) == [BIG]
    assert instances([CHAT, BIG], {}, "gpu3", planned={}) == []
    gone = instances([dict(BIG, state="absent")], {}, "gpu3")
    assert [one["name"] for one in gone] == ["big"] and not set(SHARING) & set(gone[0])


def test_the_plan_is_laid_under_the_environment():
    plan = {"nodes": [{"name": "gpu1", "address": "10.1.0.1"}], "node_rank": 0, "environment": {"NCCL": "x", "B": "0"}}
    (found,) = instances([dict(BIG, environment={"B": "2"})], DEFAULTS, "gpu1", planned={"big": plan})
    assert found["environment"] == {"NCCL": "x", "A": "1", "B": "2"} and found["nodes"] == plan["nodes"]
    assert not set(SHARING) & set(found) and found["user"] == "big"


@pytest.mark.parametrize("variable", ["vllm_instances", "vllm_defaults"])
def test_the_role_knows_every_option_of_an_instance(variable):
    """So that a misspelt key is refused by its name; keys stand apart from the instances."""
    spec = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text(encoding="utf-8"))
    known = spec["argument_specs"]["main"]["options"][variable]["options"]
    options = set(vllm_service.argument_spec()["instances"]["options"])
    planned = {"nodes", "node_rank", "restart"}
    expected = (options - {"api_key", "hf_token"} - planned) | set(SHARING)
    assert set(known) == (expected if variable == "vllm_instances" else expected - {"name"})


def test_the_role_calls_the_module_once_for_all_instances():
    calls = [
        task["gpufleet.inference.vllm_service"]
        for path in sorted((ROLE / "tasks").glob("*.yml"))
        for task in tasks(yaml.safe_load(path.read_text(encoding="utf-8")))
        if "gpufleet.inference.vllm_service" in task
    ]
    expected = ["{{ vllm_local }}", "{{ vllm_shared_planned }}", "{{ vllm_together }}"]
    assert [call.pop("instances") for call in calls] == expected and not any(calls)


def tasks(block):
    for task in block:
        yield task
        yield from tasks(task.get("block", []))
