# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module makes of an outcome; what is done is tested beside module_utils/ollama/models.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import models
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.modules import ollama_model

ARGUMENTS = {"models": [{"name": "a"}]}


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> Any:
    def end(what: Any) -> None:
        def bring(params: Any, check_mode: bool, warn: Any) -> Any:
            if isinstance(what, Exception):
                raise what
            return what

        monkeypatch.setattr(models, "converge", bring)

    return end


def test_a_result(outcome: Any, run_module: Any) -> None:
    outcome({"changed": True, "msg": "a pulled", "models": [], "diff": {"before": "", "after": ""}})
    assert run_module(ollama_model.main, ARGUMENTS)["msg"] == "a pulled"


def test_a_wrong_declaration(outcome: Any, run_module: Any) -> None:
    outcome(Refused("a: is wrong"))
    result = run_module(ollama_model.main, ARGUMENTS)
    assert (result["failed"], result["changed"], result["msg"]) == (True, False, "a: is wrong (nothing was changed)")


def test_a_failure_keeps_what_was_done(outcome: Any, run_module: Any) -> None:
    outcome(Failed("a: broke", {"changed": True, "models": [], "msg": "x"}))
    result = run_module(ollama_model.main, ARGUMENTS)
    assert (result["failed"], result["changed"], result["msg"]) == (True, True, "a: broke")


def test_told_before_a_pull(outcome: Any, run_module: Any) -> None:
    outcome({"changed": False, "msg": "to be pulled: a", "needs": ["a"]})
    result = run_module(ollama_model.main, ARGUMENTS)
    assert (result["changed"], result["needs"]) == (False, ["a"])


def test_the_roles_variables_are_options() -> None:
    """Those of the role that the module's calls share have its types, choices and defaults; the module checks a raw one."""
    role = Path(__file__).resolve().parents[4] / "roles/ollama"
    spec = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))
    variables, options = spec["argument_specs"]["main"]["options"], ollama_model.argument_spec()
    block = yaml.safe_load((role / "tasks/main.yml").read_text(encoding="utf-8"))[0]
    models = next(task for task in block["block"] if task["name"] == "Ensure the models")
    for name, template in models["module_defaults"]["gpufleet.inference.ollama_model"].items():
        if name == "name":
            continue
        variable = re.match(r"{{ (ollama_\w+)( \| default\(omit\))? }}\Z", template)
        assert variable, template
        of_role, option = variables[variable.group(1)], options[name]
        assert bool(variable.group(2)) == ("default" not in option), template
        for key in ("default",) if of_role["type"] == "raw" else ("type", "choices", "default"):
            assert of_role.get(key) == option.get(key), (name, key)
