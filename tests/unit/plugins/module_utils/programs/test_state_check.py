# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer of a host to the question whether it is in its declared state."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Dict

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import state_check


class Differs(Exception):
    pass


class Refused(Exception):
    pass


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`ask(result)`: the answer where the function gives this result, raises it, or warns of it."""

    def ask(found: Any, *warned: str) -> Dict[str, Any]:
        def function(params: Dict[str, Any], check_mode: bool, warn: Any) -> Any:
            assert params == {"name": "x"} and check_mode is True
            for text in warned:
                warn(text)
            if isinstance(found, BaseException):
                raise found
            return found

        module = ModuleType("asked")
        module.__dict__["report"] = function
        monkeypatch.setitem(sys.modules, "asked", module)
        return state_check.check("asked", "report", {"name": "x"})

    return ask


def test_the_states(ask: Any) -> None:
    result = {"changed": False, "msg": "ok"}
    assert ask(result) == {"state": "converged", "why": "", "result": result}
    result = {"changed": True, "msg": "would restart"}
    assert ask(result) == {"state": "differs", "why": "would restart", "result": result}
    assert ask({"changed": True})["why"] == ""
    assert ask(Differs("x.service")) == {"state": "differs", "why": "x.service", "result": None}
    assert ask(Refused("no GPU 9")) == {"state": "refused", "why": "no GPU 9", "result": None}


def test_what_nobody_expects_is_a_traceback(ask: Any) -> None:
    answer = ask(ValueError("odd"))
    assert (answer["state"], answer["result"]) == ("failed", None)
    assert answer["why"].startswith("Traceback") and answer["why"].endswith("ValueError: odd\n")


def test_a_module_that_cannot_be_imported_is_a_failure() -> None:
    answer = state_check.check("nowhere.at_all", "report", {})
    assert answer["state"] == "failed" and "ModuleNotFoundError" in answer["why"]


def test_warnings_are_part_of_the_result(ask: Any) -> None:
    assert ask({"changed": False}, "look", "out")["result"]["warnings"] == ["look", "out"]
    assert "warnings" not in ask({"changed": False})["result"]


def test_several_calls_end_with_the_first_that_is_not_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("asked")
    module.__dict__["report"] = lambda params, check_mode, warn: {"changed": params["changed"]}
    monkeypatch.setitem(sys.modules, "asked", module)
    calls = [["asked", "report", {"changed": changed}] for changed in (False, False, True, False)]
    assert [answer["state"] for answer in state_check.check_all(calls)] == ["converged", "converged", "differs"]


def test_the_end_of_the_process_is_not_an_answer(ask: Any) -> None:
    with pytest.raises(SystemExit):
        ask(SystemExit(3))
