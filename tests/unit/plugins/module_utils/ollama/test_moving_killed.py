# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that moves models is killed at every call that changes anything; then another run comes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import pwd
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import install_record
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import moving, transfer

ME = pwd.getpwuid(os.geteuid()).pw_name
UNIT = "ollama.service"
CALLS = ("mkdir", "chmod", "chown", "fchmod", "fchown", "link", "unlink", "rename", "rmdir", "fsync", "fdatasync")
MODELS = {"a": ["shared", "weights of a"], "b": ["shared", "weights of b" * 9]}


class Killed(BaseException):
    """The run, and its child: what they would do next is not done."""


class Killer:
    """Counts the calls that change anything, and ends the run at one of them."""

    def __init__(self, monkeypatch):
        self.left, self.copies = None, False
        for name in CALLS:
            monkeypatch.setattr(os, name, self._counting(name, getattr(os, name)))
        real = os.open

        def opening(path, flags, *words, **options):
            if flags & os.O_CREAT:
                self.tick()
            return real(path, flags, *words, **options)

        monkeypatch.setattr(os, "open", opening)

    def _counting(self, name, real):
        def call(*words, **options):
            self.tick()
            if name == "link" and self.copies:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            if "sync" not in name:  # of which a kill notices nothing, but the test's duration does
                return real(*words, **options)

        return call

    def tick(self):
        if self.left is not None:
            if not self.left:
                raise Killed
            self.left -= 1

    def at(self, number, work):
        """Whether the work was killed before its call of that number."""
        self.left = number
        try:
            work()
        except Killed:
            return True
        finally:
            self.left = None
        return False


def blob(text):
    return "blobs/sha256-" + hashlib.sha256(text.encode()).hexdigest()


def fill(folder, models):
    for model in models:
        manifest = folder / "manifests/r/l" / model / "t"
        manifest.parent.mkdir(parents=True)
        (folder / "blobs").mkdir(exist_ok=True)
        manifest.write_text(" ".join(blob(text) for text in MODELS[model]))
        for text in MODELS[model]:
            (folder / blob(text)).write_text(text)


def models(folder):
    """The models of a store that are whole; one that is not fails the test."""
    found = set()
    for model, texts in MODELS.items():
        if (folder / "manifests/r/l" / model / "t").is_file():
            assert all((folder / blob(text)).read_text() == text for text in texts), "a model is broken"
            found.add(model)
    return found


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else None


def plan(former, new, change="move"):
    return moving.plan(str(former), str(new), change, ME, UNIT)


def go(steps, proven=True):
    """A run: what the engine does with the steps."""
    applied = [step for step in steps if step.needed()]
    for step in applied:
        step.apply()
    for step in applied if proven else reversed(applied):
        step.finish() if proven else step.undo()


class Case:
    """Two stores, and a move of which a part is killed."""

    def __init__(self, folder, before):
        self.old, self.new, self.third = folder / "old", folder / "srv/new", folder / "third"
        fill(self.old, "ab")
        fill(self.new, before)
        self.at_first = everything(self.new) if before else None
        self.force = self.old

    def kill(self, killer, phase, number):
        (step,) = plan(self.old, self.new)
        assert step.needed()
        if phase == "apply":
            return killer.at(number, step.apply)
        step.apply()
        if phase == "undo":
            return killer.at(number, step.undo)
        self.force = self.new
        return killer.at(number, step.finish)

    # what comes next, and how the host must be then

    def same(self):
        go(plan(self.force, self.new))
        self.force = self.new
        assert not self.old.exists()

    def failing(self):
        go(plan(self.force, self.new), proven=False)
        assert models(self.force) == set("ab")
        if self.force == self.old:
            assert everything(self.new) == self.at_first, "rolled back"
        else:
            self.same()

    def former(self):
        """The inventory from before, by which nothing may be moved."""
        try:
            steps = plan(self.force, self.old, "refuse")
        except StepError as error:
            assert "would not see" in str(error) and self.force == self.new
            steps = plan(self.force, self.old)
        go(steps)
        self.force = self.old
        assert everything(self.new) in (self.at_first, None)

    def absent(self):
        """The service goes; its store is then the default one, the old one here."""
        if models(self.old) == set("ab"):
            go(plan(self.force, self.old, "leave"))
            self.force = self.old
            assert everything(self.new) == self.at_first
        else:
            go(plan(self.force, self.third, "leave"))

    def another(self):
        go(plan(self.force, self.third))
        if self.force == self.old:
            assert everything(self.new) == self.at_first and not self.old.exists()
        self.force = self.third

    def left_behind(self):
        go(plan(self.force, self.new, "leave"))
        assert self.force == self.new or {blob(text) for model in models(self.new) for text in MODELS[model]} >= {
            "blobs/" + path.name for path in self.new.glob("blobs/*")
        }


@pytest.fixture
def memory(monkeypatch):
    """A folder, in memory where there is some: thousands of files are made and removed."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="gpufleet-", dir=place) as folder:
        monkeypatch.setattr(install_record, "PATH", folder + "/var/made.json")
        yield Path(folder)
        monkeypatch.undo()  # the counting of calls, too


NEXT = ("same", "failing", "former", "absent", "another", "left_behind")


@pytest.mark.parametrize("before", ["", "a"], ids=["empty", "has one"])
@pytest.mark.parametrize("phase, copies", [("apply", False), ("apply", True), ("finish", False), ("undo", False)])
def test_killed_anywhere(no_children, monkeypatch, memory, copies, before, phase):
    monkeypatch.setattr(transfer, "_PIECE", 40)
    monkeypatch.setattr(transfer, "_SYNC", 1)
    monkeypatch.setattr(moving, "users_of", lambda *words: [])
    killer = Killer(monkeypatch)
    killer.copies = copies
    remembered = Path(install_record.PATH)
    for number in itertools.count():
        for following in NEXT:
            host = memory / following / str(number)
            case = Case(host, before)
            if not case.kill(killer, phase, number):
                break
            assert models(case.force) == set("ab"), "the store in force has all models at any time"
            getattr(case, following)()
            told = "killed in %s at call %d, then %s" % (phase, number, following)
            assert models(case.force) == set("ab"), told
            assert not list(host.rglob("*.gpufleet")), told
            assert not remembered.parent.exists() or not os.listdir(remembered.parent), told
            with suppress(OSError):
                os.rmdir(remembered.parent)
        else:
            continue
        break
    assert number > (5 if phase == "undo" else 8)
