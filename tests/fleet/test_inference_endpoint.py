# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module inference_endpoint on a host with a released Ollama; with vLLM it is tried in test_vllm_service.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/ollama"))

import hostsetup

URL = "http://127.0.0.1:11434/v1"


@pytest.fixture(scope="module")
def served(lab):
    host = lab.reset("gpu1")
    hostsetup.install(host)
    hostsetup.wait_for_api(host)
    yield host
    hostsetup.uninstall(host)
    lab.reset(host)


def test_ollama_is_ready_and_generates(served, module):
    result = module(served, "inference_endpoint", {"url": URL, "timeout": 3})
    assert result["failed"]
    assert result["verdict"] == "model_missing", "a store without models is not ready"
    hostsetup.add_models(served, "m8b")
    result = module(served, "inference_endpoint", {"url": URL, "model": "m8b", "smoke": True, "tokens": 8})
    assert not result["failed"], result["msg"]
    assert (result["changed"], result["model"]) == (False, "m8b")
    assert result["tokens_per_second"] > 0
    assert (result["running"], result["waiting"]) == (None, None)


def test_ollama_cannot_tell_that_it_is_idle(served, module):
    hostsetup.add_models(served, "m8b")
    result = module(served, "inference_endpoint", {"url": URL, "state": "idle", "timeout": 5})
    assert result["failed"]
    assert result["verdict"] == "no_metrics"


def test_nobody_there(served, module):
    result = module(served, "inference_endpoint", {"url": "http://127.0.0.1:9", "timeout": 1})
    assert result["failed"]
    assert "Connection refused" in result["msg"]
