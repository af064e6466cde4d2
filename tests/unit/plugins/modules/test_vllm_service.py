# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: how its result is told, and what its options must be."""

from __future__ import annotations

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Outcome, ServiceError, Verdict
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import run as serving
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import service
from ansible_collections.gpufleet.inference.plugins.modules import vllm_service

GIVEN = {"venv": "/v", "instances": [{"name": "chat", "model": "/m"}]}


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
    outcome = Outcome(rolled_back=True, verdict=Verdict("stalled", "silence", {"silent_seconds": 9}))
    bring.raises = ServiceError("vllm@chat.service: stalled: silence. The previous state is restored.", outcome)
    result = run_module(vllm_service.main, GIVEN)
    assert result["failed"] and result["verdict"] == "stalled" and result["rolled_back"]
    assert result["evidence"] == {"silent_seconds": 9}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({**GIVEN, "dtype": "float7"}, "dtype"),
        ({**GIVEN, "nosuch": 1}, "nosuch"),
        ({"instances": [{"model": "/m"}]}, "name"),
        ({"instances": [{"name": "chat", "port": "many"}]}, "port"),
        ({"instances": [{"name": "chat", "max_modle_len": 5}]}, "max_modle_len"),
        ({"instances": [{"name": "chat", "state": "gone"}]}, "state"),
    ],
)
def test_wrong_options(run_module, bring, given, words):
    result = run_module(vllm_service.main, given)
    assert result["failed"] and words in result["msg"]


def test_an_instance_has_all_options_and_no_defaults_of_its_own():
    spec = vllm_service.argument_spec()
    instance = spec["instances"]["options"]
    assert set(instance) == {"name", *spec} - {"instances", "facts_timeout", "model_paths", "new_answers", "prove"}
    assert not [name for name, option in instance.items() if "default" in option], "else they would hide the call's"
    assert instance["api_key"]["no_log"] and instance["hf_token"]["no_log"]


def test_keys_are_in_no_result(run_module, bring):
    given = {"api_key": "key-of-all-1", "instances": [{"name": "chat", "api_key": "key-of-chat"}]}
    bring.does = lambda params, check_mode, warn: {"changed": False, "msg": "key-of-all-1 key-of-chat"}
    assert "key-of" not in str(run_module(vllm_service.main, given))


def test_what_is_documented_of_a_result_is_where_it_is():
    documented = yaml.safe_load(vllm_service.RETURN)
    assert set(documented) == set(serving.together({})) - {"changed"}
    assert {"generation", "fingerprint", "drain"} <= set(documented["instances"]["contains"])
