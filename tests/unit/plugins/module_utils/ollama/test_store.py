# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A store of models: what it holds, whatever its user has put there, and a walk through it as that user."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
import time
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import store
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import access

ME = pwd.getpwuid(os.geteuid()).pw_name
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as somebody else")
BLOB = "blobs/sha256-" + "a" * 64
MANIFEST = "manifests/registry.ollama.ai/library/m8b/latest"


# --- what it holds


def test_models_and_nothing_else(tmp_path):
    for name in (BLOB, BLOB + "-partial", MANIFEST, MANIFEST + "/below", "manifests/stray", "notes"):
        path = tmp_path / name
        if path.parent.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("four")
    assert store.holding(str(tmp_path)).files == {BLOB: 4, MANIFEST: 4}
    assert str(store.holding(str(tmp_path))) == "1 model, 0.0 GB"
    assert store.holding(str(tmp_path / "nowhere")).files == {}


OBSTACLES = {
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o666),
    "folder": lambda path: os.mkdir(path),
    "link to a device": lambda path: os.symlink("/dev/zero", path),
    "link to itself": lambda path: os.symlink(path, path),
    "link to nothing": lambda path: os.symlink(path + "x", path),
}


@as_root
@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("name", [BLOB, MANIFEST])
def test_what_is_no_file_does_not_count_and_keeps_nobody_waiting(tmp_path, obstacle, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    OBSTACLES[obstacle](str(path))
    assert store.holding(str(tmp_path)).files == {}


def test_a_store_of_links_in_a_circle_and_folders_without_end(tmp_path):
    deep = tmp_path / "manifests"
    for _level in range(30):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (tmp_path / "manifests/d/circle").symlink_to("../..")
    (tmp_path / "blobs").symlink_to(".")
    assert store.holding(str(tmp_path)).files == {}


@as_root
def test_a_store_that_cannot_be_listed_is_not_taken_for_an_empty_one(models, monkeypatch):
    os.chmod(models / "blobs", 0o700)
    with pytest.raises(StepError, match="blobs: Permission denied .as user nobody"):
        access.with_rights_of("nobody", lambda: store.holding(str(models), strict=True).files)


@as_root
def test_a_store_that_keeps_one_waiting(monkeypatch):
    monkeypatch.setattr(access, "LIMIT", 0.05)
    with pytest.raises(StepError, match="it took longer than"):
        access.with_rights_of("nobody", lambda: time.sleep(60), access.LIMIT)


def test_default_store():
    assert store.default_store(ME) == os.path.join(pwd.getpwnam(ME).pw_dir, ".ollama/models")
    assert store.default_store("nosuchuser") is None


def test_the_record_lies_where_root_alone_may_write(remembered):
    assert store.move_record("ollama.service") == "%s/move-ollama.service.json" % remembered.parent
    assert not store.move_unfinished("ollama.service")
    remembered.parent.mkdir()
    (remembered.parent / ".move-ollama.service.json.new").write_text("{")
    assert store.move_unfinished("ollama.service")


# --- may the service's user write there?


@pytest.fixture
def models():
    # each pytest that starts closes the folder of tmp_path to other users
    with tempfile.TemporaryDirectory(prefix="gpufleet-") as top:
        os.chmod(top, 0o755)
        folder = Path(top, "srv/models")
        (folder / "blobs").mkdir(parents=True)
        (folder / "manifests").mkdir()
        (folder / "blobs/sha256-1").write_text("")
        yield folder


def give(path, user="nobody"):
    for folder, _below, files in os.walk(path):
        for place in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(place, pwd.getpwnam(user).pw_uid, -1)


@as_root
def test_a_store_that_the_user_may_not_write(models):
    refusal = store.refused(str(models), "nobody")
    assert refusal == "nobody cannot write into %s (owner root, mode 0755); chown -R nobody: %s" % (models, models)
    give(models)
    assert store.refused(str(models), "nobody") is None
    top = models.parent
    top.chmod(0o700)
    assert store.refused(str(models), "nobody") == (
        "nobody cannot enter %s (owner root, mode 0700), a parent of %s; chmod o+x %s, or setfacl -m u:nobody:x %s"
        % (top, models, top, top)
    )
    assert "cannot enter %s" % top in store.refused(str(models / "not/yet/there"), "nobody")
    os.chown(top, 12345, -1)
    assert "(owner 12345, mode 0700)" in store.refused(str(models), "nobody")


@as_root
def test_the_models_of_a_store_as_people_call_them(models):
    for name in ("registry.ollama.ai/library/m70b/latest", "registry.ollama.ai/jane/code/7b", "hub.example/a/b/latest"):
        place = models / "manifests" / name
        place.parent.mkdir(parents=True)
        place.write_text("{}")
    give(models)
    assert sorted(store.names_in(str(models), "nobody")) == ["hub.example/a/b", "jane/code:7b", "m70b"]
    models.chmod(0o700)
    os.chown(models, 0, 0)
    assert store.names_in(str(models), "nobody") == []


@pytest.mark.parametrize("place", ["/root", "/home/alice"])
def test_nobody_is_told_to_open_a_home(monkeypatch, place):
    monkeypatch.setattr(access.os, "geteuid", lambda: 0)
    monkeypatch.setattr(access, "with_rights_of", lambda user, work: [place, os.X_OK, 0, 0o700])
    assert store.refused(place + "/models", "nobody") == (
        "nobody cannot enter %s (owner root, mode 0700), a parent of %s/models; choose a folder that is in no home, such "
        "as /srv/nobody" % (place, place)
    )


@as_root
def test_a_user_that_is_yet_to_be_made_owns_nothing(models):
    """Else the first run would go well, and the second one, when the user is there, be refused."""
    assert store.refused(str(models), "nosuchuser") is None
    assert store.refused(str(models), "nosuchuser", to_be_made=True) == (
        "nosuchuser cannot write into %s (owner root, mode 0755); chown -R nosuchuser: %s" % (models, models)
    )
    for place in (models, models / "blobs", models / "manifests"):
        place.chmod(0o777)
    assert store.refused(str(models), "nosuchuser", to_be_made=True) is None
    assert store.refused(str(models / "below"), "nosuchuser", to_be_made=True) is None


@as_root
@pytest.mark.parametrize(
    "place, mode, words",
    [("blobs", 0o755, "write into"), ("manifests", 0o755, "write into"), ("blobs/sha256-1", 0o600, "read")],
)
def test_what_root_left_in_a_store(models, place, mode, words):
    give(models)
    os.chown(models / place, 0, 0)
    (models / place).chmod(mode)
    expected = "nobody cannot %s %s (owner root, mode %04o); chown -R nobody: %s" % (
        words,
        models / place,
        mode,
        models,
    )
    assert store.refused(str(models), "nobody") == expected


def test_a_store_that_is_a_file(tmp_path):
    (tmp_path / "models").write_text("")
    assert store.refused(str(tmp_path / "models"), ME) == "%s/models is not a directory" % tmp_path


def test_a_store_that_may_be_written(tmp_path):
    assert store.refused(str(tmp_path), ME) is None
    assert store.refused(str(tmp_path), "nosuchuser") is None


def test_only_root_can_try(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert store.refused("/root", "nobody") is None


@as_root
def test_what_the_user_links_into_the_store_is_asked_as_the_user(models, tmp_path):
    """Nothing in a folder of root's is named that the user could not see himself."""
    give(models)
    secret = tmp_path / "of-root"
    secret.mkdir(mode=0o700)
    (secret / "name").write_text("")
    os.rmdir(models / "manifests")
    (models / "manifests").symlink_to(secret)
    said = store.refused(str(models), "nobody")
    assert "nobody cannot write into %s/manifests" % models in said and "name" not in said
    (models / "blobs/pipe").symlink_to(models / "pipe")
    os.mkfifo(models / "pipe")
    os.chmod(models / "pipe", 0o600)
    assert store.refused(str(models), "nobody") == said


@as_root
def test_only_the_parents_of_a_store_that_is_about_to_be_given(models):
    assert store.refused(str(models), "nobody", parents_only=True) is None
    models.parent.chmod(0o700)
    assert "cannot enter" in store.refused(str(models), "nobody", parents_only=True)
