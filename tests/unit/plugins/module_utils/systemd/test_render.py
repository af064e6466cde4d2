# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every value is read back as it was written, or refused."""

from __future__ import annotations

from typing import Any, Dict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.inference.plugins.module_utils.systemd import render
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import merge, parse_environment_file
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

NAMES = st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
SETTINGS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)


def accepted(check: Any, *arguments: Any) -> bool:
    try:
        check(*arguments)
    except Refused:
        return False
    return True


@settings(deadline=None)
@given(st.dictionaries(NAMES, TEXT, max_size=5))
@example({"A": "\\"})
@example({"A": "a\\\nb\r\n\t\"' %% %n $HOME `x` # ; = \x01\x7f\x85\u2028\ufeff"})
@example({"A": "x" * 131069})
@example({"A": " leading and trailing "})
def test_environment_round_trips(variables: Dict[str, str]) -> None:
    if not accepted(render.check_environment, variables):
        assert any(0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE for v in variables.values() for c in v)
        return
    text = render.drop_in("x.service", variables, {})
    values = merge([("/x", text.encode())]).environment({})
    assert {name: value.text for name, value in values.items()} == variables
    found = parse_environment_file(render.environment_file(variables).encode())
    assert {name: value for name, (value, _line) in found.items()} == variables


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["Nice", "ExecStart", "DeviceAllow"]), st.lists(SETTINGS, min_size=1, max_size=3))
)
@example({"ExecStart": ["", "/bin/sh -c 'a \\\\' %h"]})
def test_settings_round_trip(keys: Dict[str, Any]) -> None:
    if not accepted(render.check_settings, {"Service": keys}):
        return
    text = render.drop_in("x.service", {}, {"Service": keys})
    lines = merge([("/x", text.encode())]).assignments
    written = [(key, value) for key, values in keys.items() for value in values]
    assert [(line.key, line.value) for line in lines] == written


def test_drop_in() -> None:
    text = render.drop_in(
        "ollama.service", {"B": "2", "A": 'x "y" 100%\n'}, {"Unit": {"After": ["a", "b"]}, "Install": {}}
    )
    assert text.startswith("# Written by the Ansible collection gpufleet.inference")
    assert "`systemctl edit ollama.service`" in text
    assert text.split("\n\n", 1)[1] == (
        '[Unit]\nAfter=a\nAfter=b\n\n[Service]\nEnvironment="A=x \\"y\\" 100%%\\n"\nEnvironment="B=2"\n'
    )
    assert render.drop_in("ollama.service", {}, {}) == ""


def test_declared_settings_come_behind_the_environment() -> None:
    text = render.drop_in("x.service", {"A": "1"}, {"Service": {"Nice": ["1"]}})
    assert text.index("Environment=") < text.index("Nice=") and text.count("[Service]") == 1


@pytest.mark.parametrize(
    "name, value, why",
    [
        ("1A", "x", "variable '1A': systemd drops a name"),
        ("A-B", "x", "variable 'A-B'"),
        ("", "x", "variable ''"),
        ("A", "a\0b", "A: the value has a NUL byte"),
        ("A", "\ud800", "A: the value cannot be written as UTF-8"),
        ("A", "\udcff", "A: systemd drops the value: it is not valid UTF-8"),
        ("A", "\ufdd0", "a code point that is not a character"),
        ("A", "x" * 131070, "131073 bytes with its name; Linux takes 131072"),
        ("É", "x", "systemd drops a name"),
        ("A\n", "x", "systemd drops a name"),
    ],
)
def test_environment_that_is_refused(name: str, value: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        render.check_environment({name: value})


def test_an_environment_that_is_too_large_in_all() -> None:
    with pytest.raises(Refused, match="bytes in all"):
        render.check_environment({"A%d" % n: "x" * 100000 for n in range(20)})


def test_a_refusal_does_not_show_the_value() -> None:
    with pytest.raises(Refused) as refused:
        render.check_environment({"TOKEN": "sesame\0"})
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    "declared, why",
    [
        ({"service": {}}, "not a section"),
        ({"Ser vice": {}}, "not a section"),
        ({"Service": {"Nice=1\nX": ["1"]}}, "the name of a setting"),
        ({"Service": {"Environment": ["A=1"]}}, "declare variables as environment"),
        ({"Service": {"Nice": ["1\nUser=root"]}}, "line end or NUL"),
        ({"Service": {"Nice": ["1\r"]}}, "line end or NUL"),
        ({"Service": {"Nice": ["1 "]}}, "cuts blanks"),
        ({"Service": {"Nice": ["1\\"]}}, "backslash ending"),
        ({"Service": {"Nice": ["\udcff"]}}, "not valid UTF-8"),
        ({"Service": {"Nice": ["x" * 1048572]}}, "a line of more than"),
    ],
)
def test_settings_that_are_refused(declared: Any, why: str) -> None:
    with pytest.raises(Refused, match=why):
        render.check_settings(declared)


def test_credentials() -> None:
    render.check_credentials({"api-key": "x\0y", "a.b_c": ""})
    for name in (".hidden", "a/b", "", "a:b", "x" * 256):
        with pytest.raises(Refused, match="credential"):
            render.check_credentials({name: ""})
    with pytest.raises(Refused, match="bytes in all"):
        render.check_credentials({"a": "x" * 1048577})
    with pytest.raises(Refused, match="credential a: the value cannot"):
        render.check_credentials({"a": "\ud800"})
