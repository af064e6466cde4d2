# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Classes of fields behave as those of the standard library's dataclasses; both are given the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import fields


def defined(module: Any) -> Any:
    @module.dataclass
    class Change:
        unit: str
        state: str = "present"
        files: list = module.field(default_factory=list)
        accepted: Callable[[str], str] = lambda text: text.upper()

    return Change


@pytest.fixture(params=[dataclasses, fields], ids=["standard", "ours"])
def module(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_fields_and_defaults(module: Any) -> None:
    change = defined(module)
    one, other = change("a"), change(unit="a", state="absent")
    assert (one.unit, one.state, one.files, one.accepted("x")) == ("a", "present", [], "X")
    one.files.append("f")
    assert other.files == [], "each has its own"
    assert one != other
    one.state, one.files = "absent", []
    assert one == other and one != "a"
    assert repr(one).split("(", 1)[1].startswith("unit='a', state='absent', files=[], accepted=<function ")
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_replace(module: Any) -> None:
    one = defined(module)("a", files=["f"])
    other = module.replace(one, state="absent")
    assert (one.state, other.state, other.files) == ("present", "absent", ["f"])


@pytest.mark.parametrize("args, given", [((), {}), (("a",), {"unit": "b"}), (("a",), {"unti": "b"}), ("abcde", {})])
def test_wrong_fields(module: Any, args: Any, given: Any) -> None:
    with pytest.raises(TypeError):
        defined(module)(*args, **given)


def test_no_module_of_a_host_imports_the_standard_ones() -> None:
    folder = Path(fields.__file__).parents[1]
    found = {path.name for path in folder.rglob("*.py") if "from dataclasses import" in path.read_text()}
    assert found == {"fields.py"}
