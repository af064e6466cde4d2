# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two runs at once, and what others do to make a run wait, fail, or write into root's files."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Callable, Iterator, List, Set

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import lock
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.lock import LockError, held

STRANGER = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be misled")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the locks, made by nobody yet."""
    path = tmp_path / "run"
    monkeypatch.setattr(lock, "FOLDER", str(path))
    monkeypatch.setattr(lock, "FOLDER_OF_USER", str(path) + "%.0d")
    return path


def names(folder: Path) -> List[str]:
    return sorted(os.listdir(folder))


def test_the_holder_is_named(folder: Path) -> None:
    taken = "another run, process %d, is still busy with the unit after 0 s .lock %s/u.lock" % (os.getpid(), folder)
    with held("u", 1):
        with pytest.raises(LockError, match=taken) as error, held("u", 0, what="the unit"):
            pass
        assert isinstance(error.value, OSError) and str(error.value) == error.value.strerror
        with held("other", 0):
            assert names(folder) == ["other.lock", "u.lock"]
    assert names(folder) == [] and folder.stat().st_mode & 0o777 == 0o700


def test_it_is_waited_for(folder: Path) -> None:
    order: List[str] = []
    inside, seen = threading.Event(), threading.Event()
    held_by: Set[str] = set()

    def first() -> None:
        with held("u", 1):
            inside.set()
            order.append("first in")
            assert seen.wait(10)
            order.append("first out")

    def waiting(holder: str) -> None:
        held_by.add(holder)
        seen.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    with held("u", 30, waiting):
        order.append("second in")
    thread.join()
    assert order == ["first in", "first out", "second in"] and held_by == {str(os.getpid())}


def test_an_error_under_it_is_passed_on_and_frees_it(folder: Path) -> None:
    with pytest.raises(BlockingIOError), held("u", 0):
        raise BlockingIOError
    with held("u", 0):
        pass


@pytest.mark.parametrize("name", ["/opt/a b/é", "x" * 300, "é" * 300, "..", "models-::1-80"])
def test_any_name_is_a_file_in_the_folder(folder: Path, name: str) -> None:
    with held(name, 0):
        assert len(names(folder)) == 1
        with pytest.raises(LockError), held(name, 0):
            pass
    assert names(folder) == [] and names(folder.parent) == ["run"]


def test_many_at_once_never_meet(folder: Path) -> None:
    """The file is removed by each holder, while others have it open."""
    inside: List[int] = []

    def work() -> None:
        for _ in range(40):
            with held("u", 60):
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    failures: List[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lock.time, "sleep", lambda _seconds: os.sched_yield())
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures and names(folder) == []


def test_a_file_that_its_holder_has_just_removed_is_no_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, how: int) -> None:
        monkeypatch.undo()
        (folder / "u.lock").unlink()
        fcntl.flock(descriptor, how)

    with held("v", 0):  # makes the folder
        pass
    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with held("u", 0, lambda holder: None):
        assert names(folder) == ["u.lock"]


def test_it_is_not_lost_to_a_file_that_takes_its_place(folder: Path) -> None:
    """Somebody cleans the folder: whoever holds the lock then removes no file that is another run's."""
    with held("u", 0):
        (folder / "u.lock").unlink()
        with held("u", 0):
            pass
        (folder / "u.lock").write_text("1\n")
    assert (folder / "u.lock").read_text() == "1\n"
    with held("u", 0):
        (folder / "u.lock").unlink()
        folder.rmdir()


def test_the_lock_of_a_killed_run_is_free(folder: Path) -> None:
    ready, writing = os.pipe()
    child = os.fork()
    if not child:
        with held("u", 0):
            os.write(writing, b"x")
            signal.pause()
    os.read(ready, 1)
    with pytest.raises(LockError, match="process %d," % child), held("u", 0):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with held("u", 0):
        assert (folder / "u.lock").read_text() == "%d\n" % os.getpid()


def test_a_forked_child_keeps_no_lock(folder: Path) -> None:
    """It may run as the service's user, who can stop it for ever."""
    end, writing = os.pipe()
    begun, ready = os.pipe()
    with held("u", 0):
        inode = (folder / "u.lock").stat().st_ino
        child = os.fork()
        if not child:
            os.close(writing)
            os.write(ready, b"x")
            os.read(end, 1)
            os._exit(0)
        os.read(begun, 1)
        kept = [os.stat(path).st_ino for path in Path("/proc/%d/fd" % child).iterdir() if path.exists()]
        copy = os.open(folder / "u.lock", os.O_RDWR)
    try:
        assert inode not in kept
        fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(writing)
        os.waitpid(child, 0)


# --- what others put there


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A file of root's, which must be as it was."""
    path = tmp_path / "shadow"
    path.write_text("root:secret")
    path.chmod(0o600)
    yield path
    assert path.read_text() == "root:secret" and path.stat().st_mode & 0o777 == 0o600 and path.stat().st_uid == 0


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 8))
    except PermissionError:
        pytest.skip("this container may not make devices")


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


ATTACKS = {
    "a link to a file": lambda path, secret: path.symlink_to(secret),
    "a dangling link": lambda path, secret: path.symlink_to(secret.parent / "new"),
    "another name of a file": lambda path, secret: os.link(secret, path),
    "a named pipe": lambda path, secret: os.mkfifo(path),
    "a folder": lambda path, secret: path.mkdir(),
    "a socket": lambda path, secret: bound(path),
    "a device": lambda path, secret: device(path),
    "text": lambda path, secret: (path.write_text("1: call 555-evil"), os.chown(path, STRANGER, STRANGER)),
}


@root_only
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_what_stands_in_the_place_of_the_file(folder: Path, secret: Path, attack: Callable[[Path, Path], None]) -> None:
    folder.mkdir()
    attack(folder / "u.lock", secret)
    before = (folder / "u.lock").lstat()
    with pytest.raises(LockError, match="u.lock is a.* of user .*; expected a file of user 0") as error, held("u", 0):
        raise AssertionError("locked")
    assert "evil" not in str(error.value)
    assert (folder / "u.lock").lstat() == before and not (secret.parent / "new").exists()


FOLDERS = {
    "a link to a folder of root's": lambda path: path.symlink_to(path.parent / "roots"),
    "a dangling link": lambda path: path.symlink_to(path.parent / "nowhere"),
    "a folder of a stranger": lambda path: (path.mkdir(), os.chown(path, STRANGER, STRANGER)),
    "a named pipe": lambda path: os.mkfifo(path),
    "a file": lambda path: path.write_text(""),
}


@root_only
@pytest.mark.parametrize("attack", FOLDERS.values(), ids=FOLDERS)
def test_what_stands_in_the_place_of_the_folder(folder: Path, attack: Callable[[Path], None]) -> None:
    (folder.parent / "roots").mkdir()
    attack(folder)
    with pytest.raises(LockError, match="%s is a.* of user .*; expected a folder of user 0" % folder), held("u", 0):
        raise AssertionError("locked")
    assert names(folder.parent / "roots") == [] and not (folder.parent / "nowhere").exists()


@root_only
def test_a_folder_that_was_open_to_others_is_closed(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with held("u", 0):
        assert folder.stat().st_mode & 0o777 == 0o700


@root_only
@pytest.mark.parametrize("umask", [0, 0o27, 0o77, 0o177])
def test_nobody_else_can_hold_it(folder: Path, umask: int) -> None:
    former = os.umask(umask)
    try:
        with held("u", 0):
            pass
    finally:
        os.umask(former)
    folder.parent.chmod(0o755)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.setgid(STRANGER)
        os.setuid(STRANGER)
        for attempt in (
            lambda: os.open(folder / "u.lock", os.O_CREAT | os.O_RDWR),
            lambda: os.open(folder, os.O_RDONLY),
            lambda: os.rename(folder, str(folder) + ".mine"),
        ):
            with suppress(PermissionError):
                attempt()
                os.write(write, b"!")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    assert os.read(read, 1) == b""


@pytest.mark.parametrize("text", ["", "call 555-evil", "12;rm", "\x1b[2J", "٣"])
def test_only_a_number_names_the_holder(folder: Path, text: str) -> None:
    folder.mkdir()
    with open(folder / "u.lock", "w+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(text)
        file.flush()
        with pytest.raises(LockError, match="process unknown,"), held("u", 0):
            pass
