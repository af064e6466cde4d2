# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemctl does to the links is undone, and nothing else. The words of systemctl: 252, and 256 with quotes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.links import Links

ETC, RUN = "/etc/systemd/system", "/run/systemd/system"
A, B = "/usr/lib/systemd/system/a.service", "/usr/lib/systemd/system/b.service"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in (ETC + "/multi-user.target.wants", RUN):
        (tmp_path / path[1:]).mkdir(parents=True)
    (tmp_path / ETC[1:] / "multi-user.target.wants/b.service").symlink_to(B)
    return tmp_path


def tree(root: Path) -> Dict[str, str]:
    return {
        str(path)[len(str(root)) :]: os.readlink(path) if path.is_symlink() else "" for path in sorted(root.rglob("*"))
    }


@pytest.mark.parametrize("words", ["Created symlink %s -> %s.\n", "Created symlink '%s' \u2192 '%s'.\n"])
def test_created_links_go_with_their_folder(root: Path, words: str) -> None:
    before = tree(root)

    def enable() -> str:
        said = ""
        for path in (ETC + "/gpu.target.wants/a.service", ETC + "/alias.service"):
            (root / path[1:]).parent.mkdir(exist_ok=True)
            (root / path[1:]).symlink_to(A)
            said += words % (path, A)
        (root / ETC[1:] / "multi-user.target.wants/c.service").symlink_to("/another/run")
        return said

    links = Links(str(root))
    links.watch(enable)
    links.undo()
    other = ETC + "/multi-user.target.wants/c.service"
    assert tree(root) == {**before, other: "/another/run"}, "that of another run stays"
    links.undo()
    assert other in tree(root)


@pytest.mark.parametrize("fails", [False, True])
def test_removed_links_come_back(root: Path, fails: bool) -> None:
    before = tree(root)

    def disable() -> str:
        path = ETC + "/multi-user.target.wants/b.service"
        (root / path[1:]).unlink()
        (root / path[1:]).parent.rmdir()
        if fails:
            raise RuntimeError("Removed %s.\nFailed to connect to bus" % path)
        return "Removed %s.\n" % path

    links = Links(str(root))
    try:
        links.watch(disable)
    except RuntimeError:
        assert fails
    old = os.umask(0o077)
    try:
        links.undo()
    finally:
        os.umask(old)
    assert tree(root) == before
    assert (root / ETC[1:] / "multi-user.target.wants").stat().st_mode & 0o777 == 0o755


def test_what_others_changed_meanwhile_is_left(root: Path) -> None:
    place = root / ETC[1:] / "a.service"

    def enable() -> str:
        place.symlink_to(A)
        return "Created symlink %s/a.service -> %s." % (ETC, A)

    links = Links(str(root))
    links.watch(enable)
    place.unlink()
    place.symlink_to("/theirs")
    links.undo()
    assert os.readlink(place) == "/theirs"
