# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The JSON schema of group_vars: what editors accept is what the roles accept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "inventories/group_vars.schema.json").read_text("utf-8"))
EXAMPLES = sorted((ROOT / "inventories").glob("*/group_vars/*.yml"))


def problems(variables: Dict[str, Any]) -> List[str]:
    found = jsonschema.Draft202012Validator(SCHEMA).iter_errors(variables)
    return ["/".join(str(step) for step in error.absolute_path) or error.message for error in found]


def test_it_is_a_schema_with_every_variable() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    specs = [yaml.safe_load(path.read_text("utf-8")) for path in ROOT.glob("roles/*/meta/argument_specs.yml")]
    known = {name for spec in specs for name in spec["argument_specs"]["main"]["options"]}
    assert set(SCHEMA["properties"]) == known | {"gateway_address"}
    assert [name for name, row in SCHEMA["properties"].items() if not row["description"]] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: "%s %s" % (path.parts[-3], path.stem))
def test_the_examples_are_valid(path: Path) -> None:
    assert problems(yaml.safe_load(path.read_text("utf-8")) or {}) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("roles/*/defaults/main.yml")), ids=lambda path: path.parts[-3])
def test_the_defaults_are_valid(path: Path) -> None:
    assert problems(yaml.safe_load(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "variables",
    [
        {"ollama_keep_alive": "-1", "ollama_keep_alive_of_us": None},
        {"vllm_instancs": []},
        {"vllm_instances": [{"name": "a", "modell": "m"}]},
        {"vllm_instances": [{"model": "m"}]},
        {"vllm_instances": {"name": "a"}},
        {"ollama_state": "gone"},
        {"gateway_port": "https"},
        {"gateway_enabled": "maybe"},
        {"gateway_keys": [{"name": "a", "pools": "m"}]},
        {"monitoring_alertmanagers": "alerts.example.org:9093"},
        {"gateway_affinity": [["m"]]},
    ],
    ids=str,
)
def test_what_the_roles_would_refuse_is_marked(variables: Dict[str, Any]) -> None:
    assert len(problems(variables)) == 1


@pytest.mark.parametrize(
    "variables",
    [
        {"vault_key": "x", "ansible_user": "admin", "gpufleet_batch": 1},
        {"vllm_port": "{{ port }}", "vllm_instances": "{{ instances }}"},
        {"vllm_instances": [{"name": "a", "port": "{{ port }}", "model": "{{ model }}"}]},
        {"ollama_models": ["m", {"name": "n", "state": "absent"}]},
        {"gateway_address": "192.0.2.1"},
    ],
    ids=str,
)
def test_what_the_roles_accept_is_not_marked(variables: Dict[str, Any]) -> None:
    assert problems(variables) == []
