# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A store of models in a scratch directory: moved, moved back, refused; and a walk through it as somebody else."""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import store

ME = pwd.getpwuid(os.geteuid()).pw_name
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as somebody else")


def put(folder, model, weights=b"weights", shared=b"template"):
    """A model of two blobs, the second one shared."""
    digests = [hashlib.sha256(content).hexdigest() for content in (weights, shared)]
    files = {"blobs/sha256-" + digests[0]: weights, "blobs/sha256-" + digests[1]: shared}
    files["manifests/registry.ollama.ai/library/%s/latest" % model] = " ".join(digests).encode()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "old"
    put(folder, "m8b")
    put(folder, "m70b", b"more weights")
    return folder


@pytest.fixture
def new(tmp_path):
    return tmp_path / "srv/new"


@pytest.fixture(params=["one file system", "two file systems"])
def where(request, monkeypatch):
    if request.param.startswith("two"):

        def link(*words, **options):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", link)
    return request.param


def plan(old, new, change="move", proc="/proc"):
    return store.plan(str(old), str(new), change, ME, "ollama.service", proc)


def test_models_move(old, new, where):
    (old / ("blobs/sha256-%s-partial" % ("ab" * 32))).write_text("half pulled")
    (old / "notes.txt").write_text("of a person")
    before = content(old)
    step = plan(old, new)
    assert step.needed()
    assert "models in %s (2 models, 0.0 GB)" % new in step.diff()["after"]
    step.apply()
    assert content(old) == before, "whole until the service is proven"
    step.finish()
    moved = {name: what for name, what in before.items() if "partial" not in name and name != "notes.txt"}
    assert content(new) == moved
    assert set(content(old)) == set(before) - set(moved)
    assert plan(new, new) is None
    assert plan(old, new) is None, "nothing is left that would be out of sight"


def test_what_is_pulled_while_it_is_moved_comes_too(old, new, where):
    step = plan(old, new)
    step.apply()
    put(old, "late", b"late weights")
    put(new, "later", b"later weights", b"another template")
    put(old, "later", b"of a moment before")  # the server on the new store has pulled it, too
    with open(old / "manifests/registry.ollama.ai/library/later/latest", "a") as manifest:
        manifest.write(" of one blob more")
    step.finish()
    names = [name.split("/")[-2] for name in store.holding(str(new)).models]
    assert names == ["late", "later", "m70b", "m8b"]
    assert b"later weights" in content(new).values()
    assert b"late weights" in content(new).values()
    manifest = (new / "manifests/registry.ollama.ai/library/later/latest").read_text()
    assert manifest.startswith(hashlib.sha256(b"later weights").hexdigest())
    assert not old.exists()


def test_what_comes_late_and_finds_no_room_is_left_for_the_next_run(old, new, monkeypatch):
    step = plan(old, new)
    step.apply()
    put(old, "late", b"late weights")
    with monkeypatch.context() as patch:

        def full(*words, **options):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "link", full)
        with pytest.raises(store.StoreError, match="No space left on device"):
            step.finish()
    again = plan(new, new)
    again.apply()
    again.finish()
    assert len(store.holding(str(new)).models) == 3
    assert not old.exists()


def test_a_model_that_is_removed_while_it_is_moved(old, new, where):
    step = plan(old, new)
    step.needed()
    (old / "manifests/registry.ollama.ai/library/m8b/latest").unlink()
    step.apply()
    (old / "manifests/registry.ollama.ai/library/m70b/latest").unlink()
    step.finish()
    assert [name.split("/")[-2] for name in store.holding(str(new)).models] == ["m70b"]
    assert not old.exists()


def test_a_model_that_is_removed_meanwhile_does_not_count(old, monkeypatch):
    size = os.path.getsize

    def removed(path):
        if "/manifests/" in path:
            raise FileNotFoundError(2, "No such file or directory", path)
        return size(path)

    monkeypatch.setattr(store.os.path, "getsize", removed)
    found = store.holding(str(old))
    assert found.files and not found.models


def test_an_empty_old_store_is_removed(old, new, where):
    step = plan(old, new)
    step.apply()
    step.finish()
    assert not old.exists()


def test_two_runs_at_the_same_time(old, new, where):
    """The second one has planned the same move, and waits for its turn."""
    first, second = plan(old, new), plan(old, new)
    first.apply()
    first.finish()
    assert not second.needed()
    second.finish()
    assert len(store.holding(str(new)).models) == 2


def test_undo_leaves_both_as_they_were(old, new, where):
    put(new, "here")
    before = content(old), content(new)
    step = plan(old, new)
    step.apply()
    step.undo()
    assert (content(old), content(new)) == before


def test_undo_removes_folders_that_were_made(old, new, where):
    step = plan(old, new)
    step.apply()
    step.undo()
    assert not new.parent.exists()


def test_the_new_store_belongs_to_the_user_and_what_lies_above_it_does_not(old, new, monkeypatch):
    given = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append(path))
    plan(old, new).apply()
    assert str(new) in given
    assert all(path.startswith(str(new)) for path in given)


def test_a_run_killed_in_the_midst_of_it_goes_on(old, new, where, monkeypatch):
    before = content(old)
    first = plan(old, new)
    taken = []

    def killed(*words):
        taken.append(words)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return take(*words)

    take = first._take
    monkeypatch.setattr(first, "_take", killed)
    with pytest.raises(KeyboardInterrupt):
        first.apply()
    assert len([name for name in content(new) if name.startswith("blobs/")]) == 2
    # the next run may find the new store in force already
    step = plan(new, new, "refuse")
    assert step.old == str(old)
    step.apply()
    step.finish()
    assert content(new) == before
    assert not old.exists()


def test_a_blob_that_is_not_whole_is_replaced(old, new, where):
    put(new, "m8b")
    blob = next(path for path in (new / "blobs").iterdir())
    blob.write_bytes(b"")
    step = plan(old, new)
    step.apply()
    step.finish()
    assert blob.stat().st_size


def test_a_damaged_blob_is_told(old, new, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *words, **options: (_ for _ in ()).throw(OSError(errno.EXDEV, "")))
    (blob,) = [path for path in (old / "blobs").iterdir() if path.read_bytes() == b"weights"]
    blob.write_bytes(b"rotten!")
    step = plan(old, new)
    with pytest.raises(store.StoreError, match="%s is damaged: its SHA-256 is" % blob):
        step.apply()
    step.undo()
    assert not new.exists()


def test_a_full_disk_is_told_and_undone(old, new, monkeypatch):
    def full(*words, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    step = plan(old, new)
    with pytest.raises(store.StoreError, match="cannot be brought to .*: No space left on device"):
        step.apply()
    step.undo()
    assert not new.exists()


def test_refused_with_what_would_be_lost_and_what_to_do(old, new):
    with pytest.raises(store.StoreError) as refusal:
        plan(old, new, "refuse")
    said = str(refusal.value)
    assert "from %s to %s, where the server would not see 2 models, 0.0 GB: set models_dir_change" % (old, new) in said
    assert "mkdir -p %s && cp -a %s/. %s/ && chown -R %s: %s" % (new, old, new, ME, new) in said


def test_models_may_be_left(old, new):
    assert plan(old, new, "leave") is None


def test_no_question_without_models(tmp_path, new):
    (tmp_path / "empty/blobs").mkdir(parents=True)
    assert plan(tmp_path / "empty", new, "refuse") is None
    assert plan(tmp_path / "nowhere", new, "refuse") is None
    assert store.plan(None, str(new), "refuse", ME, "ollama.service") is None


def test_no_question_when_a_person_has_copied_them(old, new):
    for name, what in content(old).items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_bytes(what)
    assert plan(old, new, "refuse") is None


def test_a_link_to_the_same_store(old, tmp_path):
    (tmp_path / "link").symlink_to(old)
    assert plan(old, tmp_path / "link", "refuse") is None


def test_two_models_of_one_name(old, new):
    put(new, "m8b", b"other weights of another length")
    (new / "manifests/registry.ollama.ai/library/m8b/latest").write_text("another")
    with pytest.raises(store.StoreError, match="have the model m8b/latest, and they differ"):
        plan(old, new)


def test_room_for_both_copies(old, new, monkeypatch):
    real = os.stat

    def stat(path, **options):
        found = real(path, **options)
        if str(path) == str(old):
            return os.stat_result([*found[:2], found[2] + 1, *found[3:]])
        return found

    monkeypatch.setattr(store.os, "stat", stat)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20})())
    with pytest.raises(store.StoreError, match="another file system, which has 0.0 GB free; the models need 1.1 GB"):
        plan(old, new)


def test_a_store_that_another_service_uses_is_not_moved(old, new, tmp_path):
    for pid, unit, environ in [
        (7, "ollama.service", "OLLAMA_MODELS=%s" % old),
        (8, "ollama@second.service", "HOME=/x\0OLLAMA_MODELS=%s/" % old),
        (9, "ollama@third.service", "HOME=/x"),
    ]:
        folder = tmp_path / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "comm").write_text("ollama\n")
        (folder / "environ").write_text(environ + "\0")
        (folder / "cgroup").write_text("0::/system.slice/system-ollama.slice/%s\n" % unit)
    with pytest.raises(store.StoreError, match="ollama@second.service uses the models of %s, too" % old):
        plan(old, new, proc=str(tmp_path / "proc"))


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


def test_default_store():
    assert store.default_store(ME) == os.path.join(pwd.getpwnam(ME).pw_dir, ".ollama/models")
    assert store.default_store("nosuchuser") is None
