# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models moved between two stores in a scratch directory: moved, moved back, refused, attacked, and killed anywhere."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pwd
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import moving, store, transfer
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import access

ME = pwd.getpwuid(os.geteuid()).pw_name
UNIT = "ollama.service"


@pytest.fixture(autouse=True)
def quick(request):
    if "children" not in request.fixturenames:
        request.getfixturevalue("no_children")


@pytest.fixture
def children():
    """What is done as the user is done in a child, as on a host."""


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
    steps = moving.plan(str(old), str(new), change, ME, UNIT, proc)
    assert len(steps) < 2
    return steps[0] if steps else None


def run(step):
    assert step.needed()
    step.apply()
    step.finish()


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
        with pytest.raises(StepError, match="No space left on device"):
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
    with pytest.raises(StepError, match="%s is damaged: its SHA-256 is" % blob):
        step.apply()
    step.undo()
    assert not new.exists()


def test_a_full_disk_is_told_and_undone(old, new, monkeypatch):
    def full(*words, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    step = plan(old, new)
    with pytest.raises(StepError, match="cannot be moved to .*: No space left on device"):
        step.apply()
    step.undo()
    assert not new.exists()


def test_refused_with_what_would_be_lost_and_what_to_do(old, new):
    with pytest.raises(StepError) as refusal:
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
    assert moving.plan(None, str(new), "refuse", ME, UNIT) == []


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
    with pytest.raises(StepError, match="have the model m8b/latest, and they differ"):
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
    with pytest.raises(StepError, match="ollama@second.service uses the models of %s, too" % old):
        plan(old, new, proc=str(tmp_path / "proc"))


def test_room_for_both_copies(old, new, monkeypatch):
    survey = transfer.survey
    monkeypatch.setattr(transfer, "survey", lambda *stores: dict(survey(*stores), needed=10**8, free=1 << 20))
    with pytest.raises(StepError, match="another file system, which has 0.0 GB free; the models need 1.2 GB"):
        plan(old, new)


def test_what_needs_room(old, new, tmp_path):
    found = transfer.survey(str(old), str(new))
    assert (found["needed"], found["missing"]) == (0, found["held"]), "a second name takes none"
    blob = next((old / "blobs").iterdir())
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    assert transfer.survey(str(old), str(new))["needed"] == (tmp_path / "elsewhere").stat().st_size


def test_manifests_are_compared_by_content(old, new, where):
    """Two versions of a tag are of one size: digests have one length."""
    put(new, "m8b", b"another version")
    name = "manifests/registry.ollama.ai/library/m8b/latest"
    assert (old / name).stat().st_size == (new / name).stat().st_size
    before = content(old), content(new)
    for change in ("refuse", "move"):
        with pytest.raises(StepError, match="differ" if change == "move" else "would not see"):
            plan(old, new, change)
    assert (content(old), content(new)) == before


def test_a_version_that_comes_between_plan_and_move(old, new, where):
    step = plan(old, new)
    put(new, "m8b", b"another version")
    before = content(old), content(new)
    with pytest.raises(StepError, match="have the model m8b/latest, and they differ"):
        step.apply()
    step.undo()
    assert (content(old), content(new)) == before


def test_a_tag_that_is_pulled_again_while_it_is_moved(old, new, where):
    """Copying takes hours, in which the server on the old store still runs."""
    step = plan(old, new)
    step.apply()
    name = "manifests/registry.ollama.ai/library/m8b/latest"
    (old / name).unlink()
    put(old, "m8b", b"a newer version")
    os.utime(old / name, ns=((new / name).stat().st_mtime_ns + 10**9,) * 2)
    step.finish()
    assert (new / name).read_text().startswith(hashlib.sha256(b"a newer version").hexdigest())
    assert b"a newer version" in content(new).values() and not old.exists()


def test_what_a_model_pulled_during_the_proof_shares_outlives_the_rollback(old, new, where):
    step = plan(old, new)
    step.apply()
    put(new, "late", b"late weights")  # and the template, which is there already
    for name in content(new):
        if name.endswith("late/latest"):
            digests = (new / name).read_text().split()
            (new / name).write_text(json.dumps(["sha256:" + digest for digest in digests]))
    step.undo()
    left = content(new)
    assert {what for name, what in left.items() if name.startswith("blobs/")} == {b"late weights", b"template"}
    assert len(left) == 3


# --- links of the user's own


def test_a_store_on_another_disk_behind_a_link(tmp_path, old, new, where):
    """People link ~/.ollama/models, or the blobs in it, to a disk that has room."""
    big = tmp_path / "big"
    old.rename(big)
    old.symlink_to(big)
    before = content(big)
    run(plan(old, new))
    assert content(new) == before and content(big) == {}


@pytest.mark.parametrize("top", ["blobs", "manifests"])
def test_folders_of_both_stores_that_are_one(tmp_path, old, new, where, top):
    before = content(old)
    new.mkdir(parents=True)
    (new / top).symlink_to(old / top)
    step = plan(old, new)
    if step:
        run(step)
    assert {name: (new / name).read_bytes() for name in before} == before


def test_files_that_are_links(tmp_path, old, new, where):
    """Into the old store, out of it, and to a disk elsewhere: afterwards the new one has them all, for itself."""
    before = content(old)
    new.mkdir(parents=True)
    (new / "blobs").mkdir()
    first, second, *_more = sorted((old / "blobs").iterdir())
    (new / "blobs" / first.name).symlink_to(first)
    second.rename(tmp_path / "elsewhere")
    second.symlink_to(tmp_path / "elsewhere")
    manifest = new / "manifests/registry.ollama.ai/library/m8b/latest"
    manifest.parent.mkdir(parents=True)
    manifest.symlink_to(old / "manifests/registry.ollama.ai/library/m8b/latest")
    run(plan(old, new))
    assert content(new) == before and not old.exists()
    assert not any(path.is_symlink() for path in new.rglob("*"))


def test_a_good_blob_is_not_replaced_by_a_damaged_one(old, new):
    put(new, "m8b")
    (blob,) = [path for path in (old / "blobs").iterdir() if path.read_bytes() == b"weights"]
    blob.write_bytes(b"cut")
    step = plan(old, new)
    with pytest.raises(StepError, match="is damaged: its SHA-256 is"):
        step.apply()
    step.undo()
    assert b"weights" in content(new).values() and b"cut" in content(old).values()


# --- who uses a store


def test_a_process_that_claims_to_serve_a_store_keeps_it_from_being_moved_and_no_more(old, new, tmp_path):
    """Any user may start one; it is named with its number, so that it can be ended, and costs nothing else."""
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    (folder / "comm").write_text("ollama\n")
    (folder / "environ").write_text("OLLAMA_MODELS=%s\0" % old)
    (folder / "cgroup").write_text("0::/\n")
    with pytest.raises(StepError, match="process 7 uses the models"):
        plan(old, new, proc=str(tmp_path / "proc"))
    assert plan(old, new, "leave", str(tmp_path / "proc")) is None
    assert plan(old, old, "move", str(tmp_path / "proc")) is None


def test_a_process_that_keeps_whoever_looks_waiting(children, old, new, tmp_path, monkeypatch):
    """Memory behind a user's own file system does that with /proc/PID/environ."""
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    (folder / "comm").write_text("ollama\n")
    os.mkfifo(folder / "environ")
    step = plan(old, new)
    rights = access.with_rights_of
    monkeypatch.setattr(moving, "with_rights_of", lambda user, work: rights(user, work, 0.2))
    with pytest.raises(StepError, match="took longer"):
        plan(old, new, proc=str(tmp_path / "proc"))
    assert step


# --- the record of an unfinished move


def begun(old, new, unit=UNIT):
    """A move of which the run was killed before the service was proven."""
    moving.plan(str(old), str(new), "move", ME, unit)[0].apply()


def test_the_record_is_roots_own_and_goes_with_the_move(old, new, remembered):
    step = plan(old, new)
    step.apply()
    record = Path(store.move_record(UNIT))
    assert record.stat().st_mode & 0o777 == 0o600
    assert json.loads(record.read_text())["moves"][0].items() >= {"old": str(old), "new": str(new)}.items()
    assert [path.name for path in new.iterdir()] == ["blobs", "manifests"], "the user's store has no word of it"
    step.finish()
    assert not remembered.parent.exists()


def test_a_marker_in_the_store_of_the_user_means_nothing(old, new, tmp_path):
    """p1: the user's word that models were once somewhere else."""
    put(new, "m8b")
    (new / ".gpufleet-moved-from").write_text("%s\n" % old)
    before = content(old), content(new)
    assert moving.plan(str(new), str(new), "refuse", ME, UNIT) == []
    assert (content(old), content(new)) == before


def test_the_record_is_for_its_own_unit(old, new):
    """p_marker: killed, given up, and the half-filled store given to a second instance."""
    begun(old, new, "ollama@a.service")
    before = content(old)
    assert moving.plan(None, str(new), "refuse", ME, "ollama@b.service") == []
    assert moving.plan(str(new), str(new), "refuse", ME, "ollama@b.service") == []
    os.rename(store.move_record("ollama@a.service"), store.move_record("ollama@b.service"))
    assert [type(step).__name__ for step in moving.plan(str(new), str(new), "refuse", ME, "ollama@b.service")] == [
        "CleanStep"
    ], "a record of another unit's is dropped"
    assert content(old) == before


def test_a_resumed_move_is_refused_like_a_new_one(old, new, tmp_path):
    begun(old, new)
    folder = tmp_path / "proc/8"
    folder.mkdir(parents=True)
    (folder / "comm").write_text("ollama\n")
    (folder / "environ").write_text("OLLAMA_MODELS=%s\0" % old)
    (folder / "cgroup").write_text("0::/system.slice/ollama@second.service\n")
    for former in (old, new):
        with pytest.raises(StepError, match="ollama@second.service uses the models of %s, too" % old):
            moving.plan(str(former), str(new), "move", ME, UNIT, str(tmp_path / "proc"))
    with pytest.raises(StepError, match="set models_dir_change to move"):
        put(old, "late", b"late weights")
        plan(old, new, "refuse")


def test_a_store_that_somebody_else_uses_now_is_not_cleaned(old, new, tmp_path):
    begun(old, new)
    before = content(new)
    folder = tmp_path / "proc/8"
    folder.mkdir(parents=True)
    (folder / "comm").write_text("ollama\n")
    (folder / "environ").write_text("OLLAMA_MODELS=%s\0" % new)
    (folder / "cgroup").write_text("0::/system.slice/ollama@second.service\n")
    (step,) = moving.plan(str(old), str(old), "refuse", ME, UNIT, str(tmp_path / "proc"))
    assert "record of an unfinished move" in step.diff()["before"]
    run(step)
    assert content(new) == before and not store.move_unfinished(UNIT)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unit": "x", "moves": [{}]}', '{"unit": "ollama.service"}'])
def test_a_record_that_cannot_be_read_is_dropped(old, remembered, text):
    remembered.parent.mkdir()
    Path(store.move_record(UNIT)).write_text(text)
    before = content(old)
    (step,) = moving.plan(str(old), str(old), "refuse", ME, UNIT)
    assert step.diff() == {"before": "the beginning of a record of a move\n", "after": ""}
    run(step)
    assert content(old) == before and not remembered.parent.exists()


def test_what_is_refused_on_rollback_keeps_the_record(old, new):
    begun(old, new)
    (step,) = moving.plan(str(old), str(old), "refuse", ME, UNIT)
    step.needed()
    step.apply()
    step.undo()
    step.finish()
    assert store.move_unfinished(UNIT) and content(new)
