# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that loads a model, killed before each of its changes: what the next one finds, and what it leaves.

A hub and a git that are functions of this test stand at the leaves; all else is real.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import download, git, place
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused

OLD, NEW = "a" * 40, "b" * 40
CONTENT = {
    OLD: {"config.json": b"old", "sub/weights": b"o" * 50},
    NEW: {"config.json": b"new", "sub/weights": b"n" * 60, "sub/more": b"m"},
}


class Answer:
    """Of a hub, in pieces: a killed run has some of a file."""

    def __init__(self, content, first=0):
        self.status, self.content = 206 if first else 200, content[first:]

    def read1(self, _size):
        piece, self.content = self.content[:20], self.content[20:]
        return piece

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass


@pytest.fixture
def world(tmp_path, monkeypatch):
    """What main is at the hub and in the repository; `world.synced` counts."""
    this = SimpleNamespace(commit=OLD, down=False, synced=0, folder=tmp_path / "models")

    def get(url, headers, first_byte=0):
        if this.down:
            raise OSError("down")
        if "/revision/" in url:
            siblings = [
                {
                    "rfilename": name,
                    "size": len(text),
                    "lfs": {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()},
                }
                for name, text in CONTENT[this.commit].items()
            ]
            return Answer(json.dumps({"sha": this.commit, "siblings": siblings}).encode())
        _hub, _resolve, rest = url.partition("/resolve/")
        commit, _slash, name = rest.partition("/")
        return Answer(CONTENT[commit][name], first_byte)

    def run(words, cwd, **_more):
        """Git, as far as it is called."""
        words = [word for word in words[1:] if word != "-c" and "=" not in word]
        said = ""
        if this.down:
            return SimpleNamespace(returncode=128, stdout=b"", stderr=b"down")
        if words[0] == "ls-remote":
            said = "%s\trefs/heads/main\n" % this.commit
        elif words[0] == "clone":
            os.makedirs(cwd + "/tree/.git/objects")
            with open(cwd + "/tree/.git/objects/pack", "wb") as file:
                file.write(b"p" * 100)
        elif words[0] == "rev-parse":
            said = words[-1][:40]
        elif words[0] == "checkout":
            for name, text in CONTENT[words[-1]].items():
                os.makedirs(os.path.dirname("%s/%s" % (cwd, name)), exist_ok=True)
                with open("%s/%s" % (cwd, name), "wb") as file:
                    file.write(text)
        return SimpleNamespace(returncode=0, stdout=said.encode(), stderr=b"")

    def sync_all(path):
        this.synced += 1

    monkeypatch.setattr(download, "get", get)
    monkeypatch.setattr(git.subprocess, "run", run)
    monkeypatch.setattr(git.shutil, "which", lambda name: name)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(files, "sync_all", sync_all)
    monkeypatch.setattr(place.os, "fsync", lambda descriptor: None)
    return this


@pytest.fixture(params=["huggingface", "git"])
def bring(request, bring_from, world):
    bring = bring_from(name="o/m", source=request.param, url="http://hub", revision="main", update=True)
    world.place = world.folder / request.param / "o/m"
    return bring


def contents(folder):
    found = {}
    for here, _folders, names in os.walk(folder):
        for name in names:
            path = os.path.join(here, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = file.read()
    found.pop("gpufleet.json", None)
    return found


def whole(world, result):
    """A result names a whole revision with the right content, and nothing else has come to be."""
    commit = os.path.basename(result["path"])
    assert contents(result["path"]) == CONTENT[commit]
    return commit


def parts(world):
    return sorted(name for name in os.listdir(world.place) if name not in (OLD, NEW, "refs"))


@pytest.mark.parametrize("start", ["nothing", "former"])
@pytest.mark.parametrize("then", ["same", "former", "failing", "a week later"])
def test_killed_at_every_change(bring, world, kills, monkeypatch, start, then):
    def prepared():
        shutil.rmtree(world.folder, ignore_errors=True)
        world.down, world.commit = False, OLD
        if start == "former":
            bring()
        world.commit = NEW
        return bring

    for number in kills.each(prepared):
        if then == "same":
            assert whole(world, bring()) == NEW and parts(world) == [], number
            assert not bring()["changed"] and whole(world, bring(offline=True)) == NEW
        elif then == "former":
            world.commit = OLD
            assert whole(world, bring()) == OLD and not bring()["changed"], number
            assert whole(world, bring(offline=True)) == OLD
        elif then == "failing":
            world.down = True
            with pytest.raises((Refused, Failed)):
                bring()
            if start == "former":  # the name always leads to a whole revision
                assert whole(world, bring(offline=True, update=False)) in (OLD, NEW), number
            world.down = False
            assert whole(world, bring()) == NEW and parts(world) == []
        else:
            world.commit = OLD
            bring()
            now = place.time.time() + place.STALE + 60
            with monkeypatch.context() as later:
                later.setattr(place.time, "time", lambda now=now: now)
                left = parts(world)
                result = bring(offline=True)
                assert result["changed"] == bool(left) and parts(world) == [] and whole(world, result) == OLD, number
                assert not bring(offline=True)["changed"]
    assert kills.points > 12
    assert bring()["path"].endswith(NEW) and parts(world) == []


@pytest.mark.parametrize("damage", ["config.json", "sub/weights", "gpufleet.json"])
def test_killed_while_a_damaged_one_is_replaced(bring, world, kills, damage):
    def prepared():
        shutil.rmtree(world.folder, ignore_errors=True)
        os.unlink(os.path.join(bring()["path"], damage))
        return bring

    for number in kills.each(prepared):
        result = bring()
        assert whole(world, result) == OLD and parts(world) == [], number
    assert kills.points > 12


def test_a_revision_counts_once_all_of_it_is_on_the_disk(bring, world, monkeypatch):
    """Before the rename that makes it whole, its file system has been synced; after it, its folder."""
    done, rename = [], os.rename
    monkeypatch.setattr(files, "sync_all", lambda path: done.append(("all", sorted(contents(path)))))
    monkeypatch.setattr(place.os, "rename", lambda old, new: (done.append(os.path.basename(new)), rename(old, new)))
    monkeypatch.setattr(place.os, "fsync", lambda descriptor: done.append("sync"))
    bring()
    at = done.index(OLD)
    assert done[at - 1] == ("all", ["config.json", "sub/weights"]) and done[at + 1] == "sync"
    assert done[at + 2 :] == ["sync", "main", "sync"], "the name after the revision, and lasting, too"
