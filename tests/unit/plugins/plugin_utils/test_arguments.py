# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one sentence about an argument that is not allowed, and that what Ansible reads is allowed."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.gpufleet.inference.plugins.plugin_utils.arguments import problems

SPEC: Dict[str, Dict[str, Any]] = {
    "on": {"type": "bool"},
    "count": {"type": "int"},
    "seconds": {"type": "float"},
    "words": {"type": "list", "elements": "str"},
    "environment": {"type": "dict"},
    "text": {"type": "str"},
    "folder": {"type": "path"},
    "any": {"type": "raw"},
    "state": {"type": "str", "choices": ["present", "absent"]},
    "fit": {"type": "str", "choices": ["on", "off", "auto"]},
    "key": {"type": "int", "no_log": True},
    "instances": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "visible_devices": {"type": "raw"},
            "port": {"type": "int"},
        },
    },
}


@pytest.mark.parametrize(
    "given",
    [
        {"on": "no", "count": "3", "seconds": "2.5", "words": "a,b", "environment": "a=1", "folder": "~/x"},
        {"on": 1, "count": 3, "seconds": 2, "words": ["a", 1], "environment": {"a": 1}, "text": 5, "any": {}},
        {"on": True, "count": 3, "state": "absent", "fit": False, "instances": [{"name": "a", "port": "1"}]},
        {"on": None, "instances": [], "text": None},
    ],
)
def test_what_ansible_reads_is_allowed(given: Dict[str, Any]) -> None:
    assert not ArgumentSpecValidator(SPEC).validate(given).error_messages
    assert list(problems(SPEC, given)) == []


@pytest.mark.parametrize(
    ("given", "sentences"),
    [
        ({"on": "maybe"}, ["on is 'maybe'; expected true or false"]),
        ({"count": "32k"}, ["count is '32k'; expected a whole number"]),
        ({"count": True}, ["count is true; expected a whole number"]),
        ({"seconds": "2m"}, ["seconds is '2m'; expected a number"]),
        ({"words": {"a": 1}}, ["words is a dictionary; expected a list"]),
        ({"words": [{"a": 1}]}, ["words[0] is a dictionary; expected a text"]),
        ({"environment": "nothing"}, ["environment is a text; expected a dictionary"]),
        ({"text": ["a"]}, ["text is a list; expected a text"]),
        ({"state": "gone"}, ["state is 'gone'; expected one of present, absent"]),
        ({"fit": "maybe"}, ["fit is 'maybe'; expected one of on, off, auto"]),
        ({"key": "secret"}, ["key is a text; expected a whole number"]),
        ({"count": "x" * 61}, ["count is a text; expected a whole number"]),
        ({"stat": "gone"}, ["stat is not an option; did you mean state?"]),
        ({"env": {}}, ["env is not an option; did you mean environment?"]),
        ({"instances": {"a": {}}}, ["instances is a dictionary; expected a list of dictionaries"]),
        ({"instances": "a"}, ["instances is 'a'; expected a list of dictionaries"]),
        ({"instances": ["a"]}, ["instances[0] is a text; expected a dictionary"]),
        ({"instances": [{"port": 1}]}, ["instances[0].name is missing"]),
        (
            {"instances": [{"name": "a", "visble_devices": 1, "port": "b"}]},
            [
                "instances[a].visble_devices is not an option; did you mean visible_devices?",
                "instances[a].port is 'b'; expected a whole number",
            ],
        ),
        (
            {"instances": [{"name": "a", "zzz": 1}]},
            ["instances[a].zzz is not an option; known are name, port, visible_devices"],
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(given: Dict[str, Any], sentences: List[str]) -> None:
    assert list(problems(SPEC, given)) == sentences
