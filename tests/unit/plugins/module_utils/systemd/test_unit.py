# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsing and merging unit files. The tables hold what systemd 252 did with the same files."""

from __future__ import annotations

from typing import Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import (
    Value,
    dropin_directories,
    is_text,
    merge,
    order_dropins,
    parse,
    parse_assignments,
    parse_environment_file,
    process_settings,
    split_words,
    template_of,
    unit_name,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

SPECIFIERS = {"u": "root", "n": "exp.service", "i": ""}


def environment(*contents: bytes, **more: object) -> Dict[str, str]:
    files = [("/usr/lib/systemd/system/exp.service", b"[Service]\nExecStart=/bin/true\n")]
    files += [("/etc/systemd/system/exp.service.d/%02d.conf" % n, content) for n, content in enumerate(contents)]
    values = merge(files).environment(SPECIFIERS, **more)  # type: ignore[arg-type]
    return {name: value.text for name, value in values.items()}


S = b"[Service]\n"

# every row was run on systemd 252 and read back from /proc/PID/environ
FILES = {
    "CR ends a line": (S + b'Environment="A=1\rB=2"\nEnvironment=C=3\n', {"C": "3"}),
    "NUL ends a line": (S + b'Environment="A=1\0B=2"\nEnvironment=C=3\n', {"C": "3"}),
    "invalid UTF-8 ends the file": (S + b'Environment=B=1\nEnvironment="A=\xff"\nEnvironment=C=3\n', {"B": "1"}),
    "an escaped byte that is not UTF-8": (S + b'Environment="A=\\xff"\nEnvironment=C=3\n', {"C": "3"}),
    "a code point that is not a character": (S + 'Environment="A=\ufdd0"\nEnvironment=C=3\n'.encode(), {}),
    "another one": (S + 'Environment="A=\U0001fffe"\nEnvironment=C=3\n'.encode(), {}),
    "a surrogate": (S + b'Environment="A=\xed\xa0\x80"\nEnvironment=C=3\n', {}),
    "raw control characters": (S + b'Environment="A=\x01\x02\x1b\x7f\x08"\n', {"A": "\x01\x02\x1b\x7f\x08"}),
    "escaped ones": (S + b'Environment="A=\\x01\\x1b\\r\\n\\t\\v\\f\\a\\b"\n', {"A": "\x01\x1b\r\n\t\v\f\a\b"}),
    "UTF-8": (S + 'Environment="A=é € 😀\u0085\u2028\ufeff"\n'.encode(), {"A": "é € 😀\u0085\u2028\ufeff"}),
    "words before an open quote": (S + b'Environment=A=1 "B=2 C=3\nEnvironment=C=3\n', {"A": "1", "C": "3"}),
    "unknown specifier": (S + b'Environment=A=1 "B=%Z" D=4\n', {"A": "1", "D": "4"}),
    "specifiers": (S + b'Environment="A=%u %n %i %% %- %" "B=x%"\n', {"A": "root exp.service  % %- %", "B": "x%"}),
    "empty values": (S + b'Environment="A="\nEnvironment=C=\n', {"A": "", "C": ""}),
    "unset": (S + b'Environment="A=1" "B=2" "C=3"\nUnsetEnvironment=A B=2 C=4\n', {"C": "3"}),
    "a broken header ends the file": (
        S + b"Environment=A=1\n[Bad\nEnvironment=B=1\n[Service]\nEnvironment=C=1\n",
        {"A": "1"},
    ),
    "comments and blanks in a continuation": (
        S + b"Environment=A=1 \\\n# foo\n; bar\nB=2 \\\n\nC=3\nEnvironment=D=4\n",
        {"A": "1", "B": "2", "D": "4"},
    ),
    "a continuation at the end": (S + b"Environment=A=1 \\", {"A": "1"}),
    "a comment ends the file in a continuation": (S + b"Environment=A=1 \\\n# x", {"A": "1"}),
    "two backslashes at the end": (S + b'Environment="A=1\\\\"\nEnvironment=B=2\n', {"A": "1\\", "B": "2"}),
    "names are exact": (
        b"[service]\nEnvironment=A=1\n[Service]\nEnvironment=B=1\nenvironment=C=1\n[X-Foo]\nEnvironment=D=1\n",
        {"B": "1"},
    ),
    "byte order mark": (b"\xef\xbb\xbf[Service]\nEnvironment=A=1\n", {"A": "1"}),
    "blanks around all": (b" [Service] \n  Environment  =  A=1  \n\tEnvironment=B=2\n", {"A": "1", "B": "2"}),
    "octal": (S + b'Environment="A=\\101" "B=\\s" "C=\\1" D=4\n', {"A": "A", "B": " "}),
    "an escaped NUL": (S + b'Environment="A=\\u0000" D=4\n', {}),
    "quotes in the middle": (S + b"Environment=\"A=1\"B=2 C=3'4'\n", {"A": "1B=2", "C": "34"}),
    "an escaped blank": (S + b"Environment=A=1\\ 2 B=3\nEnvironment=D=4\n", {"D": "4"}),
    "dollar and hash are text": (S + b'Environment="A=$HOME #1" B=#2;3\n', {"A": "$HOME #1", "B": "#2;3"}),
    "bad names are dropped alone": (S + b"Environment=1BAD=x GOOD=y noequals\n", {"GOOD": "y"}),
    "the last one wins": (S + b"Environment=A=1\nEnvironment=A=2\n", {"A": "2"}),
    "an empty one clears all": (S + b"Environment=A=1\nEnvironment=\nEnvironment=B=1\n", {"B": "1"}),
    "before a section": (b"Environment=A=1\n[Service]\nEnvironment=B=1\n=x\nnothing\n", {"B": "1"}),
    "wide escapes": (S + b'Environment="A=\\u00e9\\U0001f600"\n', {"A": "é😀"}),
    "an escape out of range": (S + b'Environment="A=\\U00110000"\nEnvironment=B=1\n', {"B": "1"}),
    "octal out of range": (S + b'Environment="A=\\777"\nEnvironment=B=1\n', {"B": "1"}),
    "CR LF": (b"[Service]\r\nEnvironment=A=1\r\nEnvironment=B=2\r\n", {"A": "1", "B": "2"}),
}


@pytest.mark.parametrize("content, expected", FILES.values(), ids=list(FILES))
def test_environment_of_a_file(content: bytes, expected: Dict[str, str]) -> None:
    assert environment(content) == expected


def test_a_file_that_systemd_stops_reading_is_named() -> None:
    assert "x.conf:2: the line is not valid UTF-8" in (parse(S + b"A=\xff\n", "x.conf").broken or "")
    assert "x.conf:2: '[Bad' is not a section header" in (parse(S + b"[Bad\n", "x.conf").broken or "")
    assert "longer than" in (parse(S + b"A=" + b"x" * 1048576, "x.conf").broken or "")
    assert parse(S + b"A=1\n", "x.conf").broken is None
    assert merge([("a", S), ("b", b"[x\n")]).broken == ["b:1: '[x' is not a section header"]


def test_lines_are_numbered() -> None:
    lines = parse(b"# one\n[Service]\nA=1\nB=x \\\n  y\r\nC=3\n", "p").assignments
    assert [(line.key, line.value, line.line) for line in lines] == [("A", "1", 3), ("B", "x    y", 5), ("C", "3", 6)]


@pytest.mark.parametrize(
    "raw, text", [(b"a", True), ("é\uffff".encode(), False), (b"\xff", False), ("\ufdef".encode(), False)]
)
def test_is_text(raw: bytes, text: bool) -> None:
    assert is_text(raw) is text


def test_words() -> None:
    assert list(split_words("  a 'b c' \"\" d\\x41  ")) == ["a", "b c", "", "dA"]
    with pytest.raises(ValueError, match="unbalanced"):
        list(split_words("a 'b"))
    with pytest.raises(ValueError, match="unknown escape"):
        list(split_words("a\\"))
    assert list(parse_assignments("A=1 %Z=2 B=%u", SPECIFIERS)) == [("A", "1"), ("B", "root")]


@pytest.mark.parametrize(
    "name, full",
    [
        ("ollama", "ollama.service"),
        ("x.timer", "x.timer"),
        ("vllm@a-b", "vllm@a-b.service"),
        ("a.b", "a.b.service"),
        ("x@a@b.service", "x@a@b.service"),  # systemd starts these
        ("x@.a.service", "x@.a.service"),
        ("x@a@.service", "x@a@.service"),
        ("x@@.service", "x@@.service"),
        ("-x", "-x.service"),
    ],
)
def test_unit_names(name: str, full: str) -> None:
    assert unit_name(name) == full


@pytest.mark.parametrize(
    "name, why",
    [
        ("a/b", "not a unit name"),
        ("", "not a unit name"),
        ("a b", "not a unit name"),
        ("vllm@", "a template: name an instance of it, such as vllm@NAME.service"),
        ("a-@.timer", "such as a-@NAME.timer"),
        ("@a.service", "not a unit name"),
        (".service", "not a unit name"),
        ("a@b\n.service", "not a unit name"),
        ("../a.service", "not a unit name"),
        ("x" * 250, "no"),
    ],
)
def test_names_that_are_none(name: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        unit_name(name)


def test_template() -> None:
    assert template_of("vllm@a.b.service") == "vllm@.service"
    assert template_of("ollama.service") is None
    assert template_of("vllm@.service") is None
    assert template_of("x@.a.service") == template_of("x@a@b.service") == template_of("x@@.service") == "x@.service"


# the order in which systemd 252 preferred files of the same name, found by taking away the winner each time
DIRECTORIES: Dict[str, List[str]] = {
    "aa-bb-cc@x-y.service": [
        "aa-bb-cc@x-y.service.d",
        "aa-bb-cc@.service.d",
        "aa-bb-.service.d",
        "aa-.service.d",
        "aa-bb-@x-y.service.d",
        "aa-bb-@.service.d",
        "aa-@x-y.service.d",
        "aa-@.service.d",
    ],
    "aa-bb-cc.service": ["aa-bb-cc.service.d", "aa-bb-.service.d", "aa-.service.d"],
    "plain@i.service": ["plain@i.service.d", "plain@.service.d"],
    "tr-.service": ["tr-.service.d"],
    "tr-a-.service": ["tr-a-.service.d", "tr-.service.d"],
    "-.mount": ["-.mount.d"],
    "foo--g.service": ["foo--g.service.d", "foo--.service.d", "foo-.service.d"],
    "foo--.service": ["foo--.service.d", "foo-.service.d"],
    "-a.service": ["-a.service.d"],
    "a-b@c@d-.service": ["a-b@c@d-.service.d", "a-b@.service.d", "a-.service.d", "a-@c@d-.service.d", "a-@.service.d"],
    "a@.b.service": ["a@.b.service.d", "a@.service.d"],
}


@pytest.mark.parametrize("name, expected", DIRECTORIES.items())
def test_drop_in_directories(name: str, expected: List[str]) -> None:
    assert dropin_directories(name) == expected


def test_drop_ins_are_ordered_by_name_in_bytes() -> None:
    names = ["zz-last.conf", "override.conf", "10-a.conf", "9-nine.conf", "ZZZ.conf", "50-x.conf", ".h.conf", "x.txt"]
    ordered = order_dropins([("/etc/u.d", names), ("/run/u.d", ["50-x.conf", "55.conf"])])
    assert [path.rpartition("/")[2] for path in ordered] == [
        "10-a.conf",
        "50-x.conf",
        "55.conf",
        "9-nine.conf",
        "ZZZ.conf",
        "override.conf",
        "zz-last.conf",
    ]
    assert "/etc/u.d/50-x.conf" in ordered and "/run/u.d/50-x.conf" not in ordered


# --- EnvironmentFile=

ENVIRONMENT_FILES = {
    "plain": (b"A=1\nB=two words  \n", {"A": "1", "B": "two words"}),
    "comments": (b"# A=1\n;B=2\n  # C=3\nD=4 # not one\n", {"D": "4 # not one"}),
    "a comment goes on behind a backslash": (b"# A \\\nB=1\nC=2\n", {"C": "2"}),
    "single quotes": (b"A='a \"b\" \\n $x' \n", {"A": 'a "b" \\n $x'}),
    "double quotes": (b'A="a \\"b\\" \\$x \\` \\\\ \\n"\n', {"A": 'a "b" $x ` \\ \\n'}),
    "quotes inside are text": (b'A=x"y"\n', {"A": 'x"y"'}),
    "behind quotes": (b'A="x" y\nB="p" "q"\n', {"A": "xy", "B": "pq"}),
    "escapes outside": (b"A=x\\ \nB=\\\\y\nC=a\\\nb\n", {"A": "x ", "B": "\\y", "C": "ab"}),
    "lines in quotes": (b'A="x\ny"\nB="x\\\ny"\n', {"A": "x\ny", "B": "xy"}),
    "no specifiers, no expansion": (b"A=%u$HOME\n", {"A": "%u$HOME"}),
    "no value": (b"A=\nB\nC=1\n", {"A": "", "C": "1"}),
    "bad names": (b"export A=1\n1B=2\nC=3\n", {"C": "3"}),
    "the end": (b"A=1", {"A": "1"}),
    "the end in quotes": (b"A='1", {"A": "1"}),
    "the last one wins": (b"A=1\nA=2\n", {"A": "2"}),
    "CR LF": (b"A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
    "blanks around the name": (b" A = 1\n", {"A": "1"}),
    "a backslash at the very end": (b"A=1\\", {"A": "1"}),
    "a backslash at the very end in quotes": (b'A="1\\', {"A": "1"}),
    "a backslash at the very end in single quotes": (b"A='1\\", {"A": "1\\"}),
}


@pytest.mark.parametrize("content, expected", ENVIRONMENT_FILES.values(), ids=list(ENVIRONMENT_FILES))
def test_environment_file(content: bytes, expected: Dict[str, str]) -> None:
    assert {name: value for name, (value, _line) in parse_environment_file(content).items()} == expected


def test_a_comment_ends_with_its_line_since_systemd_254() -> None:
    content = S + b"EnvironmentFile=/a\n"
    for version, expected in (("252", {"C": "2"}), ("254", {"B": "1", "C": "2"}), ("257", {"B": "1", "C": "2"})):
        unit = merge([("/u.service", content)])
        values = unit.environment({"systemd": version}, lambda path: [(path, b"# A \\\nB=1\nC=2\n")])
        assert {name: value.text for name, value in values.items()} == expected


PATHS = {
    "/a/b": ["/a/b"],
    "-/a//./b/": ["/a/b"],
    "/a/../b": [],
    "a": [],
    "-a": [],
    "": [],
    "/": ["/"],
    "/%Z": [],
    "/%n*": ["/exp.service*"],
}


@pytest.mark.parametrize("text, expected", PATHS.items())
def test_paths_of_environment_files(text: str, expected: List[str]) -> None:
    unit = merge([("/u.service", S + b"EnvironmentFile=" + text.encode() + b"\n")])
    assert list(unit.environment_files(SPECIFIERS)) == expected


def test_environment_file_lines_and_faults() -> None:
    found = parse_environment_file(b"A=1\n\nB='x\ny'\nC=3\n")
    assert [line for _value, line in found.values()] == [1, 3, 5]
    with pytest.raises(Refused, match="NUL"):
        parse_environment_file(b"A=\0")
    with pytest.raises(Refused, match="line 2 is not valid UTF-8"):
        parse_environment_file(b"A=1\nB=\xff\n")


def test_environment_file_has_the_last_word() -> None:
    files = {
        "/a": [("/a", b"A=file\n")],
        "/b*": [("/b1", b"B=1\nA=b1\n"), ("/b2", b"B=2\n")],
        "/bad": [("/bad", b"\xff=")],
    }
    contents = (
        S
        + b"EnvironmentFile=-/a\nEnvironmentFile=/b*\nEnvironmentFile=/bad\nEnvironmentFile=/%Z\nEnvironment=A=later\n"
    )
    assert environment(contents, read_files=lambda pattern: files[pattern]) == {"A": "b1", "B": "2"}
    cleared = S + b"EnvironmentFile=/a\nEnvironmentFile=\nEnvironment=A=x\n"
    assert environment(cleared, read_files=lambda pattern: files[pattern]) == {"A": "x"}


def test_pass_environment() -> None:
    assert environment(S + b"PassEnvironment=A B C\nEnvironment=B=own\n", inherited={"A": "1", "B": "2"}) == {
        "A": "1",
        "B": "own",
    }


def test_values_name_their_place() -> None:
    unit = merge([("/u.service", S + b"Environment=A=1 B=1\n"), ("/d/x.conf", b"\n" + S + b"Environment=A=2\n")])
    values = unit.environment({})
    assert values["A"].place == "/d/x.conf:3" and values["B"].place == "/u.service:2"
    assert Value("x", "/etc/x").place == "/etc/x"
    unit = merge([("/u.service", S + b"UnsetEnvironment=A B=1\n")])
    assert unit.unset({}) == {"A": Value(None, "/u.service", 2), "B": Value("1", "/u.service", 2)}


def test_what_is_unset_twice() -> None:
    for lines in (b"UnsetEnvironment=A\nUnsetEnvironment=A=x\n", b"UnsetEnvironment=A=x A\n"):
        content = S + b"Environment=A=1 B=2\n" + lines
        assert environment(content) == {"B": "2"}
        assert merge([("/u.service", content)]).unset({})["A"].text is None
    assert environment(S + b"Environment=A=1\nUnsetEnvironment=A=1 A=2\n") == {}


# --- settings


def test_lists_add_up_and_the_rest_is_replaced() -> None:
    unit = merge(
        [
            ("/u", b"[Service]\nExecStart=/a\nLimitNOFILE=1\nDeviceAllow=/dev/a\nNice=5\n"),
            ("/d", b"[Service]\nExecStart=\nExecStart=/b\nLimitNOFILE=2\nDeviceAllow=/dev/b\nNice=\n"),
        ]
    )
    assert unit.settings() == {
        ("Service", "ExecStart"): ["/b"],
        ("Service", "LimitNOFILE"): ["2"],
        ("Service", "DeviceAllow"): ["/dev/a", "/dev/b"],
        ("Service", "Nice"): [],
    }
    assert [line.path for line in unit.in_force("Service", "DeviceAllow")] == ["/u", "/d"]


def test_an_empty_value_is_a_reset_or_a_mistake() -> None:
    both = b"Restart=always\nPrivateDevices=yes\nNice=5\nRestart=\nPrivateDevices=\nNice=\n"
    found = merge([("/u.service", S + both)]).settings()
    assert found == {
        ("Service", "Restart"): ["always"],
        ("Service", "PrivateDevices"): ["yes"],
        ("Service", "Nice"): [],
    }


def test_what_systemd_does_itself_needs_no_new_process() -> None:
    unit = merge(
        [
            (
                "/u",
                b"[Unit]\nDescription=x\nAfter=y\n[Service]\nRestart=always\nTimeoutStopSec=9\nNice=1\nX-A=1\nIOWeight=\n"
                b"Environment=A=1\n[Install]\nWantedBy=z\n[X-Mine]\nA=1\n",
            )
        ]
    )
    assert process_settings(unit) == {("Service", "Nice"): ["1"]}
