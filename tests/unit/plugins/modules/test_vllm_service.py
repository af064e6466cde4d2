# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: how its result is told, and what its options must be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import engine
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import service
from ansible_collections.gpufleet.inference.plugins.modules import vllm_service

ROLE = Path(__file__).resolve().parents[4] / "roles/vllm"
GIVEN = {"name": "chat", "venv": "/v", "model": "/m"}


@pytest.fixture
def bring(replaced):
    return replaced(service)


def test_options_and_check_mode_are_given_on(run_module, bring):
    seen = {}

    def does(params, check_mode, warn):
        seen.update(params, check_mode=check_mode)
        warn("look out")
        return {"changed": True}

    bring.does = does
    result = run_module(
        vllm_service.main, {**GIVEN, "tensor_parallel_size": 2, "max_model_len": 99}, check=True, warnings=("look out",)
    )
    assert result["changed"]
    assert (seen["tensor_parallel_size"], seen["max_model_len"], seen["visible_devices"]) == ("2", "99", "all")
    assert seen["check_mode"] is True


def test_what_is_refused_changes_nothing(run_module, bring):
    bring.raises = Refused("no GPU 9")
    result = run_module(vllm_service.main, GIVEN)
    assert result["failed"] and result["msg"] == "no GPU 9 (nothing was changed)"


def test_a_proof_that_failed_tells_all(run_module, bring):
    outcome = engine.Outcome(rolled_back=True, verdict=engine.Verdict("stalled", "silence", {"silent_seconds": 9}))
    bring.raises = engine.ServiceError("vllm@chat.service: stalled: silence. The previous state is restored.", outcome)
    result = run_module(vllm_service.main, GIVEN)
    assert result["failed"] and result["verdict"] == "stalled" and result["rolled_back"]
    assert result["evidence"] == {"silent_seconds": 9}


@pytest.mark.parametrize(
    "given, words",
    [
        ({"name": "chat"}, "venv"),
        ({"name": "chat", "venv": "/v"}, "model"),
        ({"venv": "/v", "model": "/m"}, "name"),
        ({**GIVEN, "dtype": "float7"}, "dtype"),
        ({**GIVEN, "port": "many"}, "port"),
        ({**GIVEN, "nosuch": 1}, "nosuch"),
    ],
)
def test_wrong_options(run_module, bring, given, words):
    result = run_module(vllm_service.main, given)
    assert result["failed"] and words in result["msg"]


def test_absent_needs_a_name_alone(run_module, bring):
    assert not run_module(vllm_service.main, {"name": "chat", "state": "absent"})["failed"]


def test_the_role_gives_every_option_on():
    tasks = yaml.safe_load((ROLE / "tasks/main.yml").read_text(encoding="utf-8"))
    tasks = [task["gpufleet.inference.vllm_service"] for task in tasks if "gpufleet.inference.vllm_service" in task]
    given = tasks[0]
    assert tasks == [given] * 3, "for an instance of one host, a look at one of several, and its change"
    assert set(given) == set(vllm_service.argument_spec())
    beside = {"name", "venv", "model", "served_model_name", "api_key", "hf_token"}
    assert {name: text for name, text in given.items() if name not in beside} == {
        name: "{{ item.%s | default(omit) }}" % name for name in given if name not in beside
    }
    assert "item." not in given["hf_token"], "a secret in a loop's item is shown"
