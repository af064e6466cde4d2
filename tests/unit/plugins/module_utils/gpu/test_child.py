# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The child process: results in parts, a limit that holds, nothing left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import child


def gone(pid):
    """Whether a process has ended (a zombie has)."""
    try:
        with open("/proc/%d/stat" % pid) as source:
            return source.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def await_gone(pid):
    deadline = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < deadline, "process %d is still there" % pid
        select_nothing()


def select_nothing():
    signal.sigtimedwait([signal.SIGUSR2], 0.01)


def test_parts_in_order():
    def work(emit):
        for number in range(3):
            emit("part", {"number": number, "text": "ä", "list": [1.5, None, True]})

    assert child.run(work, 10) == (
        [("part", {"number": n, "text": "ä", "list": [1.5, None, True]}) for n in range(3)],
        None,
    )


def test_much_more_than_a_pipe_holds():
    parts, ended = child.run(lambda emit: emit("big", "x" * 3_000_000), 10)
    assert ended is None and len(parts[0][1]) == 3_000_000


def test_error_is_told():
    def work(emit):
        emit("before", 1)
        raise ValueError("no such thing")

    assert child.run(work, 10) == ([("before", 1)], "ValueError: no such thing")


def test_death_is_told():
    def work(emit):
        emit("pid", os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)

    parts, ended = child.run(work, 10)
    assert ended == "the process that read the GPUs died"
    assert gone(parts[0][1])


def test_what_cannot_be_sent_is_an_error():
    parts, ended = child.run(lambda emit: emit("object", object()), 10)
    assert parts == [] and ended.startswith("ValueError")


@pytest.fixture
def hangs(monkeypatch):
    """`hangs(work)` runs what says one thing and hangs: its limit begins with that, however busy the machine is."""
    read = child._read_until

    def read_until(reading, _deadline):
        assert select.select([reading], [], [], 60)[0]
        return read(reading, time.monotonic() + 0.05)

    monkeypatch.setattr(child, "_read_until", read_until)
    return lambda work: child.run(work, 60)


def test_hang_ends_at_the_limit_with_what_was_told(hangs):
    def work(emit):
        emit("pid", os.getpid())
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        while True:
            signal.pause()

    parts, ended = hangs(work)
    assert ended == "timeout"
    await_gone(parts[0][1])


def test_what_the_child_started_is_killed_too(hangs):
    def work(emit):
        emit("pid", subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]).pid)
        while True:
            signal.pause()

    parts, ended = hangs(work)
    assert ended == "timeout"
    await_gone(parts[0][1])


def test_child_that_cannot_be_killed_is_not_waited_for(monkeypatch):
    sent = []
    monkeypatch.setattr(child.os, "killpg", lambda pid, signum: sent.append((pid, signum)))
    kill = os.kill
    monkeypatch.setattr(child.os, "kill", lambda pid, signum: sent.append((pid, signum)))
    parts, ended = child.run(lambda emit: (emit("pid", os.getpid()), signal.pause()), 0.3)
    assert ended == "timeout"
    pid = parts[0][1]
    assert sent == [(pid, signal.SIGKILL), (pid, signal.SIGKILL)]
    assert not gone(pid)
    kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_child_holds_no_file_of_its_parent(tmp_path):
    """An SSH connection ends when nobody holds its streams any more: a child that cannot be killed must not."""

    def work(emit):
        files = [os.readlink("/proc/self/fd/%s" % name) for name in os.listdir("/proc/self/fd") if _is_open(name)]
        emit("files", sorted(set(files)))

    def _is_open(name):
        return os.path.lexists("/proc/self/fd/%s" % name)

    with open(tmp_path / "lock", "w"):
        parts, ended = child.run(work, 10)
    assert ended is None
    (null, pipe) = parts[0][1]
    assert null == "/dev/null" and pipe.startswith("pipe:")


def test_child_has_a_session_of_its_own():
    parts, ended = child.run(lambda emit: emit("session", os.getsid(0) == os.getpid()), 10)
    assert parts == [("session", True)]


@pytest.mark.parametrize("cut", range(1, 25, 4))
def test_parts_that_were_cut_off(cut):
    whole = child.marshal.dumps(("one", 1)) + child.marshal.dumps(("two", "two"))
    parts = child._parts(whole[:-cut])
    assert parts in ([("one", 1)], [])


def test_child_side(monkeypatch):
    """What the child does, seen from inside: coverage does not follow a fork."""
    calls = []
    monkeypatch.setattr(child.os, "setsid", lambda: calls.append("setsid"))
    monkeypatch.setattr(child, "_let_go_of_files", lambda writing: calls.append("files"))
    monkeypatch.setattr(child.os, "_exit", lambda status: calls.append(status))
    monkeypatch.setattr(child.signal, "signal", lambda signum, handler: calls.append(signum))
    reading, writing = os.pipe()

    def work(emit):
        emit("one", 1)
        raise RuntimeError("broken")

    child._be_child(work, writing)
    assert child._parts(os.read(reading, 1000)) == [("one", 1), ("ended", "RuntimeError: broken")]
    child._be_child(lambda emit: None, writing)
    assert child._parts(os.read(reading, 1000)) == [("ended", None)]
    assert calls[:2] == ["setsid", "files"] and calls[-1] == 0
    os.close(reading)
    os.close(writing)


def test_files_the_child_lets_go_of(monkeypatch):
    """The same from inside."""
    closed, replaced = [], []

    def close(number):
        if number == 11:
            raise OSError("it is closed")
        closed.append(number)

    monkeypatch.setattr(child.os, "listdir", lambda path: ["0", "1", "2", "7", "9", "11"])
    monkeypatch.setattr(child.os, "close", close)
    monkeypatch.setattr(child.os, "open", lambda path, flags: 50)
    monkeypatch.setattr(child.os, "dup2", lambda old, new: replaced.append((old, new)))
    child._let_go_of_files(9)
    assert closed == [7]
    assert replaced == [(50, 0), (50, 1), (50, 2)]
