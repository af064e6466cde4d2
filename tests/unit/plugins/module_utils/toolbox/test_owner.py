# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder that root has prepared: given away whole, or not at all, whatever lies in it and around it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files, owner

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give anything away")
USER = 40404
NAMES = ("blobs", "manifests")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of which all parents are root's alone, unlike /tmp."""
    folder = Path("/run/gpufleet-test-%d" % os.getpid())
    (folder / "models").mkdir(parents=True)
    folder.chmod(0o755)
    yield folder
    files.remove_tree(str(folder))


@pytest.fixture
def models(place: Path) -> Path:
    folder = place / "models"
    for name in ("blobs/sha256-1", "blobs/sha256-2", "manifests/r/l/m/t"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def owners(folder: Path) -> Dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_uid for path in [folder, *folder.rglob("*")]}


def give(folder: Path) -> List[owner.Given]:
    return list(owner.give(str(folder), NAMES, (USER, USER)))


def test_all_of_it_is_given_and_taken_back(models: Path) -> None:
    os.chown(models / "blobs", 0, 7)
    given = give(models)
    assert set(owners(models).values()) == {USER}
    assert given[-1].path == str(models), "the user must not be able to swap what is still to be given"
    (models / "manifests/new").mkdir()
    owner.take_back(given)
    assert set(owners(models).values()) == {0} and (models / "blobs").stat().st_gid == 7


def test_an_empty_folder(place: Path) -> None:
    given = give(place / "models")
    for name in ("blobs", "kept"):  # as the server does at its start
        (place / "models" / name).mkdir()
    (place / "models/kept/blob").write_text("")
    owner.take_back(given)
    assert (place / "models").stat().st_uid == 0
    assert os.listdir(place / "models") == ["kept"]


@pytest.mark.parametrize("stop", range(8))
def test_a_killed_run_is_resumed(models: Path, stop: int) -> None:
    for number, _given in enumerate(owner.give(str(models), NAMES, (USER, USER))):
        if number == stop:
            break
    assert owner.obstacle(str(models), NAMES, USER) is None or stop == 7
    if stop < 7:
        give(models)
        assert set(owners(models).values()) == {USER}


def test_what_the_user_swaps_before_it_is_taken_back(models: Path, place: Path) -> None:
    given = give(models)
    other = place / "other"
    other.write_text("")
    os.chown(other, 5, 5)
    for swap in (lambda path: path.symlink_to(other), lambda path: os.link(other, path)):
        (models / "blobs/sha256-1").unlink()
        swap(models / "blobs/sha256-1")
        owner.take_back(given)
        assert other.stat().st_uid == 5
    (models / "blobs").rename(place / "away")
    (models / "blobs").symlink_to(place)
    owner.take_back(given)


TRAPS: Dict[str, Callable[[Path], object]] = {
    "a link": lambda models: (models / "blobs/link").symlink_to("/etc/shadow"),
    "a link to a folder": lambda models: (models / "manifests/link").symlink_to("/etc"),
    "a second name": lambda models: os.link(models / "blobs/sha256-1", models.parent / "name"),
    "a pipe": lambda models: os.mkfifo(models / "blobs/pipe"),
    "a device": lambda models: os.mknod(models / "blobs/null", 0o20666, os.makedev(1, 3)),
    "a file of somebody else's": lambda models: os.chown(models / "blobs/sha256-1", 5, 5),
    "a folder of somebody else's": lambda models: os.chown(models / "manifests/r", 5, 5),
    "a folder for all": lambda models: (models / "blobs").chmod(0o777),
    "a folder of a group": lambda models: (os.chown(models / "blobs", 0, 7), (models / "blobs").chmod(0o775)),
    "something else in it": lambda models: (models / "etc").mkdir(),
    "it is for all": lambda models: models.chmod(0o1777),
    "it is somebody else's": lambda models: os.chown(models, 5, 5),
    "above it all may write": lambda models: models.parent.chmod(0o1777),
    "above it is somebody else": lambda models: os.chown(models.parent, 5, 5),
    "it is a link": lambda models: (models.rename(str(models) + ".real"), models.symlink_to(str(models) + ".real")),
    "it is a file": lambda models: (files.remove_tree(str(models)), models.write_text("")),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_is_not_only_roots_is_left_alone(models: Path, trap: str) -> None:
    TRAPS[trap](models)
    before = owners(models)
    assert owner.obstacle(str(models), NAMES, USER)
    with pytest.raises(files.UnsafePath, match="not only root's"):
        give(models)
    assert owners(models) == before
