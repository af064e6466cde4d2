# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks on a host that loads models: by a user who may write above the model's folder, by a hub, by a git server."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.inference.plugins.action import model_source as action
from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import download, git, hub, place
from ansible_collections.gpufleet.inference.plugins.module_utils.model_source.hub import File
from ansible_collections.gpufleet.inference.plugins.module_utils.model_source.place import Place
from ansible_collections.gpufleet.inference.plugins.module_utils.seeding import model as seeding_model
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.plugin_utils import check_first
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import Answer

ALICE = 12345
COMMIT = "a" * 40
root_alone = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who is attacked")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


@pytest.fixture
def served():
    """A hub with the model o/m, whose answers a test may replace: `served.answers[path] = (status, headers, body)`."""

    class Served:
        headers = []

        def list(self, *files, commit=COMMIT):
            siblings = [{"rfilename": name, "size": size, "blobId": None} for name, size in files]
            self.answers["/api/models/o/m/revision/"] = (200, {}, json.dumps({"sha": commit, "siblings": siblings}))

    this = Served()
    this.answers, this.headers, this.asked = {}, [], None

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            this.headers.append(self.headers)
            if this.asked:
                this.asked(self.path)
            found = [answer for start, answer in this.answers.items() if self.path.startswith(start)]
            status, headers, body = found[0] if found else (200, {}, "{}")
            self.send_response(status)
            for name, value in dict({"Content-Length": str(len(body))}, **headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    this.url = "http://127.0.0.1:%d" % server.server_address[1]
    this.list(("config.json", 2))
    yield this
    server.shutdown()
    server.server_close()


@pytest.fixture
def bring(bring_from, served):
    return bring_from(name="o/m", url=served.url)


@pytest.fixture
def home(tmp_path):
    """A folder of alice, and one of root's next to it with a secret."""
    folder, victim = tmp_path / "alice", tmp_path / "victim"
    for one in (folder, victim):
        one.mkdir()
    os.chown(folder, ALICE, ALICE)
    (victim / "secret").write_text("root's own")
    (victim / "secret").chmod(0o600)
    return folder


def snapshot(folder):
    """All that could be changed of a tree."""
    found = {}
    for here, folders, names in os.walk(folder):
        for name in [".", *folders, *names]:
            path = os.path.join(here, name)
            one = os.lstat(path)
            found[path] = (one.st_mode, one.st_uid, one.st_gid, one.st_nlink, one.st_size, one.st_mtime_ns)
    return found


# --- by who may write above the model's folder


@root_alone
def test_a_folder_below_a_users_own_belongs_to_root(bring, home):
    path = bring(root=str(home / "models"))["path"]
    for here in (path, path + "/config.json", os.path.dirname(path), str(home / "models")):
        assert (os.stat(here).st_uid, os.stat(here).st_mode & 0o022) == (0, 0)
    assert os.stat(home).st_uid == ALICE


@root_alone
@pytest.mark.parametrize("where", ["models", "models/huggingface", "models/huggingface/o", "models/huggingface/o/m"])
@pytest.mark.parametrize("what", ["link", "folder", "fifo", "file", "socket", "device"])
def test_what_a_user_puts_in_the_way(bring, home, tmp_path, where, what):
    path, before = home / where, snapshot(tmp_path / "victim")
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "link":
        path.symlink_to(tmp_path / "victim")
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "file":
        path.touch()
    elif what == "device":
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    else:
        here = os.getcwd()
        os.chdir(path.parent)  # its name may be no longer than 107 bytes
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
        os.chdir(here)
    for here, folders, names in os.walk(home):
        for name in [".", *folders, *names]:
            os.lchown(os.path.join(here, name), ALICE, ALICE)
    assert bring(check=True, root=str(home / "models"))["changed"]
    if what == "folder" and where != "models/huggingface/o/m":  # one of root's own is created in it
        assert bring(root=str(home / "models"))["changed"]
    else:
        with pytest.raises((Refused, Failed), match="symbolic link|expected a folder of root|Not a directory"):
            bring(root=str(home / "models"))
    assert snapshot(tmp_path / "victim") == before


@root_alone
def test_a_folder_that_is_swapped_while_it_is_loaded(bring, served, home, tmp_path):
    before = snapshot(tmp_path / "victim")

    def swap(path):
        if "resolve" in path and not (home / "gone").exists():
            (home / "models").rename(home / "gone")
            for below in ("", "/huggingface", "/huggingface/o"):
                os.makedirs("%s/models%s" % (home, below), exist_ok=True)
            (home / "models/huggingface/o/m").symlink_to(tmp_path / "victim")

    served.asked = swap
    bring(root=str(home / "models"))
    assert snapshot(tmp_path / "victim") == before
    assert os.listdir(home / "gone/huggingface/o/m/" / COMMIT), "it went where it began"


@root_alone
def test_a_race_over_the_folder(bring, home, tmp_path):
    """Alice swaps root's folder for a link as fast as she can, while root loads the model a hundred times."""
    before, tries = snapshot(tmp_path / "victim"), 100
    inside, victim = os.open(home, os.O_RDONLY), str(tmp_path / "victim")
    child = os.fork()
    if not child:
        try:
            os.fchdir(inside)
            os.setgroups([])
            os.setgid(ALICE)
            os.setuid(ALICE)
            os.symlink(victim, "link")
            while True:
                for old, new in (("models", "aside"), ("link", "models"), ("models", "link"), ("aside", "models")):
                    try:
                        os.rename(old, new)
                    except OSError:
                        pass
        finally:
            os._exit(0)
    done = refused = 0
    try:
        for number in range(tries):
            try:
                bring(root=str(home / "models"), revision="r%d" % number)
                done += 1
            except (Refused, Failed):
                refused += 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(inside)
    assert done + refused == tries and snapshot(tmp_path / "victim") == before


@root_alone
@pytest.mark.parametrize("what", ["fifo", "link", "device", "huge"])
def test_what_is_read_of_a_users_folder_waits_for_nothing_and_shows_nothing(bring, home, tmp_path, what):
    folder = home / "models/huggingface/o/m"
    (folder / "refs").mkdir(parents=True)
    (folder / COMMIT).mkdir()
    for path in (folder / "refs/main", folder / COMMIT / "gpufleet.json"):
        if what == "fifo":
            os.mkfifo(path)
        elif what == "link":
            path.symlink_to(tmp_path / "victim/secret")
        elif what == "device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        else:
            with open(path, "wb") as file:
                file.truncate(1 << 40)
    os.chown(folder, ALICE, ALICE)
    for arguments in ({"check": True}, {"defer_downloads": True}, {"revision": COMMIT, "check": True}):
        assert "root's own" not in json.dumps(bring(root=str(home / "models"), **arguments))


@root_alone
def test_a_user_cannot_enter_or_hold_what_is_unfinished(bring, served, tmp_path):
    part = tmp_path / "models/huggingface/o/m" / (".%s.part" % COMMIT)
    modes = []
    served.asked = lambda path: modes.append(os.stat(part).st_mode & 0o777) if "resolve" in path else None
    before = os.umask(0o077)
    try:
        path = bring()["path"]
    finally:
        os.umask(before)
    assert modes == [0o700] and os.stat(path).st_mode & 0o777 == 0o755


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_all_may_read_it_whatever_the_umask_is(bring, tmp_path, umask):
    before = os.umask(umask)
    try:
        bring()
    finally:
        assert os.umask(before) == umask
    for here, folders, names in os.walk(tmp_path / "models"):
        for name in folders:
            assert os.stat(os.path.join(here, name)).st_mode & 0o777 == 0o755
        for name in names:
            assert os.stat(os.path.join(here, name)).st_mode & 0o777 == 0o644


# --- runs at the same time, and what killed ones left


def test_who_loads_the_same_is_waited_for(bring, bring_from, served, tmp_path, monkeypatch):
    """The second run finds the model whole when its turn has come, and does not load it again."""
    at = Place(dict(source="huggingface", name="o/m", revision=None, root=str(tmp_path / "models")))
    waits, results = threading.Event(), []
    monkeypatch.setattr(place.time, "sleep", lambda seconds: waits.set())
    with at.opened(), at.unfinished(COMMIT):
        second = threading.Thread(target=lambda: results.append(bring()))
        second.start()
        assert waits.wait(30)
        with open(at.part(COMMIT) + "/config.json", "w") as file:
            file.write("{}")
        at.finish(at.part(COMMIT), COMMIT, {"config.json": 2}, None)
    second.join()
    assert results[0]["msg"] == "main of o/m is there" and results[0]["changed"]
    assert sorted(os.listdir(tmp_path / "models/huggingface/o/m")) == [COMMIT, "refs"]


def test_who_loads_for_too_long_is_waited_for_no_longer(bring, tmp_path, monkeypatch):
    at = Place(dict(source="huggingface", name="o/m", revision=None, root=str(tmp_path / "models")))
    monkeypatch.setattr(place, "WAIT", -1)
    with at.opened(), at.unfinished(COMMIT), pytest.raises((Refused, Failed), match="another run has been loading it"):
        bring()


def test_what_nobody_continues_for_a_week_is_removed(bring, tmp_path):
    assert bring()["changed"] and not bring()["changed"]
    folder = tmp_path / "models/huggingface/o/m"
    for name in ("b" * 40, "ref-main", "held"):
        part = folder / (".%s.part" % name)
        part.touch() if name == "ref-main" else part.mkdir()
        if part.is_dir():
            (part / "weights.part").write_bytes(b"x" * 1000)
    assert not bring()["changed"], "it is young"
    for part in folder.glob(".*"):
        os.utime(part, (time.time() - place.STALE - 9,) * 2)
    held = os.open(folder / ".held.part", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert not bring(defer_downloads=True)["changed"]
    would, done = bring(check=True), bring()
    os.close(held)
    assert would["changed"] and "would remove" in would["msg"] and "b" * 40 in would["diff"]["before"]
    assert done["changed"] and "removed what" in done["msg"] and done["path"] == str(folder / COMMIT)
    assert sorted(os.listdir(folder)) == [".held.part", COMMIT, "refs"], "a run is at work there"
    assert bring()["changed"] and not bring()["changed"]


# --- by a hub


@pytest.mark.parametrize(
    "names",
    [
        ["../x"],
        ["/x"],
        ["a/../../x"],
        ["a//b"],
        ["a/./b"],
        ["a/"],
        ["."],
        ["a\nb"],
        ["a\x1b[2J"],
        [".git/hooks/post-commit"],
    ]
    + [["sub/.git/config"], ["gpufleet.json"], ["gpufleet.json/x"], ["a", "a.part"]],
    ids=str,
)
def test_names_that_no_file_of_a_model_has(bring, served, tmp_path, names):
    served.list(*((name, 2) for name in names))
    for check in (True, False):
        with pytest.raises((Refused, Failed), match="unsafe name"):
            bring(check=check)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "file", [File("a", -1), File("a", 1, "../../x"), File("a", 1, "A" * 64), File("a", 1, "0" * 63)], ids=str
)
def test_sizes_and_checksums_that_are_none(file):
    with pytest.raises((Refused, Failed), match="expected no negative size and 64 hexadecimal digits"):
        hub.check(COMMIT, [file])


def test_a_file_in_the_place_of_a_folder(bring, served):
    served.list(("a", 2), ("a/b", 2))
    with pytest.raises((Refused, Failed), match="File exists|Not a directory"):
        bring()


def test_another_commit_than_the_declared_one(bring, served):
    served.list(("config.json", 2), commit="b" * 40)
    for check in (True, False):
        with pytest.raises((Refused, Failed), match="it gives commit b{40} for revision a{40}"):
            bring(check=check, revision="a" * 40)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_to_something_else_than_http(bring, served, to):
    served.answers["/o/m/resolve/"] = (302, {"Location": to}, "")
    with pytest.raises((Refused, Failed)):
        bring()
    assert served.asked is None


def test_https_is_not_left():
    redirects = download._Redirects()
    request = download.urllib.request.Request("https://hub/x")
    with pytest.raises(Failed, match="redirects https://hub/x to http, which is not followed"):
        redirects.redirect_request(request, None, 302, "", {}, "http://hub/x")
    assert redirects.redirect_request(request, None, 302, "", {}, "https://other/x").full_url == "https://other/x"


def test_a_listing_without_an_end(bring, monkeypatch):
    monkeypatch.setattr(download, "LISTING", 10)
    with pytest.raises((Refused, Failed), match="answers with more than"):
        bring()


def test_a_server_that_sends_hardly_anything(bring, served, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PERIOD", 0)
    monkeypatch.setattr(download, "SLOWEST", 1 << 60)
    with pytest.raises((Refused, Failed), match="expected at least 1152921504606846976 a second"):
        bring()
    with pytest.raises(Failed, match="expected at least"):
        download.download(served.url + "/x", {}, File("x", 2), str(tmp_path / "files"))


@pytest.mark.parametrize("answer", [(200, {"Content-Length": "99"}, "{}"), (200, {}, "no json"), (999, {}, "")])
def test_answers_that_are_none(bring, served, answer):
    served.answers["/api/models/o/m/revision/"] = answer
    if answer[1]:
        answer[1]["Connection"] = "close"
    with pytest.raises((Refused, Failed), match="main of o/m"):
        bring()


def test_where_no_http_is_spoken(bring):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection = listening.accept()[0]
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-x\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises((Refused, Failed), match="is not reached: SSH-2.0-x"):
            bring(url="http://127.0.0.1:%d" % listening.getsockname()[1])


def test_a_header_without_an_end(bring, monkeypatch):
    monkeypatch.setattr(download, "HEAD", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection = listening.accept()[0]
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            try:
                while True:
                    connection.sendall(b"x")
                    ended.wait(0.01)
            except OSError:
                ended.set()

        ended = threading.Event()
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises((Refused, Failed), match="not a listing|is not reached"):
            bring(url="http://127.0.0.1:%d" % listening.getsockname()[1])
        assert ended.wait(30)


@pytest.mark.parametrize("url", ["file:///etc", "ftp://hub", "hub", "-o"])
def test_addresses_that_are_no_hubs(bring, url):
    with pytest.raises((Refused, Failed), match="url: expected http:// or https://"):
        bring(url=url)


def test_a_commit_of_modelscope_is_there_the_second_time(bring_from, served):
    files = [{"Path": "config.json", "Size": 2, "Type": "blob"}]
    served.answers["/api/v1/models/o/m/repo/files"] = (200, {}, json.dumps({"Data": {"Files": files}}))
    bring = bring_from(name="o/m", url=served.url, source="modelscope", revision="c" * 40)
    assert bring()["changed"] and not bring()["changed"] and not bring(update=True)["changed"]


# --- secrets


@pytest.mark.parametrize("token", ["s3cret\n", "s3 cret", "s3cr\xe9t"])
def test_a_token_that_is_none_is_not_shown(bring, token):
    with pytest.raises((Refused, Failed), match="token: holds a blank") as caught:
        bring(token=token)
    assert "s3" not in str(caught.value)


def test_the_password_of_a_mirror(bring, served, tmp_path):
    url = served.url.replace("://", "://me:pa%3Ass@")
    result = bring(url=url)
    assert {headers["Authorization"] for headers in served.headers} == {"Basic bWU6cGE6c3M="}
    assert "pa:ss" not in json.dumps(result) and "pa%3Ass" not in json.dumps(result)
    served.answers["/api/models/o/m/revision/"] = (401, {}, "")
    with pytest.raises((Refused, Failed)) as caught:
        bring(url=url, revision="v1")
    assert "pa%3Ass" not in str(caught.value) and "pa:ss" not in str(caught.value)


def test_what_is_hidden_of_a_url():
    assert hub.secrets("https://me:pa%3Ass@hub/x") == ["pa%3Ass", "pa:ss"]
    assert hub.secrets("https://s3cret@hub/x") == ["s3cret@"]
    for plain in (None, "https://hub/x", "git@host:x/y.git", "/srv/x", "ssh://git@host/x"):
        assert hub.secrets(plain) == []


def test_the_host_s_answer_shows_no_password(monkeypatch):
    url, shown = "https://me:s3cret@hub", []
    plugin = object.__new__(action.ActionModule)
    plugin._task = SimpleNamespace(check_mode=False, no_log=False)
    plugin.ask = lambda *_: [Answer("converged", "", {"changed": False, "msg": url})]
    result = plugin.check_on_host({"url": url, "name": "a/b"}, {})
    assert result["invocation"]["module_args"]["url"] and "s3cret" not in json.dumps(result)
    plugin.ask = lambda *_: [Answer("failed", "401 at " + url)]
    monkeypatch.setattr(check_first.display, "vvv", lambda text, host: shown.append(text))
    assert plugin.check_on_host({"url": url, "name": "a/b"}, {}) is None
    assert "401 at" in shown[0] and "s3cret" not in shown[0]


# --- by a git server, or by who hands over its address


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """`repository("words")` runs git in a repository of this test, with a git-lfs that finds nothing to do."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git-lfs").write_text("#!/bin/sh\n")
    (tmp_path / "bin/git-lfs").chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (tmp_path / "bin", os.environ["PATH"]))
    folder = tmp_path / "remote"
    folder.mkdir()

    def run(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *who, *words], cwd=folder, check=True, stdout=subprocess.PIPE)

    def commit(**files):
        for name, text in files.items():
            (folder / name).write_text(text)
        run("add", ".")
        run("commit", "--quiet", "-m", "x")

    run("init", "--quiet")
    run.folder, run.commit = folder, commit
    commit(config="{}")
    return run


@pytest.fixture
def clone(bring_from, repository):
    return bring_from(name="o/m", source="git", url=str(repository.folder))


@pytest.mark.parametrize("to", ["/etc/shadow", "../../../x", "config"])
def test_links_in_a_repository(clone, repository, tmp_path, to):
    (repository.folder / "weights").symlink_to(to)
    repository.commit()
    with pytest.raises((Refused, Failed), match="'weights' is a symbolic link; expected plain files"):
        clone()
    assert os.listdir(tmp_path / "models/git/o/m") == []


def test_the_record_s_name_in_a_repository(clone, repository):
    repository.commit(**{"gpufleet.json": "{}"})
    with pytest.raises((Refused, Failed), match="a name that is kept for the record"):
        clone()


@pytest.mark.parametrize("value", ["file:///var/lib", "/var/lib", "../other"])
def test_large_files_from_the_host_itself(clone, repository, value):
    repository.commit(**{".lfsconfig": "[lfs]\n\turl = %s\n" % value})
    with pytest.raises((Refused, Failed), match="its .lfsconfig names '%s'" % value):
        clone()
    repository.commit(**{".lfsconfig": "[lfs]\n\turl = https://lfs.example.com\n"})
    assert clone()["changed"]


def test_filters_and_submodules_of_a_repository_run_nothing(clone, repository, tmp_path):
    repository.commit(**{".gitattributes": "* filter=evil\n", "a": "x"})
    repository("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(repository.folder), "sub")
    repository.commit()
    path = clone()["path"]
    assert sorted(os.listdir(path)) == [".gitattributes", ".gitmodules", "a", "config", "gpufleet.json", "sub"]
    assert os.listdir(path + "/sub") == []


@pytest.mark.parametrize("url", ["--upload-pack=touch x", "-u", "ext::sh -c touch% x", "fd::3", "ssh://a:s3cret@h/x"])
def test_addresses_that_would_run_or_show_something(bring_from, monkeypatch, url):
    monkeypatch.setattr(git.shutil, "which", lambda name: name)
    monkeypatch.setattr(git.subprocess, "run", None)
    with pytest.raises((Refused, Failed), match="url: ") as caught:
        bring_from(name="o/m", source="git", url=url)()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "revision", ["--upload-pack=x", "-x", "a..b", "a b", "x\ny", "a:b", "..", ".", "/x", "@{1}", "*"]
)
def test_revisions_that_are_none(bring_from, revision):
    for source in ("git", "huggingface", "modelscope"):
        with pytest.raises((Refused, Failed), match="expected a commit, or the name of a branch or tag"):
            bring_from(name="o/m", source=source, url="http://127.0.0.1:9")(revision=revision)


def test_a_repository_that_lies_where_the_clone_will_be(clone, tmp_path):
    """Left there by whoever: nothing of it is run, and nothing of it stays."""
    left = tmp_path / "models/git/o/m/.clone.part"
    (left / "tree/.git/hooks").mkdir(parents=True)
    ran = tmp_path / "ran"
    for here in (left / ".git", left / "tree/.git"):
        here.mkdir(exist_ok=True)
        (here / "config").write_text(
            "[core]\n\tfsmonitor = touch %s\n\thooksPath = %s\n" % (ran, left / "tree/.git/hooks")
        )
    hook = left / "tree/.git/hooks/post-checkout"
    hook.write_text("#!/bin/sh\ntouch %s\n" % ran)
    hook.chmod(0o755)
    path = clone()["path"]
    assert not ran.exists() and os.listdir(os.path.dirname(path)) and not left.exists()


def test_variables_of_git_do_not_lead_elsewhere(clone, repository, tmp_path, monkeypatch):
    other, log = tmp_path / "other.git", tmp_path / "log"
    subprocess.run(["git", "init", "--quiet", "--bare", str(other)], check=True)
    before = sorted(os.listdir(other))
    for name, value in {
        "GIT_DIR": str(other),
        "GIT_TRACE": str(log),
        "GIT_TRACE_CURL": str(log),
        "GIT_TEMPLATE_DIR": str(repository.folder),
        "GIT_ALLOW_PROTOCOL": "",
    }.items():
        monkeypatch.setenv(name, value)
    assert clone()["changed"]
    assert sorted(os.listdir(other)) == before and not log.exists()


def test_templates_and_hooks_of_the_host_are_not_run(clone, tmp_path, monkeypatch):
    hooks, ran = tmp_path / "template/hooks", tmp_path / "ran"
    hooks.mkdir(parents=True)
    (hooks / "post-checkout").write_text("#!/bin/sh\ntouch %s\n" % ran)
    (hooks / "post-checkout").chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text("[init]\n\ttemplateDir = %s\n[core]\n\thooksPath = %s\n" % (hooks.parent, hooks))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    assert clone()["changed"] and not ran.exists()


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_all_may_read_a_clone_whatever_the_umask_is(clone, umask):
    before = os.umask(umask)
    try:
        path = clone()["path"]
    finally:
        os.umask(before)
    assert [os.stat(path + name).st_mode & 0o777 for name in ("", "/config")] == [0o755, 0o644]


def test_git_that_outlives_a_killed_run_holds_its_folder(clone, repository, tmp_path, monkeypatch):
    """As it might go on writing into what the next run clones."""
    hangs, lfs = tmp_path / "hangs", tmp_path / "bin/git-lfs"
    lfs.write_text(
        "#!/bin/sh\ntest $1 = pull || exit 0\necho $$ > %s.new; mv %s.new %s; exec sleep 600\n" % ((hangs,) * 3)
    )
    child = os.fork()
    if not child:
        try:
            clone()
        finally:
            os._exit(0)
    while not hangs.exists():
        # git-lfs runs below a forked child, and announces nothing
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lfs.write_text("#!/bin/sh\n")
    waits, results = threading.Event(), []
    monkeypatch.setattr(place.time, "sleep", lambda seconds: waits.set())
    second = threading.Thread(target=lambda: results.append(clone()))
    second.start()
    assert waits.wait(30) and not results
    os.kill(int(hangs.read_text()), signal.SIGKILL)
    second.join()
    assert results[0]["changed"] and not (tmp_path / "models/git/o/m/.clone.part").exists()


# --- a host that seeds


@root_alone
@pytest.mark.parametrize("what", ["outside", "link", "fifo"])
def test_who_seeds_offers_nothing_from_outside_of_the_model(home, tmp_path, what):
    folder = home / "models/huggingface/o/m"
    (folder / "refs").mkdir(parents=True)
    (folder / COMMIT).mkdir()
    (folder / "refs/main").write_text(COMMIT)
    name, size = ("weights", 10)
    if what == "outside":
        name = "../../../../../../victim/secret"
    elif what == "link":
        (folder / COMMIT / name).symlink_to(tmp_path / "victim/secret")
    else:
        os.mkfifo(folder / COMMIT / name)
        size = 0
    (folder / COMMIT / "gpufleet.json").write_text(json.dumps({"files": {name: size}}))
    model = {"name": "o/m", "source": "huggingface", "revision": None, "root": str(home / "models")}
    with pytest.raises((Failed, OSError), match="unsafe name|expected a regular file"):
        seeding_model.read({"models": [model]}, None)


@pytest.mark.parametrize(
    "told", [{"x": 1}, {"commit": COMMIT}, {"commit": COMMIT, "files": [{"path": "a"}]}, {"commit": 5, "files": []}]
)
def test_what_another_host_offers_may_be_anything(bring, served, told):
    seed = {"url": served.url, "token": "5" * 32, "models": {"huggingface o/m main": told}}
    warnings = []
    assert bring(seeds=[seed], warn=warnings.append)["changed"]
    assert "so the hub is used" in warnings[0]
