# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.users import (
    STRANGER,
    Ids,
    as_user,
    beginning,
    ids_of,
    ids_of_process,
    output_of,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can work as somebody else")
USER = Ids(40404, 40405, [40406])
NEVER_OPEN = 2**31 - 1
"""A descriptor. A low number may be open: a simulated kill leaves descriptors behind in the process of the tests."""


def test_it_has_the_ids_of_the_user_and_none_of_root() -> None:
    def ids() -> Any:
        return [*os.getresuid(), *os.getresgid(), *os.getgroups()]

    assert as_user(USER, ids) == [40404] * 3 + [40405] * 3 + [40406]
    assert os.geteuid() == 0


def test_it_can_do_what_the_user_can_and_no_more(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    with pytest.raises(PermissionError) as caught:
        as_user(USER, secret.read_text)
    assert caught.value.filename == str(secret)
    with pytest.raises(PermissionError):
        as_user(USER, lambda: os.setuid(0))


@pytest.mark.parametrize(
    "work, said",
    [
        (lambda: 1 / 0, "division by zero"),
        (lambda: os._exit(3), "ended without an answer"),
        (lambda: os.kill(os.getpid(), 9), "ended without an answer"),
        (lambda: object(), "not JSON serializable"),
        (lambda: signal.raise_signal(signal.SIGSTOP), "longer than"),
    ],
    ids=["raises", "exits", "killed", "not data", "stopped"],
)
def test_it_fails(work: Any, said: str) -> None:
    with pytest.raises(Failed, match=said):
        as_user(USER, work, limit=0.5)


def test_an_error_of_a_descriptor() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        as_user(USER, lambda: os.chmod(NEVER_OPEN, 0o644))


def test_a_pipe_of_the_user_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    children, fork = [0], os.fork
    monkeypatch.setattr(os, "fork", lambda: children.append(fork()) or children[-1])
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be entered by root alone
        os.chown(folder, USER.uid, USER.gid)
        pipe = Path(folder) / "pipe"
        as_user(USER, lambda: os.mkfifo(pipe))
        with pytest.raises(Failed, match="longer than"):
            as_user(USER, pipe.read_text, limit=0.05)
    with pytest.raises(ChildProcessError):
        os.waitpid(children[-1], os.WNOHANG)  # it is gone; other tests may have children of theirs


def test_what_is_done_in_memory_is_lost() -> None:
    found: list = []
    as_user(USER, lambda: found.append(1))
    assert found == []


def test_root_by_name_and_nobody_by_none() -> None:
    assert ids_of("root") == ids_of("0") and ids_of("root").uid == 0  # type: ignore[union-attr]
    assert ids_of("no-such-user") is None and ids_of(str(STRANGER)) is None


def test_much_to_tell() -> None:
    assert len(as_user(USER, lambda: "x" * 3_000_000)) == 3_000_000
    started = time.monotonic()
    assert as_user(USER, lambda: None) is None
    assert time.monotonic() >= started


def test_work_that_yields_may_take_longer_than_the_limit() -> None:
    def beats() -> Any:
        for _beat in range(6):
            time.sleep(0.1)
            yield
        return "  done"

    assert as_user(USER, beats, limit=0.3) == "  done"


def test_work_that_stops_yielding_is_ended() -> None:
    def stalls() -> Any:
        yield
        signal.pause()

    with pytest.raises(Failed, match="longer than"):
        as_user(USER, stalls, limit=0.05)


def test_the_user_cannot_look_into_its_memory() -> None:
    def look() -> Any:
        own = os.getpid()
        if not os.fork():
            try:
                os.setsid()
                os.open("/proc/%d/mem" % own, os.O_RDONLY)
            except PermissionError:
                os._exit(0)
            os._exit(1)
        return os.wait()[1]

    assert as_user(USER, look) == 0


ORPHAN = """
import fcntl, os, signal, sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.users import Ids, as_user
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed
lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
fcntl.flock(lock, fcntl.LOCK_EX)
def work():
    os.write(1, b"%d" % os.getpid())
    os.close(1)
    signal.pause()
as_user(Ids(40404, 40405, []), work)
"""


def test_it_dies_with_its_parent_and_holds_its_lock_until_then(tmp_path: Path) -> None:
    root = next(path for path in sys.path if os.path.isdir(os.path.join(path, "ansible_collections", "gpufleet")))
    lock = tmp_path / "lock"
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN, root, str(lock)], stdout=subprocess.PIPE)
    assert parent.stdout
    child = int(os.read(parent.stdout.fileno(), 20))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # once it is free, nobody works any more
    until = time.monotonic() + 60
    while running(child) and time.monotonic() < until:  # the kernel frees the lock in the midst of the child's end
        time.sleep(0.01)
    assert not running(child)


def running(pid: int) -> bool:
    try:
        return Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_ids_of_a_process() -> None:
    assert as_user(USER, lambda: list(ids_of_process(os.getpid()))) == [40404, 40405, [40406]]
    with pytest.raises(OSError, match="No such file"):
        ids_of_process(1 << 30)


def test_a_child_that_cannot_be_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sleeps in the kernel, on a file system that hangs; here it is only left alone."""
    children, kill = [], os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: children.append(pid))
    with pytest.raises(Failed, match="took longer than 0 s"):
        as_user(USER, lambda: time.sleep(600), 0)
    kill(children[0], signal.SIGKILL)
    os.waitpid(children[0], 0)


def test_the_beginning_of_a_file_that_the_user_may_read() -> None:
    with tempfile.TemporaryDirectory(prefix="gpufleet-") as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "file")
        path.write_bytes(b"GGUF and more")
        assert beginning(USER, str(path), 4) == b"GGUF" and beginning(USER, str(path), 0) == b""
        path.chmod(0o600)
        with pytest.raises(PermissionError):
            beginning(USER, str(path), 4)
        os.mkfifo(Path(folder, "pipe"), 0o644)
        assert beginning(USER, str(Path(folder, "pipe")), 4) == b"", "a pipe is not waited for"


def test_the_output_of_a_command_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of root")
    status, said = output_of(USER, ["sh", "-c", "id -u; id -g; env; echo wrong >&2; exit 3"], 60, 4096)
    assert status == 3 and said.startswith("40404\n40405\n") and said.endswith("wrong\n")
    assert "SECRET" not in said
    status, said = output_of(USER, ["yes"], 60, 4096)
    assert status != 0 and len(said) == 4096, "one that says too much is ended"
    with pytest.raises(FileNotFoundError):
        output_of(USER, ["/nosuch"], 60, 4096)
    status, said = output_of(USER, ["sh", "-c", "pwd; echo $A $SECRET"], 60, 4096, {"A": "b"}, "/tmp")
    assert said == "/tmp\nb\n"


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        script = "sleep 600 & echo $! >%s/pid; wait" % folder
        with pytest.raises(Failed, match="it did not end within 1 s"):
            output_of(USER, ["sh", "-c", script], 1, 4096)
        child = Path("/proc", Path(folder, "pid").read_text().strip(), "stat")
        until(lambda: not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z")
