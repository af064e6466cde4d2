# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files are changed as a whole, and what they held comes back, whatever happens in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import atomic
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.atomic import Files, Wanted, names, public


def tree(root: Path) -> Dict[str, Any]:
    def held(path: Path) -> Any:
        return os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()

    return {str(path.relative_to(root)): (held(path), path.lstat().st_mode & 0o777) for path in sorted(root.rglob("*"))}


def three(root: Path) -> Files:
    """One file that is new, one that changes, one that goes."""
    (root / "b").write_bytes(b"old b")
    (root / "b").chmod(0o600)
    (root / "c").write_bytes(b"old c")
    return Files([Wanted("/d/e/a", b"new a", 0o600, 0o700), Wanted("/b", b"new b"), Wanted("/c", None)], str(root))


def test_commit_and_finish(tmp_path: Path) -> None:
    files = three(tmp_path)
    assert [file.path for file in files.changes()] == ["/d/e/a", "/b", "/c"]
    assert not files.unfinished()
    files.stage()
    assert (tmp_path / "b").read_bytes() == b"old b" and not (tmp_path / "d/e/a").exists()
    files.commit()
    assert files.unfinished()
    files.finish()
    assert tree(tmp_path) == {
        "d": (True, 0o755),
        "d/e": (True, 0o700),
        "d/e/a": (b"new a", 0o600),
        "b": (b"new b", 0o644),
    }
    assert not files.unfinished() and not files.changes()


def test_undo(tmp_path: Path) -> None:
    files = three(tmp_path)
    before = tree(tmp_path)
    files.stage()
    files.commit()
    files.undo()
    assert tree(tmp_path) == before


def test_undo_by_a_later_run_gives_the_oldest_content(tmp_path: Path) -> None:
    first = three(tmp_path)
    before = tree(tmp_path)
    first.stage()
    first.commit()  # and killed
    second = Files(
        [Wanted("/d/e/a", b"newer a", 0o600, 0o700), Wanted("/b", b"newer b"), Wanted("/c", b"c")], str(tmp_path)
    )
    assert second.unfinished()
    second.stage()
    second.commit()
    assert (tmp_path / "b").read_bytes() == b"newer b"
    second.undo()
    left = tree(tmp_path)
    assert {name: left[name] for name in before} == before
    assert not second.unfinished()


def test_a_run_killed_between_any_two_system_calls_can_be_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def after(count: int) -> Callable[..., Any]:
        left = [count]

        def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **more: Any) -> Any:
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return call(*arguments, **more)

            return counted

        return wrap

    for count in range(100):
        root = tmp_path / str(count)
        root.mkdir()
        files = three(root)
        before = tree(root)
        with monkeypatch.context() as patched:
            wrap = after(count)
            for name in ("open", "write", "fsync", "mkdir", "rename", "link", "symlink", "unlink"):
                patched.setattr(atomic.os, name, wrap(getattr(os, name)))
            try:
                files.stage()
                files.commit()
            except Killed:
                pass
            else:
                break
        again = Files(files.wanted, str(root))
        again.undo()
        left = tree(root)
        assert {name: left[name] for name in before} == before, count
        assert not any(name.endswith((".new", ".previous")) for name in left), count
        again.stage()
        again.commit()
        again.finish()
        assert not again.changes()
    assert 10 < count < 99


@pytest.mark.parametrize("call", ["mkdir", "open", "write", "fsync"])
def test_a_failure_while_staging_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    files = three(tmp_path)
    before = tree(tmp_path)

    def full(*_arguments: Any, **_more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, call, full)
        with pytest.raises(OSError, match="No space"):
            files.stage()
    assert tree(tmp_path) == before


def test_mode_and_kind_count(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0o600)
    assert Files([Wanted("/a", b"x", 0o644)], str(tmp_path)).changes()
    assert not Files([Wanted("/a", b"x", 0o600)], str(tmp_path)).changes()
    (tmp_path / "l").symlink_to("a")
    files = Files([Wanted("/l", b"x", 0o600)], str(tmp_path))
    assert files.changes()
    files.stage()
    files.commit()
    assert not (tmp_path / "l").is_symlink() and (tmp_path / "a").read_bytes() == b"x"
    files.undo()
    assert (tmp_path / "l").is_symlink()
    assert files.mode("/a") == 0o600 and files.mode("/nothing") == 0 and files.read("/nothing") is None


def test_another_owner_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0o644)
    files = Files([Wanted("/a", b"x")], str(tmp_path))
    assert not files.changes()
    monkeypatch.setattr(atomic.os, "geteuid", lambda: os.getuid() + 1)
    assert files.changes()


def test_only_own_and_empty_directories_go(tmp_path: Path) -> None:
    (tmp_path / "etc/gpufleet/credentials/u").mkdir(parents=True)
    (tmp_path / "etc/gpufleet/credentials/u/k").write_bytes(b"x")
    (tmp_path / "etc/gpufleet/other").write_bytes(b"x")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/ours").write_bytes(b"x")
    files = Files(
        [Wanted("/etc/gpufleet/credentials/u/k", None, own_directories=3), Wanted("/d/ours", None)], str(tmp_path)
    )
    files.stage()
    files.commit()
    files.finish()
    assert sorted(tree(tmp_path)) == ["etc", "etc/gpufleet", "etc/gpufleet/other"]


def test_what_a_killed_run_staged_is_swept(tmp_path: Path) -> None:
    first = Files([Wanted("/a", b"1")], str(tmp_path))
    first.stage()  # and killed
    assert (tmp_path / ".a.new").exists()
    second = Files([Wanted("/a", b"2")], str(tmp_path))
    second.stage()
    second.commit()
    second.finish()
    assert list(tree(tmp_path)) == ["a"] and (tmp_path / "a").read_bytes() == b"2"


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        files = Files([Wanted("/d/a", b"1", 0o644)], str(tmp_path))
        files.stage()
        files.commit()
    finally:
        os.umask(old)
    assert tree(tmp_path)["d"][1] == 0o755 and tree(tmp_path)["d/a"][1] == 0o644


def test_removed_files_go_after_the_one_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "names"):
        (tmp_path / name).write_bytes(b"old")
    wanted = [Wanted("/a", None), Wanted("/b", b"new"), Wanted("/names", b"names b")]
    order: List[str] = []
    real = atomic.os.rename

    def rename(source: str, target: str) -> None:
        order.append(os.path.basename(target))
        real(source, target)

    monkeypatch.setattr(atomic.os, "rename", rename)
    files = Files(wanted, str(tmp_path))
    files.stage()
    files.commit()
    assert order == ["b", "names", ".a.previous"]
    order.clear()
    files.undo()
    assert order == ["a", "b", "names"]


def test_a_change_is_proven_by_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after it, and followed by a change that fails: the proven content comes back, not that from before."""
    files = three(tmp_path)
    files.stage()
    files.commit()
    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, "unlink", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            files.finish()
    again = Files([Wanted("/d/e/a", b"a", 0o600, 0o700), Wanted("/b", b"b"), Wanted("/c", b"c")], str(tmp_path))
    assert not again.unfinished() and len(again.rubbish()) == 3
    again.undo()
    assert (tmp_path / "b").read_bytes() == b"new b", "what is proven is not undone"
    again.stage()
    assert again.rubbish() == [str(tmp_path / name) for name in ("d/e/.a.new", ".b.new", ".c.new")]
    again.commit()
    again.undo()
    assert {name: held[0] for name, held in tree(tmp_path).items()} == {
        "d": True,
        "d/e": True,
        "d/e/a": b"new a",
        "b": b"new b",
    }


def test_proven_goes_last_and_once_the_rest_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = three(tmp_path)
    files.stage()
    files.commit()
    calls: List[str] = []
    unlink, sync = atomic.os.unlink, atomic._sync
    monkeypatch.setattr(atomic.os, "unlink", lambda path: (calls.append(os.path.basename(path)), unlink(path))[1])
    monkeypatch.setattr(atomic, "_sync", lambda path: (calls.append("sync"), sync(path))[1])
    files.finish()
    assert calls == ["sync", ".b.previous", ".c.previous", "sync", ".a.proven", "sync"]


def test_a_file_that_was_masked_manually_is_restored(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(os.devnull)
    for content in (b"x", None):
        files = Files([Wanted("/a", content)], str(tmp_path))
        files.stage()
        files.commit()
        assert files.read("/a") == content
        files.undo()
        assert tree(tmp_path) == {"a": (os.devnull, 0o777)}


def test_names_of_what_a_kill_left() -> None:
    entries = ["a", ".b.previous", ".c.d.new", ".e.proven", ".hidden", ".x.other", "..previous", ".previous"]
    assert names(entries) == {"a", "b", "c.d", "e"}


@pytest.mark.parametrize("modes, seen", [((0o755, 0o644), True), ((0o755, 0o640), False), ((0o750, 0o644), False)])
def test_what_everybody_may_read(tmp_path: Path, modes: Any, seen: bool) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"x")
    (tmp_path / "l").symlink_to("d/f")
    (tmp_path / "d/f").chmod(modes[1])
    (tmp_path / "d").chmod(modes[0])
    assert public("/d/f", str(tmp_path)) is seen and public("/l", str(tmp_path)) is seen
    assert not public("/none", str(tmp_path))


def test_a_directory_that_another_run_removes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, times = atomic.os.open, [1, 1]

    def removed(path: str, flags: int, *more: Any) -> int:
        if times and flags & os.O_CREAT:
            times.pop()
            os.rmdir(os.path.dirname(path))
        return real(path, flags, *more)

    monkeypatch.setattr(atomic.os, "open", removed)
    files = Files([Wanted("/d/a", b"x")], str(tmp_path))
    files.stage()
    files.commit()
    files.finish()
    assert not times and list(tree(tmp_path)) == ["d", "d/a"]


def test_nobody_may_write_into_a_directory_that_is_just_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, modes = atomic.os.chmod, []

    def chmod(path: str, mode: int) -> None:
        modes.append(os.stat(path).st_mode & 0o777)
        real(path, mode)

    monkeypatch.setattr(atomic.os, "chmod", chmod)
    old = os.umask(0)
    try:
        Files([Wanted("/d/e/a", b"x")], str(tmp_path)).stage()
    finally:
        os.umask(old)
    assert modes == [0o700, 0o700]
