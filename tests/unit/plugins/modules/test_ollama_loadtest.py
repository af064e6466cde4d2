# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module makes of a run; that is tested beside module_utils/ollama/loadtest.py."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import loadtest
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed
from ansible_collections.gpufleet.inference.plugins.modules import ollama_loadtest


def test_a_result(monkeypatch: pytest.MonkeyPatch, run_module: Any) -> None:
    monkeypatch.setattr(
        loadtest, "run", lambda params, *more: {"changed": False, "report": ["%d users" % params["users"]]}
    )
    result = run_module(ollama_loadtest.main, {"models": ["a"], "users": 8})
    assert (result["changed"], result["report"]) == (False, ["8 users"])


def test_a_failure(monkeypatch: pytest.MonkeyPatch, run_module: Any) -> None:
    def fail(*words: Any) -> Any:
        raise Failed("no model")

    monkeypatch.setattr(loadtest, "run", fail)
    assert run_module(ollama_loadtest.main, {"models": ["a"]})["msg"] == "no model"
