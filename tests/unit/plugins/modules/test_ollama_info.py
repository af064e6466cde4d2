# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module makes of what was read; that is tested beside module_utils/ollama/info.py."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import info
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed
from ansible_collections.gpufleet.inference.plugins.modules import ollama_info


def test_it_never_changes_anything(monkeypatch: pytest.MonkeyPatch, run_module: Any) -> None:
    monkeypatch.setattr(
        info, "read", lambda params, *more: {"changed": False, "running": False, "unit": params["name"], "msg": "m"}
    )
    result = run_module(ollama_info.main, {"name": "x"})
    assert (result["changed"], result["running"], result["unit"]) == (False, False, "x")


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, run_module: Any) -> None:
    def fail(*words: Any) -> Any:
        raise Failed("nobody answers")

    monkeypatch.setattr(info, "read", fail)
    result = run_module(ollama_info.main, {})
    assert (result["failed"], result["msg"]) == (True, "nobody answers")
