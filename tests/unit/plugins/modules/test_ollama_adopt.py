# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: how its result and its errors are told."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import adopt
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import ManagerError
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.modules import ollama_adopt


def test_the_result_is_given_on(run_module, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        adopt,
        "adopt",
        lambda params, check_mode, warn: seen.update(params) or {"changed": False, "variables": {"a": 1}},
    )
    result = run_module(ollama_adopt.main, {"name": "ollama-lab"})
    assert (result["failed"], result["changed"], result["variables"]) == (False, False, {"a": 1})
    assert seen == {"name": "ollama-lab", "facts_timeout": 10.0}


@pytest.mark.parametrize("error", [Refused("there is no unit x"), ManagerError("there is no systemctl")])
def test_errors_are_told(run_module, monkeypatch, error):
    def fails(params, check_mode, warn):
        raise error

    monkeypatch.setattr(adopt, "adopt", fails)
    result = run_module(ollama_adopt.main)
    assert result["failed"]
    assert result["msg"].startswith(str(error))
