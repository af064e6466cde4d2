# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model by git from a repository of this test; large files need git-lfs, without which those tests are left out."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import git
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused

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
    assert not any(line.startswith("GPUFLEET_") for line in given)
    assert (lfs / "log").read_text().split("\n")[0] == "install --local --skip-repo"


def test_what_is_not_there(bring, lfs, tmp_path):
    with pytest.raises((Refused, Failed), match="none of house/chat: its repository has no such branch or tag"):
        bring(revision="none")
    with pytest.raises((Refused, Failed), match="HEAD of house/chat: git ls-remote: exit status 128"):
        bring(url=str(tmp_path / "nowhere"))
    assert not (tmp_path / "models").exists()
    for unknown in ("d" * 40, "dddddd"):
        with pytest.raises((Refused, Failed), match="git rev-parse: exit status 1"):
            bring(revision=unknown)
    assert os.listdir(tmp_path / "models/git/house/chat") == []


def test_without_git_lfs(bring, monkeypatch, tmp_path):
    monkeypatch.setattr(git.shutil, "which", lambda name: None if name == "git-lfs" else "/usr/bin/" + name)
    with pytest.raises((Refused, Failed), match="this host has no git-lfs; install the packages git and git-lfs"):
        bring()
    assert not (tmp_path / "models").exists()


def test_check_mode_writes_nothing(bring, lfs, tmp_path):
    result = bring(check=True)
    assert result["msg"] == "would clone HEAD of house/chat" and result["changed"]
    assert not (tmp_path / "models").exists()


def test_check_mode_predicts_what_is_there_over_a_file_s_address(bring, lfs, repository):
    url = "file://%s" % repository.folder
    assert bring(check=True, url=url)["changed"] and bring(url=url)["changed"]
    assert not bring(check=True, url=url, update=True)["changed"] and not bring(url=url, update=True)["changed"]


def test_check_mode_predicts_what_is_there(bring, lfs, repository, web):
    url = web(repository)

    def predicted(**more):
        would, done = bring(check=True, url=url, **more), bring(url=url, **more)
        assert all(would[name] == done[name] for name in ("changed", "path", "commit", "diff")), (would, done)
        return done["changed"]

    assert predicted(revision="trunk") and not predicted(revision="trunk", update=True)
    assert not predicted(revision="trunk")
    assert predicted(update=True) and not predicted(update=True), "HEAD has a name of its own"
    repository("tag", "-a", "-m", "annotated", "v2", "trunk")
    assert predicted(revision="v2", update=True) and not predicted(revision="v2", update=True)
    assert predicted(revision="v1") and not predicted(revision="v1", update=True)
    (repository.folder / "config.json").write_text("three")
    repository("commit", "--quiet", "-am", "three")
    assert predicted(revision="trunk", update=True) and not predicted(revision="trunk", update=True)
    first = repository("rev-parse", "v1")
    assert not predicted(revision=first) and not predicted(revision=first, update=True)
    assert predicted(revision=first[:9], update=True) is True and not predicted(revision=first[:9], update=True)
    with pytest.raises((Refused, Failed), match="no such branch or tag"):
        bring(check=True, url=url, revision="none")


@pytest.fixture
def web(tmp_path):
    """`web(repository)` offers it over http and gives its URL; `web.secret` is asked for if set."""
    seen = SimpleNamespace(secret=None, headers=[], to=None, asks=True)

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            seen.headers.append((self.headers["Host"].split(":")[0], self.headers.get("Authorization")))
            wanted = seen.secret and "Basic " + base64.b64encode(seen.secret.encode()).decode()
            moved = seen.to and "/elsewhere/" not in self.path
            if wanted and self.headers.get("Authorization") != wanted and (seen.asks or not moved):
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="git"')
                self.end_headers()
            elif moved:
                self.send_response(302)
                self.send_header("Location", seen.to + "/elsewhere" + self.path)
                self.end_headers()
            else:
                self.path = self.path.replace("/elsewhere", "")
                super().do_GET()

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "remote")))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def offered(repository):
        hook = repository.folder / ".git/hooks/reference-transaction"
        hook.write_text('#!/bin/sh\ntest "$1" != committed || git update-server-info\n')
        hook.chmod(0o755)
        repository("update-server-info")
        return "http://127.0.0.1:%d/.git" % server.server_address[1]

    offered.seen, offered.port = seen, server.server_address[1]
    yield offered
    server.shutdown()
    server.server_close()


@pytest.fixture
def looked(tmp_path, monkeypatch):
    """A git that first writes down the arguments of all processes there are, and its configuration file."""
    folder, real = tmp_path / "looking", shutil.which("git")
    folder.mkdir()
    (folder / "git").write_text(
        "#!/bin/sh\ncat /proc/[0-9]*/cmdline >> %s/seen 2>/dev/null; cat .git/config >> %s/seen 2>/dev/null\n"
        'exec %s "$@"\n' % (folder, folder, real)
    )
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (folder, os.environ["PATH"]))
    return folder / "seen"


@pytest.mark.parametrize("given", ["url", "token", "user and token", "user alone"])
def test_a_secret_reaches_git_and_nobody_else(bring, lfs, repository, web, looked, tmp_path, monkeypatch, given):
    """What stands in arguments, in the clone's own file, in the result; and that root's own helpers store nothing."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[credential]\n\thelper = store\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
    monkeypatch.setenv("HOME", str(home))
    plain = web(repository)
    secret, user, token = {
        "url": ("me:pa%:ss", "me:pa%25%3Ass@", None),
        "token": ("oauth2:s3cret", "", "s3cret"),
        "user and token": ("me:s3cret", "me@", "s3cret"),
        "user alone": ("s3cret:", "s3cret@", None),
    }[given]
    web.seen.secret = secret
    url = plain.replace("://", "://" + user)
    result = bring(url=url, token=token, revision="trunk")
    assert content(result) == "two"
    assert not bring(url=url, token=token, revision="trunk", update=True)["changed"]
    texts = [looked.read_bytes(), json.dumps(result).encode(), (lfs / "log").read_bytes()]
    texts += [path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()]
    for hidden in {secret.strip(":").split(":", 1)[-1].encode(), b"pa%25%3Ass", b"s3cret"}:
        assert not any(hidden in text for text in texts)
    assert b"ls-remote" in texts[0] and b"credential" in texts[0], "it was looked at"
    assert os.listdir(home) == [".gitconfig"]
    web.seen.secret = "other"
    with pytest.raises((Refused, Failed), match="git ls-remote: exit status 128") as caught:
        bring(url=url, token=token, revision="trunk", update=True)
    assert "s3cret" not in str(caught.value) and "pa%" not in str(caught.value)


@pytest.mark.parametrize("asks", [True, False])
def test_a_secret_is_not_sent_to_where_a_server_redirects(bring, lfs, repository, web, asks):
    url, web.seen.asks = web(repository), asks
    web.seen.secret = "me:s3cret"
    web.seen.to = "http://localhost:%d" % web.port  # another name for another server
    with pytest.raises((Refused, Failed), match="git ls-remote: exit status 128"):
        bring(url=url.replace("://", "://me:s3cret@"))
    hosts = {host for host, given in web.seen.headers if given}
    assert hosts == ({"127.0.0.1"} if asks else set()) and ("localhost", None) in web.seen.headers


def test_large_files_that_were_not_fetched(bring, lfs, repository, tmp_path):
    (repository.folder / "model.safetensors").write_text(POINTER)
    repository("add", ".")
    repository("commit", "--quiet", "-m", "large")
    with pytest.raises((Refused, Failed), match="git-lfs did not fetch model.safetensors"):
        bring()
    assert os.listdir(tmp_path / "models/git/house/chat") == []
    with pytest.raises((Refused, Failed), match="needed are 0.0 MiB, and .* GiB shall be left"):
        bring(free_space_margin="1000TB")
