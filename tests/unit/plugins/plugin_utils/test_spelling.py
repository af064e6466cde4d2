# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which variables are told of, held to the roles' own files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, List

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.plugin_utils import spelling

ROOT = Path(__file__).resolve().parents[4]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())


def told(role: str, *names: str, **more: Any) -> List[str]:
    magic = {"ansible_role_name": spelling.OURS + role, "role_path": str(ROOT / "roles" / role)}
    return list(spelling.misspelled({**dict.fromkeys(names), **magic, **more}))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ollama_visible_device", "ollama_visible_devices"),
        ("ollama_keepalive", "ollama_keep_alive"),
        ("ollama_num_paralel", "ollama_num_parallel"),
        ("ollama_sched_spred", "ollama_sched_spread"),
    ],
)
def test_a_name_nearly_right_is_told_with_the_right_one(given: str, meant: str) -> None:
    assert told("ollama", given, "ollama_state") == [
        "the role gpufleet.inference.ollama has no variable %s, so its value has no effect; did you mean %s?"
        % (given, meant)
    ]


@pytest.mark.parametrize(
    "name", ["ollama_archive_server", "ollama_result", "ollama_", "vllm_instance", "visible_device"]
)
def test_others_names_are_their_own(name: str) -> None:
    assert told("ollama", name) == []


def test_outside_of_our_roles_nothing_is_told() -> None:
    assert told("ollama", "ollama_keepalive", ansible_role_name="other.collection.ollama") == []
    assert told("ollama", "ollama_keepalive", ansible_role_name=None) == []
    assert told("ollama", "ollama_keepalive", role_path="/nowhere") == []


@pytest.mark.parametrize("role", ROLES)
def test_the_roles_own_variables_are_known_and_their_results_not_told_of(role: str) -> None:
    specs = ROOT / "roles" / role / "meta" / "argument_specs.yml"
    entries = yaml.safe_load(specs.read_text())["argument_specs"].values()
    names = {name for entry in entries for name in entry.get("options", {})}
    assert names == {role + "_" + name for name in spelling.variables(specs, role + "_")}
    files = [*(ROOT / "roles").rglob("*.yml"), *(ROOT / "playbooks").rglob("*.yml")]
    used = {name for file in files for name in re.findall(r"^ *(%s_\w+):" % role, file.read_text(), re.MULTILINE)}
    used |= {name for file in files for name in re.findall(r"register: (%s_\w+)" % role, file.read_text())}
    assert told(role, *used) == []
