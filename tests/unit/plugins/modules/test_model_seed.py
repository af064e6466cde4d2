# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module makes of an outcome, and what it must be given; what is done is tested with module_utils."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import seeding as of_ollama
from ansible_collections.gpufleet.inference.plugins.module_utils.seeding import model as of_hubs
from ansible_collections.gpufleet.inference.plugins.module_utils.seeding import offer
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.modules import model_seed

TOKEN = "0" * 32
MODEL = {"name": "o/a", "source": "huggingface", "revision": None, "root": "/var/lib/gpufleet/models"}
REST = {"peers": None, "address": None, "port": 11435, "idle_timeout": 600, "unit": "ollama", "host": None}
OFFERED = {"changed": True, "msg": "offers a", "models": {"a": "d"}, "url": "http://192.0.2.1:1", "unit": "u"}


@pytest.fixture
def seed(monkeypatch: pytest.MonkeyPatch, run_module: Any) -> Any:
    """`seed(outcome, …)` runs the module whose work ends so; `.given` is what its work was passed."""

    def seed(outcome: Any, given: Any = None, **more: Any) -> Any:
        def converge(params: Any, check_mode: bool, warn: Any, readers: Any) -> Any:
            seed.given = {name: value for name, value in params.items() if not name.startswith("_")}, check_mode
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(offer, "converge", converge)
        return run_module(model_seed.main, given or {"models": [{"name": "o/a"}], "token": TOKEN}, **more)

    return seed


@pytest.mark.parametrize("check", [True, False])
def test_a_result(seed: Any, check: bool) -> None:
    result = seed(OFFERED, check=check)
    assert OFFERED.items() <= result.items() and not result["failed"]
    assert seed.given == ({"state": "started", "token": TOKEN, "models": [MODEL], **REST}, check)
    assert TOKEN not in str(result)


def test_what_is_needed(seed: Any) -> None:
    assert "models, token" in seed(None, {"port": 1})["msg"]
    ended = {"changed": False, "models": {}, "msg": "no unit", "unit": "u"}
    assert seed(ended, {"state": "stopped"})["msg"] == "no unit"
    assert "value of state must be one of" in seed(None, {"state": "running"})["msg"]


def test_what_a_model_must_be_given_by(seed: Any) -> None:
    given = {"token": TOKEN, "models": [{"source": "huggingface"}]}
    assert "required arguments: name" in seed(None, given)["msg"]
    given["models"] = [{"name": "o/a", "source": "git"}]
    assert "value of source must be one of: huggingface, modelscope, ollama" in seed(None, given)["msg"]


def test_a_wrong_declaration_fails(seed: Any) -> None:
    result = seed(Refused("token: expected"))
    assert (result["failed"], result["changed"]) == (True, False)
    assert result["msg"] == "token: expected (nothing was changed)"


class NoUnit:
    """A systemd that runs nothing."""

    def show(self, unit: str) -> Any:
        return {"ActiveState": "inactive"}


@pytest.mark.parametrize(
    "sources, said",
    [(["ollama"], "does not seed: asked of ollama"), (["modelscope", "huggingface"], "does not seed: asked of hubs")],
)
def test_who_is_asked_what_is_offered(
    monkeypatch: pytest.MonkeyPatch, run_module: Any, sources: Any, said: str
) -> None:
    def read(whom: str) -> Any:
        def refuse(params: Any, system: Any) -> Any:
            raise Failed("asked of " + whom)

        return refuse

    monkeypatch.setattr(of_ollama, "read", read("ollama"))
    monkeypatch.setattr(of_hubs, "read", read("hubs"))
    monkeypatch.setattr(offer, "System", NoUnit)
    models = [{"name": "o/a", "source": source} for source in sources]
    result = run_module(model_seed.main, {"models": models, "token": TOKEN}, warnings=[said])
    assert result["msg"] == said


def test_models_of_both_kinds_need_two_calls(monkeypatch: pytest.MonkeyPatch, run_module: Any) -> None:
    monkeypatch.setattr(offer, "System", NoUnit)
    models = [{"name": "o/a"}, {"name": "a", "source": "ollama"}]
    result = run_module(model_seed.main, {"models": models, "token": TOKEN})
    assert result["failed"] and "those of Ollama and those of a hub need a call" in result["msg"]
