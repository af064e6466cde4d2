# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of options: how an engine's meets the common ones, and what the module gets of it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.gpufleet.inference.plugins.action import ollama_service, vllm_service
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.options import OPTIONS
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.settings import SETTINGS
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.options import (
    COMMON,
    Option,
    argument_spec,
    table,
)

OWN = table(
    Option("enabled", "bool", "Its own words.", default=False, per_host=True),
    Option("depth", "int", "How deep.", default=3),
    Option("key", "str", "A secret.", no_log=True),
    Option("version", "str", "Of the whole host.", per_host=True),
    name="engine",
)
SPEC = argument_spec(OWN)


def test_an_engine_has_the_common_options_in_their_order_and_then_its_own() -> None:
    assert [row.name for row in OWN] == [row.name for row in COMMON] + ["depth", "key", "version"]


def test_an_engine_may_replace_a_common_option_or_its_default() -> None:
    assert SPEC["enabled"] == {"type": "bool", "default": False}
    assert SPEC["name"] == {"type": "str", "default": "engine"}


def test_an_instance_has_what_it_may_override_without_defaults() -> None:
    own = SPEC["instances"]["options"]
    assert own["depth"] == {"type": "int"} and SPEC["depth"] == {"type": "int", "default": 3}
    assert own["key"] == {"type": "str", "no_log": True}
    assert own["name"]["required"] and own["state"]["choices"] == ["present", "stopped", "absent"]
    assert not {"version", "facts_timeout", "instances", "enabled"} & set(own)
    assert [name for name, argument in own.items() if "default" in argument] == []


def test_an_option_of_the_role_alone_is_none_of_the_module() -> None:
    rows = (Option("hosts", "list", "", only="role"), Option("nodes", "list", "", only="module"))
    assert list(argument_spec(rows)) == ["nodes"]


@pytest.mark.parametrize(
    "given, valid",
    [
        ({"depth": "4", "instances": [{"name": "a", "depth": 5}]}, True),
        ({"instances": [{"depth": 5}]}, False),
        ({"instances": [{"name": "a", "version": "1"}]}, False),
        ({"state": "uninstalled"}, False),
    ],
)
def test_ansible_reads_the_argument_spec(given: Any, valid: bool) -> None:
    assert (ArgumentSpecValidator(SPEC).validate(given).error_messages == []) is valid


def test_every_variable_of_ollama_is_an_option_of_an_instance() -> None:
    assert {setting.option for setting in SETTINGS} <= {row.name for row in OPTIONS if not row.per_host}


@pytest.mark.parametrize("action", [ollama_service, vllm_service])
def test_no_prose_is_sent_to_a_host_that_is_only_checked(action: Any) -> None:
    assert [name for name in action.ActionModule.FUNCTION.sources if name.endswith(".options")] == []
