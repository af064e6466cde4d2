# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user of the service lays traps in both stores, and root moves the models: nothing of root's is read or changed."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import moving
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import access
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.users import Ids, as_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can work as somebody else")
UNIT = "ollama.service"
USER = Ids(40404, 40404, [40404])
SECRET = "a secret of root's"
PAYLOAD = b"ssh-ed25519 AAAA attacker"
BLOB = "blobs/sha256-" + hashlib.sha256(PAYLOAD).hexdigest()
MANIFEST = "manifests/r/l/m/t"


@pytest.fixture
def place(monkeypatch):
    """A folder that everybody may enter, as pytest's own may not."""
    monkeypatch.setattr(access, "ids", lambda user: USER if user == "ollama" else Ids(0, 0, [0]))
    monkeypatch.setattr(moving, "ids", access.ids)
    with tempfile.TemporaryDirectory(prefix="gpufleet-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def roots(place):
    """Root's own: a folder that only root may enter, and one as /etc is."""
    for name, mode in (("root", 0o700), ("etc", 0o755)):
        folder = place / name
        for below in ("r/l/m", "blobs"):
            (folder / below).mkdir(parents=True)
        for file in ("shadow", "r/l/m/t", BLOB, "sha256-" + BLOB[-64:]):
            (folder / file).write_text(SECRET)
            (folder / file).chmod(0o600)
        folder.chmod(mode)
    before = state(place)
    yield place
    assert state(place) == before, "nothing of root's is gone, new, changed or given away"


def state(place):
    """All that is root's."""
    found = {}
    for name in ("root", "etc"):
        for path in [place / name, *(place / name).rglob("*")]:
            at = path.lstat()
            content = path.read_bytes() if path.is_file() else None
            found[str(path)] = (stat.S_IFMT(at.st_mode), at.st_mode, at.st_uid, at.st_gid, at.st_nlink, content)
    return found


@pytest.fixture
def home(place):
    folder = place / "home"
    folder.mkdir()
    os.chown(folder, USER.uid, USER.gid)
    return folder


@pytest.fixture
def old(home):
    folder = home / "old"
    as_user(USER, lambda: fill(folder))
    return folder


def fill(folder):
    for name, content in ((BLOB, PAYLOAD), (MANIFEST, b"{}")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def readable(folder):
    """What the user can read below a folder of its own."""

    def read():
        found = []
        for path in folder.rglob("*"):
            with suppress(OSError):
                if stat.S_ISREG(path.stat().st_mode):
                    with open(path) as file:
                        found.append(file.read(len(SECRET)))
        return found

    return as_user(USER, read)


def move(old, new, limit=15):
    """A run that moves the models, whatever comes of it; and what it says where it fails."""
    started, said = time.monotonic(), None
    try:
        for step in moving.plan(str(old), str(new), "move", "ollama", UNIT):
            step.needed()
            try:
                step.apply()
                step.finish()
            except (StepError, OSError):
                step.undo()
                raise
    except (StepError, OSError) as error:
        said = str(error)
    assert time.monotonic() - started < limit
    return said


def replaced(path):
    """Make room for something else by this name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        path.rename(str(path) + ".away")
    return path


TRAPS = {
    # what is laid, with the user's rights, in the old store, the new one, and next to root's
    "manifests of root in the old store": lambda old, new, at: replaced(old / "manifests").symlink_to(at / "root"),
    "blobs of root in the old store": lambda old, new, at: replaced(old / "blobs").symlink_to(at / "root"),
    "a registry of root's in the old store": lambda old, new, at: (old / "manifests/x").symlink_to(at / "root/r"),
    "a blob that is root's": lambda old, new, at: replaced(old / BLOB).symlink_to(at / "root/shadow"),
    "a manifest that is root's": lambda old, new, at: replaced(old / MANIFEST).symlink_to(at / "root/shadow"),
    "readable manifests of root's": lambda old, new, at: replaced(old / "manifests").symlink_to(at / "etc"),
    "manifests lead to /etc": lambda old, new, at: replaced(new / "manifests").symlink_to(at / "etc"),
    "blobs lead to /etc": lambda old, new, at: replaced(new / "blobs").symlink_to(at / "etc"),
    "a folder of a model leads to /etc": lambda old, new, at: replaced(new / "manifests/r/l/m").symlink_to(at / "etc"),
    "a copy's name leads to root's": lambda old, new, at: replaced(new / (BLOB + ".gpufleet")).symlink_to(
        at / "root/shadow"
    ),
    "a manifest's copy leads to root's": lambda old, new, at: replaced(new / "manifests/r/l/.m-t.gpufleet").symlink_to(
        at / "root/shadow"
    ),
    "a copy's name is a folder": lambda old, new, at: replaced(new / (BLOB + ".gpufleet")).mkdir(),
    "a copy's name is a pipe": lambda old, new, at: os.mkfifo(replaced(new / (BLOB + ".gpufleet"))),
    "a blob in the new store leads to root's": lambda old, new, at: replaced(new / BLOB).symlink_to(at / "root/shadow"),
    "the new store leads to /etc": lambda old, new, at: replaced(new).symlink_to(at / "etc"),
    "the new store leads to nothing": lambda old, new, at: replaced(new).symlink_to(at / "etc/new"),
    "the new store is a file": lambda old, new, at: replaced(new).write_text(""),
    "the old store leads to /": lambda old, new, at: replaced(old).symlink_to(at),
    "a marker": lambda old, new, at: replaced(new / ".gpufleet-moved-from").write_text(str(at / "root")),
    "a marker that leads to root's": lambda old, new, at: replaced(new / ".gpufleet-moved-from").symlink_to(
        at / "root/shadow"
    ),
    "a marker that is a pipe": lambda old, new, at: os.mkfifo(replaced(new / ".gpufleet-moved-from")),
    "pipes for blobs and manifests": lambda old, new, at: [
        os.mkfifo(replaced(store / name)) for store in (old, new) for name in (BLOB, MANIFEST)
    ],
    "blobs and manifests are devices": lambda old, new, at: [
        replaced(store / name).symlink_to("/dev/zero") for store in (old, new) for name in (BLOB, MANIFEST)
    ],
    "folders for files": lambda old, new, at: [replaced(new / name).mkdir() for name in (BLOB, MANIFEST)],
    "tops are pipes": lambda old, new, at: [os.mkfifo(replaced(new / name)) for name in ("blobs", "manifests")],
    "links in a circle": lambda old, new, at: [
        replaced(store / "manifests/c").symlink_to(store / "manifests/c") for store in (old, new)
    ],
    "a manifest of a terabyte": lambda old, new, at: os.truncate(old / MANIFEST, 1 << 40),
    "a blob of a terabyte": lambda old, new, at: os.truncate(old / BLOB, 1 << 40),
    "a name that is no text": lambda old, new, at: os.mkfifo(os.path.join(os.fsencode(old), b"manifests/\xff\n")),
}


COPIED = [trap for trap in TRAPS if "cop" in trap or "terabyte" in trap or "is root's" in trap or "lead to" in trap]


@pytest.mark.parametrize("trap, copies", [(trap, False) for trap in TRAPS] + [(trap, True) for trap in COPIED])
def test_a_trap(roots, home, old, monkeypatch, trap, copies):
    if copies:
        monkeypatch.setattr(os, "link", lambda *words, **named: (_ for _ in ()).throw(OSError(18, "Invalid link")))
    new = home / "srv/new"

    def lay():
        TRAPS[trap](old, new, roots)

    as_user(USER, lay)
    # what a check, an ordinary run and a killed one that is resumed would do
    with suppress(StepError):
        moving.plan(str(new), str(new), "refuse", "ollama", UNIT)
    move(old, new)
    with suppress(StepError, OSError):
        for step in moving.plan(str(old), str(new), "move", "ollama", UNIT):
            step.apply()
    move(old, old)
    move(new, new)
    assert SECRET not in readable(home)


def test_a_store_of_a_user_at_work(roots, home, old):
    """While root moves the models, their user swaps folders and files for links to root's, hundreds of times."""
    new, stop = home / "srv/new", threading.Event()
    as_user(USER, lambda: fill(new))

    def swap():
        while not stop.is_set():
            for path, to in ((new / "blobs", "etc"), (new / "manifests", "root"), (old / "blobs", "root")):
                with suppress(OSError):
                    os.rename(path, str(path) + ".away")
                    os.symlink(roots / to, path)
                with suppress(OSError):
                    os.unlink(path)
                    os.rename(str(path) + ".away", path)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _attempt in range(40):
            move(old, new)
            as_user(USER, lambda: [suppressed(fill, folder) for folder in (old, new)])
    finally:
        stop.set()
        thread.join()
    assert SECRET not in readable(home)


def suppressed(work, *words):
    with suppress(OSError):
        work(*words)


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_a_store_in_a_folder_of_roots(place, home, old, umask):
    """Root makes the top folder, and whatever lies above it stays with root."""
    new, former = place / "srv/ollama/models", os.umask(umask)
    try:
        assert move(old, new) is None
    finally:
        os.umask(former)
    owners = [(path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) for path in (new.parent, new)]
    assert owners == [(0, 0o755), (USER.uid, 0o755)]
    assert as_user(USER, (new / BLOB).read_text) == PAYLOAD.decode() and not old.exists()
    assert all(path.lstat().st_uid == USER.uid for path in new.rglob("*"))


def test_a_store_in_the_users_home(home, old):
    new = home / ".ollama/models"
    assert move(old, new) is None
    assert new.parent.stat().st_uid == USER.uid, "the server keeps its key there"


def test_what_the_user_may_only_read_is_copied_and_what_it_may_not_is_named(place, home, old):
    os.chown(old / BLOB, 0, 0)
    os.chmod(old / BLOB, 0o600)
    before = sorted(home.rglob("*"))
    said = move(old, home / "new")
    assert "%s cannot be moved to" % (old / BLOB) in said and "user can read the one" in said
    assert sorted(home.rglob("*")) == before
    os.chmod(old / BLOB, 0o644)
    assert move(old, home / "new") is None
    assert (home / "new" / BLOB).stat().st_uid == USER.uid


def test_what_the_user_may_not_remove(place, home, old):
    os.chown(old / "blobs", 0, 0)
    said = move(old, home / "new")
    assert "user ollama cannot remove files from %s/blobs: chown -R ollama: %s, or leave" % (old, old) in said
    os.chmod(old / "manifests", 0)
    assert "make them readable for user ollama, or set models_dir_change to leave" in move(old, home / "new")
    assert not (home / "new").exists()


def test_a_server_that_runs_as_root(place, old):
    new = place / "srv/new"
    (step,) = moving.plan(str(old), str(new), "move", "root", UNIT)
    step.needed()
    step.apply()
    step.finish()
    assert (new / BLOB).read_bytes() == PAYLOAD and not old.exists()
