# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of systemd's tools, and how their answers and /proc are read."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.systemd import manager
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import (
    ManagerError,
    System,
    seconds,
    split_items,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.process import Process


class Tools:
    """Stands for subprocess.Popen: answers by the first words of a command, and fails on any other.

    An answer is (status, output, errors), an exception, or a list of these: TimeoutExpired for each time that the
    command is still running when it is waited for.
    """

    def __init__(self) -> None:
        self.answers: Dict[str, Any] = {}
        self.commands: List[List[str]] = []
        self.killed = 0

    def __call__(self, command: List[str], **more: Any) -> "Running":
        self.commands.append(command)
        assert more["env"]["LC_ALL"] == "C" and more["stdin"] == subprocess.DEVNULL
        for words, answer in self.answers.items():
            if " ".join(command).startswith(words):
                answer = answer(command, more["env"]) if callable(answer) else answer
                if isinstance(answer, FileNotFoundError):
                    raise answer
                return Running(self, answer)
        raise AssertionError("unexpected command %s" % command)


class Running:
    def __init__(self, tools: Tools, answer: Any) -> None:
        self.tools, self.answers = tools, answer if isinstance(answer, list) else [answer]
        self.returncode = -9
        if isinstance(self.answers[0], tuple):
            self.stdout = io.BytesIO(_bytes(self.answers[0][1]))

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_error: Any) -> None:
        pass

    def kill(self) -> None:
        self.tools.killed += 1
        self.answers = [(-9, "", "")]

    def communicate(self, timeout: Any = None) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        self.returncode = answer[0]
        return tuple(_bytes(text) for text in answer[1:])


def _bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    fake = Tools()
    monkeypatch.setattr(manager.subprocess, "Popen", fake)
    return fake


# as `systemctl show -p Environment` of systemd 252 printed them, and what /proc/PID/environ had
ITEMS = {
    "A=1 B=2": ["A=1", "B=2"],
    'A=A "B= "': ["A=A", "B= "],
    '"A=\\001\\002\\033\\177\\b" C=3': ["A=\x01\x02\x1b\x7f\b", "C=3"],
    '"A=\\001\\002\\033\\177\\b\\r\\n\\t\\v\\f\\a\\b" C=3': ["A=\x01\x02\x1b\x7f\b\r\n\t\v\f\a\b", "C=3"],
    '"A=é € 😀" C=3': ["A=é € 😀", "C=3"],
    '"A=1\\\\" B=2': ["A=1\\", "B=2"],
    '"A=\\$HOME \\`x\\` \\"q\\""': ['A=$HOME `x` "q"'],
    "A= C=": ["A=", "C="],
    '"A=\\x41"': ["A=A"],
    "A=\x85\xa0\u2028 B=1": ["A=\x85\xa0\u2028", "B=1"],
    "": [],
    '/etc/a.conf "/etc/sp ace.conf"': ["/etc/a.conf", "/etc/sp ace.conf"],
}


@pytest.mark.parametrize("text, items", ITEMS.items())
def test_items_of_a_property(text: str, items: List[str]) -> None:
    assert split_items(text) == items


@pytest.mark.parametrize(
    "text, value", [("1min 30s", 90), ("100ms", 0.1), ("2h", 7200), ("infinity", None), ("", None), ("1w 3d", 864000)]
)
def test_time_spans(text: str, value: Any) -> None:
    assert seconds(text) == (None if value is None else pytest.approx(value))


def test_show_is_one_call(tools: Tools) -> None:
    tools.answers["systemctl show"] = (0, "Id=ollama.service\nEnvironment=A=1 B=2\nLoadError=\n", "")
    assert System().show("ollama.service") == {"Id": "ollama.service", "Environment": "A=1 B=2", "LoadError": ""}
    assert len(tools.commands) == 1 and tools.commands[0][-2:] == ["--", "ollama.service"]


@pytest.mark.parametrize(
    "value", ["x\rMainPID=1", "\rMainPID=1", "x\x85MainPID=1", "x\u2028MainPID=1", "x\x0bMainPID=1"]
)
def test_a_carriage_return_in_a_value_ends_no_line(tools: Tools, value: str) -> None:
    """systemd 247 prints it as it is; a service may put it into its status."""
    tools.answers["systemctl show"] = (0, "Environment=A=1\r2 B=3\nMainPID=7\nStatusText=%s\n" % value, "")
    state = System().show("x.service")
    assert state["MainPID"] == "7" and split_items(state["Environment"]) == ["A=1\r2", "B=3"]
    assert state["StatusText"].replace("?", " ") in ("x MainPID=1", " MainPID=1")


def test_a_tool_that_fails_is_quoted(tools: Tools) -> None:
    tools.answers["systemctl"] = (1, "", "Failed to connect to bus: No such file or directory\n")
    with pytest.raises(ManagerError, match="systemctl show failed: Failed to connect to bus"):
        System().show("x.service")
    with pytest.raises(ManagerError, match="systemctl daemon-reload failed"):
        System().reload()
    tools.answers["systemctl"] = (3, "", "")
    with pytest.raises(ManagerError, match="failed: exit 3"):
        System().enable("x.service")


def test_a_host_without_systemd(tools: Tools) -> None:
    tools.answers["systemctl"] = FileNotFoundError()
    with pytest.raises(ManagerError, match="this host is not run by systemd"):
        System().show("x.service")


LATER = subprocess.TimeoutExpired("systemctl", 0.1)


def test_jobs(tools: Tools) -> None:
    system = System()
    tools.answers["systemctl show"] = (0, "InvocationID=a\n", "")
    tools.answers["systemctl restart -- x.service"] = (0, "", "")
    tools.answers["systemctl start -- x.service"] = (1, "", "Job for x.service failed.\nSee more")
    tools.answers["systemctl stop -- x.service"] = (4, "", "")
    tools.answers["systemctl disable -- x.service"] = (0, "", "Removed /etc/x.\n")
    tools.answers["systemctl reset-failed -- x.service"] = (1, "", "not loaded")
    assert system.restart("x.service", 5, 5) is None
    assert system.start("x.service", 5) == "Job for x.service failed."
    assert system.stop("x.service", 7) == "exit 4"
    assert system.disable("x.service") == "Removed /etc/x.\n"
    system.reset_failed("x.service")
    assert not tools.killed


@pytest.mark.parametrize(
    "state, stop_limit, start_limit, says",
    [
        ("ActiveState=activating\nSubState=auto-restart\nInvocationID=b", 60, 60, "it does not start"),
        ("ActiveState=activating\nSubState=auto-restart-queued\nInvocationID=b", 60, 60, "it does not start"),
        ("ActiveState=activating\nSubState=start\nNRestarts=1\nInvocationID=b", 60, 60, "it does not start"),
        ("ActiveState=deactivating\nSubState=stop-sigterm", 0, 60, "it did not stop within 0 s"),
        ("ActiveState=activating\nSubState=start", 60, 0, "it did not start within 0 s"),
    ],
)
def test_a_job_that_will_not_end_is_not_waited_for(
    tools: Tools, state: str, stop_limit: float, start_limit: float, says: str
) -> None:
    shown = iter(["InvocationID=a", state])
    tools.answers["systemctl restart"] = LATER
    tools.answers["systemctl show"] = lambda _command, _environ: (0, next(shown) + "\n", "")
    assert System().restart("x.service", stop_limit, start_limit) == says
    assert tools.killed == 1


def test_a_slow_job_is_waited_for(tools: Tools) -> None:
    tools.answers["systemctl restart"] = [LATER, LATER, (0, "", "")]
    tools.answers["systemctl show"] = (0, "ActiveState=deactivating\nSubState=stop-sigterm\nNRestarts=0\n", "")
    assert System().restart("x.service", 60, 60) is None
    assert [command[1] for command in tools.commands] == ["show", "restart", "show", "show"] and not tools.killed


@pytest.mark.parametrize("verb", ["start", "restart", "stop"])
def test_a_job_that_systemd_has_not_taken_yet(tools: Tools, verb: str) -> None:
    """What systemd tells is of before then: the unit was failing, and no word of how this job goes."""
    before = "ActiveState=activating\nSubState=auto-restart\nNRestarts=3\nInvocationID=a\n"
    tools.answers["systemctl " + verb] = [LATER, (0, "", "")]
    tools.answers["systemctl show"] = (0, before, "")
    limits = (60,) if verb != "restart" else (60, 60)
    assert getattr(System(), verb)("x.service", *limits) is None
    assert not tools.killed


def test_a_tool_that_hangs(tools: Tools) -> None:
    tools.answers["systemctl"] = [LATER, (-9, "", "")]
    with pytest.raises(ManagerError, match="systemctl daemon-reload did not finish within 120 s"):
        System().reload()
    assert tools.killed == 1


def test_the_journal_of_one_invocation(tools: Tools) -> None:
    entries = [
        {"MESSAGE": "Started x.service.", "_PID": "1"},
        {"MESSAGE": "one\n\n two", "_PID": "7"},
        {"MESSAGE": [98, 255, 100], "_PID": "7"},
        {"MESSAGE": None, "_PID": "7"},
        {"MESSAGE": "x.service: Failed at step EXEC"},
        {"MESSAGE": "x.service: Main process exited", "_PID": "1"},
    ]
    tools.answers["journalctl --quiet"] = (0, "\n".join(json.dumps(entry) for entry in entries) + "\n", "")
    assert System().journal("x.service", "abc", 5) == ["one", " two", "b\ufffdd", "x.service: Failed at step EXEC"]
    assert System().journal("x.service", "abc", 1) == ["x.service: Failed at step EXEC"]
    assert tools.commands[0][-4:] == ["_SYSTEMD_INVOCATION_ID=abc", "+", "INVOCATION_ID=abc", "_UID=0"]
    assert len(tools.commands) == 2, "what is known to be of the invocation is enough"
    assert tools.commands[0][3:6] == ["--all", "-o", "json"]
    tools.answers["journalctl --sync"] = (1, "", "no journald")
    System().sync_journal()
    tools.answers.clear()
    tools.answers["journalctl"] = (1, "", "no journald")
    assert System().journal("x.service", "abc", 5) == []


def test_the_words_of_a_process_that_was_gone_before_journald_read_them(tools: Tools) -> None:
    invocation = [{"MESSAGE": "Started", "_PID": "1", "__REALTIME_TIMESTAMP": "50", "_SOURCE_REALTIME_TIMESTAMP": "40"}]
    unit = [
        {"MESSAGE": "of another time", "__REALTIME_TIMESTAMP": "39"},
        {"MESSAGE": "one", "_PID": "7", "__REALTIME_TIMESTAMP": "41"},
        {"MESSAGE": "two", "_PID": "7", "__REALTIME_TIMESTAMP": "51"},
        {"MESSAGE": "of the next", "_SYSTEMD_INVOCATION_ID": "next", "__REALTIME_TIMESTAMP": "60"},
    ]

    def journal(command: List[str]) -> str:
        entries = invocation if "_UID=0" in command else unit
        return "".join(json.dumps(entry) + "\n" for entry in entries)

    tools.answers["journalctl --quiet"] = lambda command, _environ: (0, journal(command), "")
    for user, words in (
        ("nobody", ["+", "INVOCATION_ID=abc", "_UID=65534"]),
        ("65533", ["+", "INVOCATION_ID=abc", "_UID=65533"]),
        ("never-was", []),
        ("", []),
    ):
        tools.answers["systemctl show -p User --value -- x.service"] = (0, user + "\n", "")
        assert System().journal("x.service", "abc", 5) == ["one", "two"]
        assert tools.commands[-1][7 + 2 :] == ["_SYSTEMD_UNIT=x.service", *words]


HOSTILE = {
    "colours": ("\x1b[1;31mError\x1b[0m: no \x1b]0;title\x07GPU\x1b(B", "Error: no ?]0;title?GPU?(B"),
    "clears the screen": ("\x1b[2J\x1b[Hall is well\x1bc", "all is well?c"),
    "8 bit sequences": ("\x9b2Jx\x9d0;t\x9c", "x?0;t?"),
    "a sequence that does not end": ("x\x1b[", "x?["),
    "writes over the line": ("failed\rok", "failed ok"),
    "backspaces": ("failed\b\b\b\b\b\bok", "failed??????ok"),
    "turns the text": ("a\u202egpj.exe\u2066\u061c", "a?gpj.exe??"),
    "line ends of others": ("a\u2028b\x85c\x0bd\x0ce", "a?b?c?d?e"),
    "what is none": ("é 😀\tx \u200d", "é 😀\tx \u200d"),
}


@pytest.mark.parametrize("said, shown", HOSTILE.values(), ids=HOSTILE)
def test_what_is_logged_does_not_draw_on_a_terminal(tools: Tools, said: str, shown: str) -> None:
    entry = json.dumps({"MESSAGE": said, "_PID": "7"})
    tools.answers["journalctl --quiet --no-pager --all -o json"] = (0, entry + "\n", "")
    tools.answers["journalctl --quiet --no-pager -o cat"] = (0, said + "\n", "")
    assert System().journal("x.service", "abc", 5) == [shown]
    assert list(System().journal_from_start("abc")) == [shown]
    tools.answers["systemctl start"] = tools.answers["systemctl daemon-reload"] = (1, "", said)
    tools.answers["systemctl show"] = (0, "InvocationID=\n", "")
    assert System().start("x.service", 1).strip() == shown.strip()
    with pytest.raises(ManagerError) as error:
        System().reload()
    assert str(error.value).strip().endswith(shown.strip())


@pytest.mark.parametrize(
    "message, lines",
    [
        (["one", "two"], ["one", "two"]),
        ([["x"], {"y": 1}, "two", [255]], ["two"]),
        ([], []),
        (5, []),
        ({"a": 1}, []),
        ([0, 27, 91, 65], ["?"]),
        ("x" * manager.LONGEST_MESSAGE + "\nend", ["x" * (manager.LONGEST_MESSAGE - 4), "end"]),
        ("\n" * 10**6 + "end", ["end"]),
    ],
)
def test_a_message_of_any_shape(tools: Tools, message: Any, lines: List[str]) -> None:
    tools.answers["journalctl"] = (0, json.dumps({"MESSAGE": message, "_PID": "7"}) + "\nnot json\n[1]\n", "")
    tools.answers["systemctl show"] = (0, "\n", "")
    found = System().journal("x.service", "abc", 5)
    assert [line for line in found if line.strip()] == [line for line in lines if line.strip()]


def test_a_journal_of_gigabytes_is_not_read(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then messages of more than 4096 bytes, which journalctl leaves out, are not had."""
    monkeypatch.setattr(manager, "LARGEST_JOURNAL", 1000)
    entry = json.dumps({"MESSAGE": "x" * 2000, "_PID": "7"})
    tools.answers["journalctl --quiet --no-pager --all"] = (0, entry + "\n", "")
    last = json.dumps({"MESSAGE": "last", "_PID": "7"})
    tools.answers["journalctl --quiet --no-pager -o json"] = (0, last + "\n", "")
    assert System().journal("x.service", "abc", 5) == ["last"]


def test_a_log_without_end_or_line_ends(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "LONGEST_MESSAGE", 10)
    monkeypatch.setattr(manager, "LARGEST_JOURNAL", 60)
    tools.answers["journalctl"] = (0, b"one\n" + b"x" * 25 + b"\n\xff\n" + b"more\n" * 1000, "")
    found = list(System().journal_from_start("abc"))
    assert found[:3] == ["one", "x" * 10, "\ufffd"] and 5 < len(found) < 15


def test_a_log_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "JOURNAL_LIMIT", 0.05)
    real = manager.subprocess.Popen
    monkeypatch.setattr(manager.subprocess, "Popen", lambda command, **more: real(["sleep", "600"], **more))
    assert list(System().journal_from_start("abc")) == []


def test_a_real_program_that_says_too_much_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    assert system._head(["yes"], 5000) == (b"y\n" * 2501)[:5001]
    assert system._head(["sleep", "600"], 10, limit=0.05) == b""
    assert system._head(["no-such-program"], 10) == b""


def test_what_systemd_would_ignore(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    seen: List[str] = []

    def verify(command: List[str], environment: Dict[str, str]) -> Any:
        scratch = environment["SYSTEMD_UNIT_PATH"]
        assert scratch.endswith(":")
        path = "%s/x.service.d/zz.conf" % scratch[:-1]
        seen.append(path)
        assert Path(path).read_bytes() == b"[Service]\nBad=1\n"
        said = "%s:2: Unknown key 'Bad' in section [Service], ignoring.\n" % path
        return 1, "", said + "other.service: what others do wrong\n" + said

    tools.answers["systemd-analyze verify --man=no -- x.service"] = verify
    found = System().verify("x.service", "zz.conf", b"[Service]\nBad=1\n")
    assert found == ["2: Unknown key 'Bad' in section [Service], ignoring."]
    assert not Path(seen[0]).exists()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert System().verify("x.service", "zz.conf", b"") == []


# --- files


def write(root: Path, path: str, text: str = "") -> None:
    place = Path(str(root) + path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def test_files_of_a_unit(tmp_path: Path) -> None:
    write(tmp_path, "/usr/lib/systemd/system/a-b@.service", "template")
    write(tmp_path, "/usr/lib/systemd/system/service.d/10-all.conf", "all")
    write(tmp_path, "/usr/lib/systemd/system/a-b@x.service.d/20.conf", "vendor")
    write(tmp_path, "/etc/systemd/system/a-b@x.service.d/20.conf", "admin")
    write(tmp_path, "/etc/systemd/system/a-.service.d/30.conf", "prefix")
    write(tmp_path, "/run/systemd/system/a-b@.service.d/40.conf", "run")
    write(tmp_path, "/etc/systemd/system/alias@x.service.d/50.conf", "alias")
    (tmp_path / "etc/systemd/system/a-b@x.service.d/40.conf").symlink_to(os.devnull)
    found = System(str(tmp_path)).load(["a-b@x.service", "alias@x.service"])
    assert found == [
        ("/usr/lib/systemd/system/a-b@.service", b"template"),
        ("/usr/lib/systemd/system/service.d/10-all.conf", b"all"),
        ("/etc/systemd/system/a-b@x.service.d/20.conf", b"admin"),
        ("/etc/systemd/system/a-.service.d/30.conf", b"prefix"),
        ("/etc/systemd/system/a-b@x.service.d/40.conf", b""),
        ("/etc/systemd/system/alias@x.service.d/50.conf", b"alias"),
    ]
    write(tmp_path, "/etc/systemd/system/a-b@x.service", "instance")
    assert System(str(tmp_path)).load(["a-b@x.service"])[0] == ("/etc/systemd/system/a-b@x.service", b"instance")
    assert System(str(tmp_path)).load(["nothing.socket"]) == []


def test_environment_files(tmp_path: Path) -> None:
    write(tmp_path, "/etc/default/b", "B=1")
    write(tmp_path, "/etc/default/a", "A=1")
    system = System(str(tmp_path))
    assert list(system.environment_files("/etc/default/*")) == [("/etc/default/a", b"A=1"), ("/etc/default/b", b"B=1")]
    assert list(system.environment_files("/etc/default/a")) == [("/etc/default/a", b"A=1")]
    assert list(system.environment_files("/etc/nothing")) == []
    (tmp_path / "etc/default/x\\x2dy").write_bytes(b"C=1")
    for pattern in ("/etc/default/x\\\\x2dy", "/etc/default/x\\\\x2d?"):
        assert list(system.environment_files(pattern)) == [("/etc/default/x\\x2dy", b"C=1")], pattern
    assert list(system.environment_files("/etc/default/x\\x2dy")) == [], "there the backslash escapes the x"
    write(tmp_path, "/etc/default/c\\x2d[1]", "C=1")
    escaped = r"/etc/default/c\\x2d\[1\]"
    for pattern in (escaped, escaped + "*", r"/etc/default/\c\\x2d\[1]"):
        assert list(system.environment_files(pattern)) == [("/etc/default/c\\x2d[1]", b"C=1")]


def _bound(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)  # bind() takes no path of more than 107 bytes


NO_FILES = {
    "a named pipe": lambda path: os.mkfifo(path),
    "a link to a named pipe": lambda path: (os.mkfifo(str(path) + ".pipe"), path.symlink_to(str(path) + ".pipe")),
    "a folder": lambda path: path.mkdir(),
    "a socket": _bound,
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "terabytes": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_is_neither_waited_for_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    """An EnvironmentFile= may lie in a user's folder; drop-ins and unit files do not, and are read the same way."""
    for path in ("/home/u/env", "/etc/systemd/system/x.service", "/etc/systemd/system/y.service.d/a.conf"):
        place = Path(str(tmp_path) + path)
        place.parent.mkdir(parents=True, exist_ok=True)
        make(place)
    system = System(str(tmp_path))
    monkeypatch.setattr(manager.os, "open", _opens_regular(os.open))
    assert system.read("/home/u/env") is None
    assert list(system.environment_files("/home/u/env")) == list(system.environment_files("/home/u/e*v")) == []
    assert system.load(["x.service"]) == [("/etc/systemd/system/x.service", b"")]
    assert system.load(["y.service"]) == [("/etc/systemd/system/y.service.d/a.conf", b"")]
    assert system.load(["z.service"]) == []


def _opens_regular(real: Any) -> Any:
    """To open a device may do something: a watchdog begins to count."""

    def open_(path: str, *arguments: Any, **more: Any) -> int:
        assert stat.S_ISREG(os.stat(path).st_mode), path
        return real(path, *arguments, **more)

    return open_


def test_a_pipe_that_takes_the_place_of_a_file_just_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, pipe = tmp_path / "env", tmp_path / "pipe"
    file.write_text("A=1")
    os.mkfifo(pipe)
    real = os.open
    monkeypatch.setattr(manager.os, "open", lambda path, *more: (os.rename(pipe, file), real(path, *more))[1])
    assert System(str(tmp_path)).read("/env") is None


def test_a_file_in_proc_is_read_though_it_has_no_size() -> None:
    assert System().read("/proc/self/stat")


def test_specifiers(tmp_path: Path) -> None:
    write(tmp_path, "/etc/os-release", 'ID=debian\nVERSION_ID="12"\n')
    write(tmp_path, "/etc/machine-id", "abc\n")
    system = System(str(tmp_path))
    found = system.specifiers("a-b\\x2dc@x-y.service", "/etc/systemd/system/a-b\\x2dc@.service")
    assert {letter: found[letter] for letter in "nNpPiIjJfoYmut"} == {
        "n": "a-b\\x2dc@x-y.service",
        "N": "a-b\\x2dc@x-y",
        "p": "a-b\\x2dc",
        "P": "a/b-c",
        "i": "x-y",
        "I": "x/y",
        "j": "b\\x2dc",
        "J": "b-c",
        "f": "/x/y",
        "o": "debian",
        "Y": "/etc/systemd/system",
        "m": "abc",
        "u": "root",
        "t": "/run",
    }
    write(tmp_path, "/etc/os-release", "\0")
    assert system.specifiers("x.service")["o"] == ""


PATH_OF = {
    "a-b.service": "/a/b",
    "x@a-b.service": "/a/b",
    "x@-.service": "/",
    "a\\x2db.service": "/a-b",
    "x-.service": None,
    "x@-a.service": None,
    "a--b.service": None,
    "x@..-a.service": None,
    "x@a\\x2.service": None,
}


@pytest.mark.parametrize("unit, path", PATH_OF.items())
def test_the_path_that_a_name_stands_for(tmp_path: Path, unit: str, path: Optional[str]) -> None:
    """systemd drops a word with what stands for nothing."""
    assert System(str(tmp_path)).specifiers(unit).get("f") == path


def test_a_name_that_is_not_escaped(tmp_path: Path) -> None:
    found = System(str(tmp_path)).specifiers("a\\zz@b\\.service")
    assert not {"P", "I", "J", "f"} & {*found} and found["p"] == "a\\zz"


@pytest.mark.parametrize(
    "library, version, known",
    [("247.so", 247, ""), ("251-2.so", 251, "dyY"), ("257.9-1.so", 257, "dyYD"), (None, 252, "dyY")],
)
def test_specifiers_by_version(tmp_path: Path, library: Optional[str], version: int, known: str) -> None:
    if library:
        write(tmp_path, "/proc/1/maps", "7f r-xp 0 08:01 5   /usr/lib/x/systemd/libsystemd-shared-%s\n" % library)
    found = System(str(tmp_path)).specifiers("x.service", "/etc/systemd/system/x.service")
    assert found["systemd"] == str(version) and {*"dyYD"} & {*found} == {*known}


def test_specifiers_of_a_linked_unit(tmp_path: Path) -> None:
    write(tmp_path, "/srv/u/x.service")
    write(tmp_path, "/etc/machine-info", 'PRETTY_HOSTNAME="My host"\n')
    link = tmp_path / "etc/systemd/system/x.service"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "srv/u/x.service")
    found = System(str(tmp_path)).specifiers("x.service", "/etc/systemd/system/x.service")
    assert (found["y"], found["Y"], found["q"]) == ("/srv/u/x.service", "/srv/u", "My host")


# --- processes


def proc(root: Path, pid: int, comm: str, environ: bytes, end: int = 140720000000000) -> None:
    write(root, "/proc/%d/comm" % pid, comm + "\n")
    write(root, "/proc/%d/stat" % pid, "%d (%s) S %s %d 0\n" % (pid, comm, " ".join(["0"] * 47), end))
    (root / ("proc/%d/environ" % pid)).write_bytes(environ)


def test_environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(str(tmp_path))
    proc(tmp_path, 7, "ollama", b"A=1\0B=x=y\xff\0junk\0")
    assert system.environ(7) == {"A": "1", "B": "x=y\udcff"}
    for title in (b"\0\0\0\0", b"er process nginx\0\0\0\0", b"le\0\0\0B=1\0"):
        proc(tmp_path, 6, "nginx", title)
        assert system.environ(6) == {}, "the program has written over it"
    proc(tmp_path, 8, "(ollama)", b"PATH=/bin\0")
    assert system.environ(8) is None, "the child is still systemd itself"
    proc(tmp_path, 8, "(odd)", b"INVOCATION_ID=1\0")
    assert system.environ(8) == {"INVOCATION_ID": "1"}, "a program may be called so"
    assert system.environ(9) is None
    proc(tmp_path, 10, "8", b"PATH=/bin\0")
    (tmp_path / "proc/10/exe").symlink_to("/usr/lib/systemd/systemd-executor")
    assert system.environ(10) is None, "since 255 it is another program, at first by the name of a descriptor"
    proc(tmp_path, 10, "8", b"INVOCATION_ID=1\0")
    assert system.environ(10) == {"INVOCATION_ID": "1"}
    proc(tmp_path, 9, "ollama", b"")
    assert system.environ(9) == {}
    proc(tmp_path, 9, "ollama", b"", end=0)
    assert system.environ(9) is None, "the kernel has not laid the environment out yet"
    proc(tmp_path, 1, "systemd", b"LANG=C\0")
    assert system.inherited() == {"LANG": "C"}

    def refuses(*_arguments: Any, **_more: Any) -> None:
        raise PermissionError(13, "Permission denied", "/proc/7/environ")

    monkeypatch.setattr("builtins.open", refuses)
    with pytest.raises(ManagerError, match="only root"):
        system.environ(7)


def test_credential(tmp_path: Path) -> None:
    write(tmp_path, "/proc/7/root/run/credentials/u.service/key", "1")
    system = System(str(tmp_path))
    assert system.credential(7, {"CREDENTIALS_DIRECTORY": "/run/credentials/u.service"}, "key") == b"1"
    assert system.credential(7, {"CREDENTIALS_DIRECTORY": "/run/credentials/u.service"}, "other") is None
    assert system.credential(7, {}, "key") is None


def test_pids(tmp_path: Path) -> None:
    write(tmp_path, "/sys/fs/cgroup/system.slice/x.service/cgroup.procs", "12\n7\n")
    write(tmp_path, "/sys/fs/cgroup/system.slice/x.service/sub/cgroup.procs", "99\n")
    system = System(str(tmp_path))
    assert system.pids("/system.slice/x.service") == [7, 12, 99]
    assert system.pids("") == [] and system.pids("/nothing") == []


@pytest.fixture
def sleeper() -> Any:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.wait()


@pytest.mark.parametrize("pidfd", [True, False])
def test_the_end_of_a_process_is_noticed(sleeper: Any, monkeypatch: pytest.MonkeyPatch, pidfd: bool) -> None:
    if not pidfd:
        monkeypatch.delattr(manager.os, "pidfd_open", raising=False)
    process = Process(sleeper.pid)
    assert process.alive() and not process.ended_within(0.01)
    threading.Timer(0.05, sleeper.kill).start()
    assert process.ended_within(30) and not process.alive()


def test_a_process_that_never_was() -> None:
    process = Process(2**22 + 1)
    assert not process.alive() and process.ended_within(30)
    assert System().process(os.getpid()).alive()


# --- the lock


def test_the_lock_of_a_unit(tmp_path: Path) -> None:
    system = System(str(tmp_path))
    with system.lock("u.service", 1):
        taken = "another run, process %d, is still busy with u.service after 0 s" % os.getpid()
        with pytest.raises(ManagerError, match=taken), system.lock("u.service", 0):
            pass
    with pytest.raises(BlockingIOError), system.lock("u.service", 0):
        raise BlockingIOError


# --- who listens


def listening(tmp_path: Path, pid: int) -> System:
    """A host on which a process listens at ports 80 (IPv4) and 443 (IPv6), and one has a connection from port 81."""
    tables = {
        "tcp": "0100007F:0050 00000000:0000 0A 0:0 0:0 0 0 0 {ipv4} 1 x\n 1: 0100007F:0051 0100007F:0050 01 0:0 0:0 0 0 0 9",
        "tcp6": "00000000000000000000000000000000:01BB 0:0 0A 0:0 0:0 0 0 0 {ipv6} 1 x",
    }
    (tmp_path / "proc/net").mkdir(parents=True)
    for name, lines in tables.items():
        (tmp_path / "proc/net" / name).write_text("  sl  local_address\n 0: %s\n" % lines.format(ipv4=1111, ipv6=2222))
    for number, sockets in ((7, [9]), (pid, [1111, 2222])):
        folder = tmp_path / "proc" / str(number)
        (folder / "fd").mkdir(parents=True)
        (folder / "comm").write_text("server%d\n" % number)
        for descriptor, inode in enumerate(sockets):
            (folder / "fd" / str(descriptor)).symlink_to("socket:[%d]" % inode)
    return System(str(tmp_path))


@pytest.mark.parametrize("port, found", [(80, (42, "server42")), (443, (42, "server42")), (81, None), (8080, None)])
def test_who_listens_on_a_port(tmp_path: Path, port: int, found: Any) -> None:
    assert listening(tmp_path, 42).listener(port) == found


def test_a_listener_that_is_in_no_process(tmp_path: Path) -> None:
    system = listening(tmp_path, 42)
    for name in os.listdir(tmp_path / "proc/42/fd"):
        os.unlink(tmp_path / "proc/42/fd" / name)
    assert system.listener(80) == (0, "unknown")
    assert System(str(tmp_path / "empty")).listener(80) is None


def test_the_program_of_a_process(tmp_path: Path) -> None:
    (tmp_path / "proc/5").mkdir(parents=True)
    (tmp_path / "proc/5/exe").symlink_to("/usr/local/bin/ollama (deleted)")
    assert System(str(tmp_path)).program(5) == "/usr/local/bin/ollama (deleted)"
    assert System(str(tmp_path)).program(6) is None


# --- the main process


class Passing:
    """A unit whose states and environments come one after the other; the last ones stay."""

    def __init__(self, states: List[Dict[str, str]], environs: List[Optional[Dict[str, str]]]) -> None:
        self.states, self.environs, self.shown = states, environs, 0

    def show(self, unit: str) -> Dict[str, str]:
        self.shown += 1
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def environ(self, pid: int) -> Optional[Dict[str, str]]:
        return self.environs.pop(0) if len(self.environs) > 1 else self.environs[0]


ACTIVE = {"ActiveState": "active", "MainPID": "7"}


def test_the_main_process_is_waited_for_until_it_is_executed() -> None:
    unit: Any = Passing([ACTIVE], [None, None, {"A": "1"}])
    assert manager.main_environ(unit, "a.service", 60) == (ACTIVE, {"A": "1"})
    assert unit.shown == 3


def test_that_a_process_has_ended_is_waited_for_until_systemd_knows_it() -> None:
    ended = {"ActiveState": "failed", "MainPID": "0"}
    unit: Any = Passing([ACTIVE, {"ActiveState": "deactivating", "MainPID": "0"}, ended], [None])
    assert manager.main_environ(unit, "a.service", 60, ("deactivating",)) == (ended, {})


def test_a_state_that_is_known_is_not_asked_for() -> None:
    unit: Any = Passing([ACTIVE], [{"A": "1"}])
    assert manager.main_environ(unit, "a.service", 60, state=ACTIVE) == (ACTIVE, {"A": "1"})
    assert unit.shown == 0


def test_a_main_process_that_never_tells_is_waited_for_no_longer_than_allowed() -> None:
    unit: Any = Passing([ACTIVE], [None])
    assert manager.main_environ(unit, "a.service", 0.1) == (ACTIVE, {})
