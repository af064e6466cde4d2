# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make generate` has been run, and what it writes says what the tables say."""

from __future__ import annotations

import runpy
import textwrap
from pathlib import Path
from typing import Any, Dict, List, Sequence

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.gpufleet.inference.plugins.module_utils.serving.options import Option, argument_spec

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tests/generate.py"))
GENERATED = TOOL["generated"]()


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: str(path.relative_to(ROOT)))
def test_generating_changes_nothing(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == GENERATED[path], "run `make generate`"


MAIN = "tasks/main.yml"


@pytest.mark.parametrize("role", TOOL["ENGINES"])
def test_the_variables_of_an_engines_role_are_the_options_of_its_module(role: str) -> None:
    """One to one: names, documented types and choices, defaults; and the role hands each on."""
    module, options = TOOL["ENGINES"][role]
    both = {name: argument for name, argument in argument_spec(options).items() if not only(options, name)}
    folder = ROOT / "roles" / role
    specs, tasks = (yaml.safe_load((folder / name).read_text("utf-8")) for name in ("meta/argument_specs.yml", MAIN))
    variables = specs["argument_specs"]["main"]["options"]
    assert list(variables)[: len(both)] == ["%s_%s" % (role, name) for name in both]  # those of the role alone follow
    for name, argument in both.items():
        variable = variables["%s_%s" % (role, name)]
        kind = "%s of %s" % (argument["type"], argument["elements"]) if "elements" in argument else argument["type"]
        kind = ", ".join("`%s`" % choice for choice in argument["choices"]) if "choices" in argument else kind
        assert (variable.get("default"), TOOL["typed"](variable)[0]) == (argument.get("default"), kind), name
    (given,) = with_all(tasks, "gpufleet.inference." + module)
    handed_on = {name: template for name, template in given.items() if not only(options, name)}
    assert list(handed_on) == list(both)
    for name, template in handed_on.items():
        assert template == "{{ %s_%s%s }}" % (role, name, "" if "default" in both[name] else " | default(omit)")


def only(options: Sequence[Option], name: str) -> str:
    return next(option.only for option in options if option.name == name)


def with_all(tasks: Any, module: str) -> List[Dict[str, Any]]:
    """What is given to a module by tasks, or as defaults for several tasks, if it names timeout."""
    if isinstance(tasks, list):
        return [found for task in tasks for found in with_all(task, module)]
    if not isinstance(tasks, dict):
        return []
    own = [tasks[module]] if "timeout" in tasks.get(module, ()) else []
    return own + [found for value in tasks.values() for found in with_all(value, module)]


OPTIONS = (
    Option("keep", "str", "How long: O(keep=1h) is V(1h), see M(gpufleet.inference.ollama_model).", no_log=False),
    Option("key", "str", "A secret. See O(gpufleet.inference.ollama_model#module:models).", no_log=True),
    Option(
        "sizes",
        "list",
        """
        One paragraph, on
        two lines.

        Another one.
        """,
        default=[],
        elements="dict",
        suboptions=(
            Option("mode", "str", "Overrides O(keep).", choices=("on", "off"), required=True),
            Option("hosts", "str", "The role makes nodes of it.", only="role"),
            Option("nodes", "str", "The role sets it.", only="module"),
        ),
    ),
    Option("paths", "dict", "The role sets it.", only="module"),
)


def test_the_documentation_of_a_module() -> None:
    text = TOOL["documentation"](OPTIONS, 60)
    assert yaml.safe_load(text) == {
        "keep": {
            "description": ["How long: O(keep=1h) is V(1h), see M(gpufleet.inference.ollama_model)."],
            "type": "str",
        },
        "key": {"description": ["A secret. See O(gpufleet.inference.ollama_model#module:models)."], "type": "str"},
        "sizes": {
            "description": ["One paragraph, on two lines.", "Another one."],
            "type": "list",
            "elements": "dict",
            "default": [],
            "suboptions": {
                "mode": {
                    "description": "Overrides O(keep).",
                    "type": "str",
                    "choices": ["on", "off"],
                    "required": True,
                },
                "nodes": {"description": "The role sets it.", "type": "str"},
            },
        },
        "paths": {"description": "The role sets it.", "type": "dict"},
    }
    assert max(map(len, text.splitlines())) <= 60


def test_the_variables_of_a_role() -> None:
    """They name each other, secrets are marked, and suboptions keep their names."""
    variables = yaml.safe_load(TOOL["documentation"](OPTIONS, 120, prefix="house_", nested="options"))
    assert list(variables) == ["house_keep", "house_key", "house_sizes"]
    assert "O(house_keep=1h)" in str(variables["house_keep"])
    assert variables["house_key"]["description"].endswith("O(gpufleet.inference.ollama_model#module:models).")
    assert variables["house_key"]["no_log"] is True and "no_log" not in variables["house_keep"]
    assert list(variables["house_sizes"]["options"]) == ["mode", "hosts"]
    assert variables["house_sizes"]["options"]["mode"]["description"][0] == "Overrides O(house_keep)."


@pytest.mark.parametrize("role", TOOL["ROLES"])
@pytest.mark.parametrize("value", ["x", 5, True, {"a": 1}, ["a"], [{"b": 1}]])
def test_ansibles_own_check_of_a_role_rejects_no_value(role: str, value: Any) -> None:
    """It would print the whole specification for each host; ours prints one line."""
    specs = yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text("utf-8"))
    options = specs["argument_specs"]["main"]["options"]
    assert not ArgumentSpecValidator(options).validate(dict.fromkeys(options, value)).error_messages


def test_the_task_of_a_role() -> None:
    assert TOOL["arguments"](OPTIONS, "house_", 120).splitlines() == [
        'keep: "{{ house_keep | default(omit) }}"',
        'key: "{{ house_key | default(omit) }}"',
        'sizes: "{{ house_sizes }}"',
    ]


@pytest.mark.parametrize("value", ["ollama", "1", "", "2GiB", 10.0, 5, True, [], {}, ["/health"], {"memlock": "1"}])
def test_defaults_are_read_back(value: Any) -> None:
    text = TOOL["defaults"]({"house_a": {"default": value}, "house_b": {}}, 120)
    assert yaml.safe_load(text) == {"house_a": value}


@pytest.mark.parametrize(
    "row, cells",
    [
        ({"type": "raw", "default": 5, "description": ["So V(many).", "A whole number."]}, "int | `5` | So `many`."),
        ({"type": "raw", "description": ["One.", "Two.", "A list of texts."]}, "list of str |  | One. Two."),
        ({"type": "raw", "default": [], "description": ["Any.", "A list."]}, "list | `[]` | Any."),
        ({"type": "raw", "description": ["A E(B), O(c=d).", "One of V(a), V(b)."]}, "`a`, `b` |  | A `B`, `c: d`."),
        ({"type": "raw", "description": "Anything."}, "raw |  | Anything."),
        (
            {"type": "str", "description": "O(gpufleet.inference.m#module:o) of P(gpufleet.inference.p#lookup) | x"},
            "str |  | `o` of `m` of `p` \\| x",
        ),
    ],
)
def test_the_table_of_a_readme(row: Dict[str, Any], cells: str) -> None:
    assert TOOL["table"]({"house_a": row}, 120).splitlines()[2] == "| `house_a` | %s |" % cells


def test_only_what_is_between_the_markers_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file.yml"
    text = textwrap.dedent(
        """\
        a: 1
        block:
          # begin: written by make generate from a.yml
          %s
          # end
        b: 2
        """
    )
    path.write_text(text % "old: 1", encoding="utf-8")
    assert TOOL["filled"](path, lambda width: "wide: %d\n" % width) == text % "wide: 118"
    path.write_text("a: 1\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="expected one pair of markers, found 0"):
        TOOL["filled"](path, lambda width: "")
