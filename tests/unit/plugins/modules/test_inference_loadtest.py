# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module makes of a run; the run itself has its own tests, of module_utils/endpoint/loadtest.py."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint import loadtest
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed
from ansible_collections.gpufleet.inference.plugins.modules import inference_loadtest

GIVEN = {"url": "http://127.0.0.1:1", "models": ["a"]}


def test_a_result(monkeypatch: pytest.MonkeyPatch, run_module: Any) -> None:
    monkeypatch.setattr(
        loadtest, "run", lambda params, *more: {"changed": False, "report": ["%d users" % params["users"]]}
    )
    result = run_module(inference_loadtest.main, {**GIVEN, "users": 8})
    assert (result["changed"], result["report"]) == (False, ["8 users"])


def test_a_failure(monkeypatch: pytest.MonkeyPatch, run_module: Any) -> None:
    def fail(*words: Any) -> Any:
        raise Failed("no model")

    monkeypatch.setattr(loadtest, "run", fail)
    assert run_module(inference_loadtest.main, GIVEN)["msg"] == "no model"
