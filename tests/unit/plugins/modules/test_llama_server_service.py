# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: how its result is reported, what its options are, and that check mode writes nothing."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import model
from ansible_collections.gpufleet.inference.plugins.module_utils.llama_server import service
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.modules import llama_server_service


def test_options_and_check_mode_are_passed_on(run_module, monkeypatch):
    seen = {}

    def converge(params, check_mode, warn):
        seen.update(params, check_mode=check_mode)
        warn("look out")
        return {"changed": True}

    monkeypatch.setattr(service, "converge", converge)
    instance = {"name": "chat", "ctx_size": "4096", "api_key": "sesame-key"}
    result = run_module(llama_server_service.main, {"instances": [instance]}, check=True, warnings=("look out",))
    assert result["changed"] and "sesame-key" not in str(result)
    assert seen["instances"][0]["ctx_size"] == 4096 and seen["check_mode"] is True
    assert seen["name"] == "llama-server"


def test_what_is_refused_changes_nothing(run_module, monkeypatch):
    def converge(params, check_mode, warn):
        raise Refused("port: 0")

    monkeypatch.setattr(service, "converge", converge)
    result = run_module(llama_server_service.main)
    assert result["failed"] and result["msg"] == "port: 0 (nothing was changed)"


def test_a_verification_that_failed_reports_all(run_module, monkeypatch):
    outcome = model.Outcome(rolled_back=True, verdict=model.Verdict("stalled", "silence", {"silent_seconds": 9}))

    def converge(params, check_mode, warn):
        raise model.ServiceError("llama-server@chat.service: stalled: silence.", outcome)

    monkeypatch.setattr(service, "converge", converge)
    result = run_module(llama_server_service.main)
    assert result["failed"] and result["verdict"] == "stalled" and result["rolled_back"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"instances": [{"model": "/m"}]}, "name"),
        ({"instances": [{"name": "chat", "ctxsize": 1}]}, "ctxsize"),
        ({"port": "many"}, "port"),
        ({"nosuch": 1}, "nosuch"),
    ],
)
def test_wrong_options(run_module, given, words):
    result = run_module(llama_server_service.main, given)
    assert result["failed"] and words in result["msg"]
