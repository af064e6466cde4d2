# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user of the host may put in the way of root, and that root touches nothing of its own by it."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Callable, Dict, Iterator

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.trusted import trusted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be misled")

USER = 40404


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A folder of a user of the host."""
    folder = tmp_path / "users"
    folder.mkdir(mode=0o755)
    os.chown(folder, USER, USER)
    return folder


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[Path]:
    """A folder of root with a file, both as they were at the end."""
    folder = tmp_path / "roots"
    folder.mkdir(mode=0o700)
    (folder / "shadow").write_text("root:secret")
    (folder / "shadow").chmod(0o600)
    before = look(folder)
    yield folder
    assert look(folder) == before


def look(folder: Path) -> Dict[str, tuple]:
    found = {}
    for path in [folder, *folder.rglob("*")]:
        at = path.lstat()
        text = path.read_text() if stat.S_ISREG(at.st_mode) else ""
        found[str(path)] = (at.st_mode, at.st_uid, at.st_gid, at.st_nlink, text)
    return found


# --- folders


def test_a_folder_of_the_user(users: Path) -> None:
    made = files.make_folders(str(users / "a" / "b"), (USER, USER))
    assert made == [str(users / "a"), str(users / "a" / "b")]
    assert ((users / "a").stat().st_uid, (users / "a" / "b").stat().st_uid) == (0, USER)
    assert stat.S_IMODE((users / "a" / "b").stat().st_mode) == 0o755
    assert files.make_folders(str(users / "a" / "b"), (0, 0)) == []
    assert (users / "a" / "b").stat().st_uid == USER


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077, 0o777])
def test_folders_are_passable_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    former = os.umask(umask)
    try:
        files.make_folders(str(tmp_path / "a" / "b"))
    finally:
        os.umask(former)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")] == [0o755, 0o755]


@pytest.mark.parametrize("below", ["", "new", "new/er"])
def test_a_link_of_the_user_is_not_followed(users: Path, roots: Path, below: str) -> None:
    (users / "link").symlink_to(roots)
    if not below:  # the link itself leads to a folder: that is none of the user's
        with pytest.raises(files.UnsafePath), files.folder(str(users / "link")):
            pass
    with pytest.raises(files.UnsafePath, match="link is a symbolic link in a folder that others"):
        files.make_folders(str(users / "link" / below), (USER, USER))


def test_a_dangling_link_of_the_user(users: Path, roots: Path) -> None:
    (users / "link").symlink_to(roots / "new")
    with pytest.raises(files.UnsafePath):
        files.make_folders(str(users / "link"), (USER, USER))


def test_links_of_root_are_followed(tmp_path: Path) -> None:
    place = Path("/run") / ("gpufleet-test-%d" % os.getpid())  # above it are root's own folders alone
    place.mkdir(mode=0o755)
    try:
        (place / "to").mkdir()
        (place / "absolute").symlink_to(place / "to")
        (place / "relative").symlink_to("to")
        (place / "up").symlink_to("to/../to")
        (place / "circle").symlink_to("circle")
        for name in ("absolute", "relative", "up"):
            files.write_whole(str(place / name / name), b"x")
        assert sorted(os.listdir(place / "to")) == ["absolute", "relative", "up"]
        with pytest.raises(files.UnsafePath):
            files.make_folders(str(place / "circle" / "x"))
    finally:
        files.remove_tree(str(place))
    assert not place.exists()


@pytest.mark.parametrize("path", ["relative/path", "/tmp/../etc", ""])
def test_a_path_that_is_none(path: str) -> None:
    with pytest.raises(files.UnsafePath, match="not an absolute path"), files.folder(path):
        pass


def test_what_is_in_the_way_of_a_folder(users: Path) -> None:
    (users / "file").write_text("mine")
    with pytest.raises(OSError):
        files.make_folders(str(users / "file" / "below"))
    assert (users / "file").read_text() == "mine"


def test_a_new_folder_swapped_for_a_link_is_not_given_away(users: Path, roots: Path) -> None:
    """The user waits for the folder and puts a link in its place before it is given to him: hundreds of tries."""
    target, stop = users / "new", threading.Event()

    def swap() -> None:
        while not stop.is_set():
            try:
                os.rename(target, users / "away")
                os.symlink(roots, target)
            except OSError:
                pass

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _attempt in range(400):
            for step in (
                lambda: files.make_folders(str(target), (USER, USER)),
                lambda: os.unlink(target),
                lambda: os.rmdir(target),
                lambda: os.rmdir(users / "away"),
            ):
                with suppress(OSError):
                    step()
            assert roots.stat().st_uid == 0
    finally:
        stop.set()
        thread.join()


SWAPS: Dict[str, Callable[[Path, Path], object]] = {
    "link": lambda path, roots: path.symlink_to(roots),
    "file": lambda path, roots: path.write_text(""),
    "pipe": lambda path, roots: os.mkfifo(path),
    "folder": lambda path, roots: (path.mkdir(), os.chown(path, USER, USER)),
    "nothing": lambda path, roots: None,
}


@pytest.mark.parametrize("swap", SWAPS)
def test_a_folder_swapped_at_the_worst_moment(
    users: Path, roots: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    mkdir = os.mkdir

    def mkdir_and_swap(name: str, mode: int, dir_fd: int) -> None:
        monkeypatch.undo()
        mkdir(name, mode, dir_fd=dir_fd)
        os.rename(users / "new", users / "away")
        SWAPS[swap](users / "new", roots)

    monkeypatch.setattr(os, "mkdir", mkdir_and_swap)
    with pytest.raises(files.UnsafePath, match="in the place of the new"):
        files.make_folders(str(users / "new"), (USER, USER))


# --- files

OBSTACLES: Dict[str, Callable[[Path, Path], object]] = {
    "link to a file of root": lambda path, roots: path.symlink_to(roots / "shadow"),
    "link to a folder of root": lambda path, roots: path.symlink_to(roots),
    "link to nothing": lambda path, roots: path.symlink_to(roots / "new"),
    "link to a device": lambda path, roots: path.symlink_to("/dev/zero"),
    "pipe": lambda path, roots: os.mkfifo(path),
    "device": lambda path, roots: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
    "socket": lambda path, roots: os.mknod(path, stat.S_IFSOCK | 0o600),
    "folder": lambda path, roots: path.mkdir(),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_reading_what_the_user_put_there(users: Path, roots: Path, obstacle: str) -> None:
    OBSTACLES[obstacle](users / "file", roots)
    with pytest.raises(files.UnsafePath, match="expected a regular file"):
        files.read_regular(str(users / "file"), 100)


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("name", ["file", ".file.new"])
def test_writing_where_the_user_put_something(users: Path, roots: Path, obstacle: str, name: str) -> None:
    OBSTACLES[obstacle](users / name, roots)
    try:
        files.write_whole(str(users / "file"), b"ours", 0o640, (USER, USER))
    except OSError:
        assert obstacle == "folder"
        assert name == "file" or not (users / "file").exists()
        return
    at = (users / "file").lstat()
    assert stat.S_ISREG(at.st_mode) and (stat.S_IMODE(at.st_mode), at.st_uid) == (0o640, USER)
    assert (users / "file").read_text() == "ours" and not (users / ".file.new").exists()


def test_reading_a_file(users: Path) -> None:
    (users / "file").write_text("twelve bytes")
    assert files.read_regular(str(users / "file"), 6) == b"twelve"
    assert files.read_regular(str(users / "other"), 6) is None
    assert files.read_regular(str(users / "no" / "folder"), 6) is None


def test_a_hard_link_is_replaced_not_written_through(users: Path, roots: Path) -> None:
    shadow = users.parent / "shadow2"
    shadow.write_text("root's")
    os.link(shadow, users / "file")
    files.write_whole(str(users / "file"), b"ours", 0o644, (USER, USER))
    assert (shadow.read_text(), shadow.stat().st_uid, shadow.stat().st_nlink) == ("root's", 0, 1)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_written_file_has_its_mode(tmp_path: Path, umask: int) -> None:
    former = os.umask(umask)
    try:
        files.write_whole(str(tmp_path / "file"), b"x", 0o644)
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("call", ["write", "fchown", "fchmod", "fsync", "rename"])
def test_a_failed_write_leaves_the_former_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    (tmp_path / "file").write_text("former")

    def fails(*_words: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    if call == "write":
        monkeypatch.setattr(os, "fdopen", fails)
    else:
        monkeypatch.setattr(os, call, fails)
    with pytest.raises(OSError, match="No space left.*file"):
        files.write_whole(str(tmp_path / "file"), b"new", owner=(0, 0))
    assert (os.listdir(tmp_path), (tmp_path / "file").read_text()) == (["file"], "former")


@pytest.mark.parametrize("obstacle", sorted(set(OBSTACLES) - {"folder"}))
def test_removing_removes_the_name_alone(users: Path, roots: Path, obstacle: str) -> None:
    OBSTACLES[obstacle](users / "file", roots)
    assert files.remove(str(users / "file")) and not os.path.lexists(users / "file")
    assert not files.remove(str(users / "file")) and not files.remove(str(users / "no" / "folder"))


def test_removing_behind_a_link(users: Path, roots: Path) -> None:
    (users / "link").symlink_to(roots)
    with pytest.raises(files.UnsafePath):
        files.remove(str(users / "link" / "shadow"))
    with pytest.raises(files.UnsafePath):
        files.remove_tree(str(users / "link" / "below"))
    files.remove_tree(str(users / "link"))
    (users / "tree" / "deep").mkdir(parents=True)
    (users / "tree" / "deep" / "link").symlink_to(roots)
    files.remove_tree(str(users / "tree"))
    files.remove_tree(str(users / "no" / "folder"))
    assert not (users / "tree").exists()


def test_an_empty_folder_is_removed_and_nothing_else(users: Path, roots: Path) -> None:
    (users / "empty").mkdir()
    files.remove_folder(str(users / "empty") + "/")
    (users / "link").symlink_to(roots)
    (users / "full" / "x").mkdir(parents=True)
    for name in ("empty", "link", "full", "link/empty"):
        with pytest.raises(OSError):
            files.remove_folder(str(users / name))
    assert (users / "link").is_symlink() and (users / "full" / "x").is_dir()


@pytest.mark.parametrize("obstacle", sorted(set(OBSTACLES) - {"link to a file of root"}))
def test_following_to_a_regular_file_only(users: Path, roots: Path, obstacle: str) -> None:
    (users / "to").write_text("x")
    (users / "link").symlink_to("to")
    with files.follow(str(users / "link")) as file:
        assert file.read() == b"x"
    OBSTACLES[obstacle](users / "file", roots)
    with pytest.raises(OSError):
        files.follow(str(users / "file"))


# --- who may change a folder


def test_what_only_root_can_change() -> None:
    assert trusted("/") and trusted("/usr/bin")
    assert not trusted("/tmp")
    with pytest.raises(FileNotFoundError):
        trusted("/usr/no/such")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that only root can reach by folders that only root can change."""
    with tempfile.TemporaryDirectory(dir="/opt") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.parametrize("mode, owner, group, right", [
    (0o755, 0, 0, True), (0o775, 0, 0, True), (0o775, 0, USER, False), (0o777, 0, 0, False), (0o755, USER, 0, False)
])  # fmt: skip
def test_a_folder_is_as_safe_as_those_above_it(own: Path, mode: int, owner: int, group: int, right: bool) -> None:
    (own / "a" / "b").mkdir(parents=True)
    os.chown(own / "a", owner, group)
    (own / "a").chmod(mode)
    assert trusted(str(own / "a")) is trusted(str(own / "a" / "b")) is right
    (own / "link").symlink_to(own / "a")
    assert trusted(str(own / "link")) is right


def test_a_folder_is_given_only_where_root_alone_can_have_put_it(own: Path, users: Path, roots: Path) -> None:
    (own / "logs").mkdir()
    files.give_folder(str(own / "logs"), (USER, USER))
    assert (own / "logs").stat().st_uid == USER
    (users / "link").symlink_to(roots)
    (users / "folder").mkdir()
    for name in ("link", "folder"):
        with pytest.raises(files.UnsafePath):
            files.give_folder(str(users / name), (USER, USER))
    assert (users / "folder").stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_group_counts_when_somebody_is_in_it() -> None:
    """Debian has given /usr/local to the group staff, to which nobody belongs."""
    import grp
    import pwd

    primary = {entry.pw_gid for entry in pwd.getpwall()}
    user = next(entry for entry in pwd.getpwall() if entry.pw_gid)
    empty = next(group.gr_gid for group in grp.getgrall() if not group.gr_mem and group.gr_gid not in primary)
    with tempfile.TemporaryDirectory() as folder:
        for gid, right in ((empty, True), (user.pw_gid, False), (1234567, False)):
            os.chown(folder, 0, gid)
            os.chmod(folder, 0o2775)
            assert trusted(folder) is right, gid
