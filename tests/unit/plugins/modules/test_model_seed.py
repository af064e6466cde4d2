# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module makes of an outcome; what is done is tested beside module_utils/model_seed.py."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils import model_seed as seeding
from ansible_collections.gpufleet.inference.plugins.modules import model_seed

ARGUMENTS = {"models": [{"name": "o/a"}], "token": "0" * 32}


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> Any:
    def end(what: Any) -> None:
        def bring(params: Any, check_mode: bool) -> Any:
            if isinstance(what, Exception):
                raise what
            return what

        monkeypatch.setattr(seeding, "bring", bring)

    return end


def test_a_result(outcome: Any, run_module: Any) -> None:
    outcome({"changed": True, "msg": "offers a", "models": {"a": "d"}, "url": "http://192.0.2.1:1", "unit": "u"})
    assert run_module(model_seed.main, ARGUMENTS)["models"] == {"a": "d"}


def test_what_is_needed(outcome: Any, run_module: Any) -> None:
    assert "models, token" in run_module(model_seed.main, {})["msg"]
    outcome({"changed": False, "models": {}, "msg": "no unit", "unit": "u"})
    assert not run_module(model_seed.main, {"state": "stopped"}).get("failed")


def test_a_wrong_declaration_fails(outcome: Any, run_module: Any) -> None:
    outcome(seeding.SourceError("token: expected"))
    assert run_module(model_seed.main, ARGUMENTS)["failed"]


def test_a_host_that_cannot_seed_is_no_failure(outcome: Any, run_module: Any) -> None:
    outcome(seeding.Unable("cannot listen"))
    result = run_module(model_seed.main, ARGUMENTS, warnings=("does not seed: cannot listen",))
    assert (result.get("failed", False), result["changed"], result["models"]) == (False, False, {})
    assert result["msg"] == "does not seed: cannot listen"
