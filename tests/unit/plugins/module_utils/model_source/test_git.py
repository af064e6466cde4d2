# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model by git from a repository of this test; large files need git-lfs, without which those tests are left out."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import git
from ansible_collections.gpufleet.inference.plugins.module_utils.model_source.place import SourceError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % ("0" * 64)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with two commits; `repository("words")` runs git there."""
    folder = tmp_path / "remote"
    folder.mkdir()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

    def run(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        done = subprocess.run(["git", *who, *words], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout.strip()

    run("init", "--quiet", "--initial-branch=trunk")
    for text in ("one", "two"):
        (folder / "config.json").write_text(text)
        run("add", ".")
        run("commit", "--quiet", "-m", text)
    run("tag", "v1", "HEAD~1")
    run.folder = folder
    return run


@pytest.fixture
def lfs(tmp_path, monkeypatch):
    """A git-lfs that finds nothing to do, where there is none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "git-lfs"
    program.write_text('#!/bin/sh\necho "$*" >> %s/log\nenv > %s/environment\n' % (folder, folder))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (folder, os.environ["PATH"]))
    return folder


@pytest.fixture
def bring(bring_from, repository):
    return bring_from(name="house/chat", source="git", url=str(repository.folder))


def content(result):
    with open(result["path"] + "/config.json", encoding="utf-8") as file:
        return file.read()


def test_cloned_once(bring, lfs, repository):
    result = bring()
    assert result["changed"] and content(result) == "two" and result["commit"] == repository("rev-parse", "HEAD")
    assert sorted(os.listdir(result["path"])) == ["config.json", "gpufleet.json"]
    assert (lfs / "log").read_text().split("\n")[1:3] == ["pull", "fsck"]
    shutil.rmtree(repository.folder)
    assert not bring()["changed"] and not bring(offline=True)["changed"]


@pytest.mark.parametrize(("revision", "text"), [("v1", "one"), ("trunk", "two"), (None, "two")])
def test_a_revision(bring, lfs, revision, text):
    assert content(bring(revision=revision)) == text


def test_a_commit_and_a_branch_that_moves(bring, lfs, repository):
    first = repository("rev-parse", "HEAD~1")
    assert content(bring(revision=first)) == "one"
    old = bring(revision="trunk")
    (repository.folder / "config.json").write_text("three")
    repository("commit", "--quiet", "-am", "three")
    assert content(bring(revision="trunk")) == "two"
    new = bring(revision="trunk", update=True)
    assert new["changed"] and content(new) == "three" and os.path.isdir(old["path"])
    assert not bring(revision="trunk", update=True)["changed"]


def test_a_branch_goes_before_a_tag_of_its_name(bring, lfs, repository):
    repository("tag", "trunk", "HEAD~1")
    assert content(bring(revision="trunk")) == "two"


def test_a_tag_of_a_commit_that_is_there(bring, lfs, repository, tmp_path):
    path = bring(revision="trunk")["path"]
    repository("tag", "v2", "trunk")
    again = bring(revision="v2")
    assert again["changed"] and again["path"] == path
    assert not bring(revision="v2", offline=True)["changed"]
    assert sorted(os.listdir(tmp_path / "models/git/house/chat")) == sorted([os.path.basename(path), "refs"])


def test_what_an_interrupted_run_left(bring, lfs, repository, tmp_path):
    commit = repository("rev-parse", "HEAD")
    for name in ("clone", commit):
        left = tmp_path / "models/git/house/chat" / (".%s.part" % name)
        left.mkdir(parents=True)
        (left / "config.json").write_text("half")
    assert content(bring()) == "two"


def test_what_is_in_folders_and_what_only_looks_like_a_pointer(bring, lfs, repository):
    (repository.folder / "sub/.git-notes").mkdir(parents=True)
    (repository.folder / "sub/.git-notes/a.txt").write_text("version https://git-lfs.github.com/spec/v1\nno size")
    (repository.folder / "long.txt").write_text(POINTER + "x" * 1024)
    (repository.folder / "note.txt").write_text("size 5\n")
    repository("add", ".")
    repository("commit", "--quiet", "-m", "more")
    path = bring()["path"]
    assert os.path.exists(path + "/sub/.git-notes/a.txt") and os.path.getsize(path + "/long.txt") > 1024


def test_git_asks_nobody_and_fetches_nothing_large_by_itself(bring, lfs, repository, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    bring()
    given = (lfs / "environment").read_text().split("\n")
    assert {"GIT_TERMINAL_PROMPT=0", "GIT_LFS_SKIP_SMUDGE=1", "HOME=/root"} <= set(given)
    assert not any(line.startswith("GIT_CONFIG_VALUE_0") for line in given)
    assert (lfs / "log").read_text().split("\n")[0] == "install --local"


def test_what_is_not_there(bring, lfs, tmp_path):
    with pytest.raises(SourceError, match="none of house/chat: git rev-parse: exit status 128"):
        bring(revision="none")
    with pytest.raises(SourceError, match="HEAD of house/chat: git clone: exit status 128"):
        bring(url=str(tmp_path / "nowhere"))
    assert os.listdir(tmp_path / "models/git/house/chat") == []


def test_without_git_lfs(bring, monkeypatch, tmp_path):
    monkeypatch.setattr(git.shutil, "which", lambda name: None if name == "git-lfs" else "/usr/bin/" + name)
    with pytest.raises(SourceError, match="this host has no git-lfs; install the packages git and git-lfs"):
        bring()
    assert not (tmp_path / "models").exists()


def test_check_mode_writes_nothing(bring, lfs, tmp_path):
    result = bring(check=True)
    assert result["msg"] == "would clone HEAD of house/chat" and result["changed"]
    assert not (tmp_path / "models").exists()


def test_the_token_stands_in_no_arguments(bring, lfs, repository):
    bring(token="s3cret")
    assert "s3cret" not in (lfs / "log").read_text()
    given = (lfs / "environment").read_text()
    assert "GIT_CONFIG_VALUE_0=Authorization: Basic b2F1dGgyOnMzY3JldA==" in given
    assert "GIT_CONFIG_COUNT=1\n" in given
    assert "GIT_CONFIG_KEY_0=http.%s.extraHeader\n" % repository.folder in given


def test_large_files_that_were_not_fetched(bring, lfs, repository, tmp_path):
    (repository.folder / "model.safetensors").write_text(POINTER)
    repository("add", ".")
    repository("commit", "--quiet", "-m", "large")
    with pytest.raises(SourceError, match="git-lfs did not fetch model.safetensors"):
        bring()
    assert os.listdir(tmp_path / "models/git/house/chat") == []
    with pytest.raises(SourceError, match="needed are 0.0 MiB, and .* GiB shall be left"):
        bring(free_space_margin="1000TB")
