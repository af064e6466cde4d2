# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What model_seed and ollama_seed make of an outcome; what is done is tested beside their parts of module_utils."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import seeding as of_ollama
from ansible_collections.gpufleet.inference.plugins.module_utils.seeding import model as of_hubs
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.modules import model_seed, ollama_seed

TOKEN = "0" * 32
MODEL = {"name": "o/a", "source": "huggingface", "revision": None, "root": "/var/lib/gpufleet/models"}
COMMON = {"state": "started", "token": TOKEN, "peers": None, "address": None, "idle_timeout": 600}


@pytest.fixture(params=["model_seed", "ollama_seed"])
def seed(request: Any, monkeypatch: pytest.MonkeyPatch, run_module: Any) -> Any:
    """`seed(outcome, …)` runs a module whose work ends so; `.told` is what its work was told."""
    module, work, models = {
        "model_seed": (model_seed, of_hubs, [{"name": "o/a"}]),
        "ollama_seed": (ollama_seed, of_ollama, ["a"]),
    }[request.param]

    def seed(outcome: Any, given: Any = None, **more: Any) -> Any:
        def bring(params: Any, check_mode: bool, warn: Any) -> Any:
            seed.told = {name: value for name, value in params.items() if not name.startswith("_")}, check_mode
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(work, "converge", bring)
        return run_module(module.main, {"models": models, "token": TOKEN} if given is None else given, **more)

    seed.module = request.param
    return seed


OFFERED = {"changed": True, "msg": "offers a", "models": {"a": "d"}, "url": "http://192.0.2.1:1", "unit": "u"}


@pytest.mark.parametrize("check", [True, False])
def test_a_result(seed: Any, check: bool) -> None:
    result = seed(OFFERED, check=check)
    assert OFFERED.items() <= result.items() and not result["failed"]
    own = {"model_seed": {"models": [MODEL], "port": 11436}}
    own["ollama_seed"] = {"models": ["a"], "port": 11435, "name": "ollama", "host": None}
    assert seed.told == ({**COMMON, **own[seed.module]}, check)
    assert TOKEN not in str(result)


def test_what_is_needed(seed: Any) -> None:
    assert "models, token" in seed(None, {})["msg"]
    ended = {"changed": False, "models": {}, "msg": "no unit", "unit": "u"}
    assert seed(ended, {"state": "stopped"})["msg"] == "no unit"
    assert "value of state must be one of" in seed(None, {"state": "running"})["msg"]


def test_a_wrong_declaration_fails(seed: Any) -> None:
    result = seed(Refused("token: expected"))
    assert (result["failed"], result["changed"]) == (True, False)
    assert result["msg"] == "token: expected (nothing was changed)"
