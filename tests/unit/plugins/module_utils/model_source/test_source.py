# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models loaded from a hub of this test: whole or not there, checked, gone on with, and no network without need."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import download, hub
from ansible_collections.gpufleet.inference.plugins.module_utils.model_source.hub import File
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused

FILES = {
    "config.json": b'{"hidden_size": 128}',
    "model-00001-of-00002.safetensors": b"w" * 300000,
    "model-00002-of-00002.safetensors": b"v" * 200000,
    "pytorch_model.bin": b"x" * 400000,
    "original/params.json": b"{}",
    "tokenizer.json": b"{}",
}


class Hub:
    """Hugging Face's and ModelScope's API as far as it is used; large files are redirected to another host name."""

    def __init__(self):
        self.files, self.commit = dict(FILES), "a" * 40
        self.asked, self.tokens, self.token = [], [], None
        self.corrupt = self.cut = None
        self.broken, self.status, self.whole = 0, 503, False
        self.listed = {}
        self.ranges = []
        this = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def do_GET(self):
                this.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.port = self.server.server_address[1]
        self.url = "http://127.0.0.1:%d" % self.port

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        parts, query = urlsplit(request.path), parse_qs(urlsplit(request.path).query)
        self.asked.append(unquote(parts.path) + ("?" + parts.query if parts.query else ""))
        given = request.headers.get("Authorization") or request.headers.get("Cookie")
        self.tokens.append((request.headers.get("Host").split(":")[0], given))
        if self.broken:
            self.broken -= 1
            return self.send(request, self.status, b"")
        allowed = not self.token or given in ("Bearer " + self.token, "m_session_id=" + self.token)
        if not allowed and not parts.path.startswith("/cdn/"):
            return self.send(request, 401, b"")
        path, wanted = unquote(parts.path), request.headers.get("Range")
        if wanted and (os.path.basename(path), wanted) not in self.ranges:  # a redirected one comes twice
            self.ranges.append((os.path.basename(path), wanted))
        if path.startswith("/api/models/o/m/revision/"):
            siblings = []
            for name, content in self.files.items():
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                one = {"rfilename": name, "size": self.listed.get(name, len(content)), "blobId": blob}
                if len(content) > 1000:  # what git has is a pointer
                    one.update(size=134, blobId="0" * 40)
                    one["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                siblings.append(one)
            return self.send(request, 200, json.dumps({"sha": self.commit, "siblings": siblings}).encode())
        if path == "/api/v1/models/o/m/repo/files":
            files = [
                {"Path": name, "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest(), "Type": "blob"}
                for name, data in self.files.items()
            ]
            files.append({"Path": "original", "Size": 0, "Sha256": "", "Type": "tree"})
            return self.send(request, 200, json.dumps({"Code": 200, "Data": {"Files": files}}).encode())
        if path.startswith("/o/m/resolve/%s/" % self.commit):
            name = path.split("/", 5)[5]
            if len(self.files.get(name, b"")) > 1000:
                request.send_response(302)
                request.send_header("Location", "http://localhost:%d/cdn/%s" % (self.port, name))
                request.send_header("Content-Length", "0")
                return request.end_headers()
            if name == "tokenizer.json":
                request.send_response(307)
                request.send_header("Location", "/moved/" + name)
                request.send_header("Content-Length", "0")
                return request.end_headers()
        elif path.startswith(("/cdn/", "/moved/")):
            name = path.split("/", 2)[2]
        elif path == "/api/v1/models/o/m/repo":
            name = query["FilePath"][0]
        else:
            name = None
        if name not in self.files:
            return self.send(request, 404, b"")
        content, status = self.files[name], 200
        if name == self.corrupt:
            content = b"?" + content[1:]
        if wanted and not self.whole:
            content, status = content[int(wanted[6:-1]) :], 206
        if name == self.cut:
            self.cut = None
            request.send_response(status)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content[:1000])
            return request.connection.close()
        self.send(request, status, content)

    @staticmethod
    def send(request, status, content):
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    running = Hub()
    yield running
    running.close()


@pytest.fixture
def bring(bring_from, server):
    """`bring(revision=…)` runs the module's work for o/m."""
    return bring_from(name="o/m", source="huggingface", url=server.url)


def found(path):
    names = []
    for folder, _folders, files in os.walk(path):
        names += [os.path.relpath(os.path.join(folder, name), path) for name in files]
    return sorted(names)


WANTED = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
def test_loaded_once(bring, server, kind):
    result = bring(source=kind)
    assert result["changed"] and found(result["path"]) == sorted([*WANTED, "gpufleet.json"])
    assert result["bytes"] == sum(len(FILES[name]) for name in WANTED)
    branch = {"huggingface": "main", "modelscope": "master"}[kind]
    assert result["msg"] == "loaded %s of o/m, 4 files, 0.5 MiB" % branch
    assert result["diff"] == {"before": "", "after": result["path"] + "\n"}
    assert kind == "huggingface" or all("Revision=master" in path for path in server.asked)
    with open(os.path.join(result["path"], "gpufleet.json")) as file:
        record = json.load(file)
    large = [name for name in WANTED if name.startswith("model") or kind == "modelscope"]
    assert record.pop("sha256") == {name: hashlib.sha256(FILES[name]).hexdigest() for name in large}
    assert record.pop("files") == {name: len(FILES[name]) for name in WANTED}
    assert record == {"name": "o/m", "source": kind, "commit": result["commit"]}
    for name in WANTED:
        with open(os.path.join(result["path"], name), "rb") as file:
            assert file.read() == FILES[name]
    assert result["path"].endswith("/models/%s/o/m/%s" % (kind, result["commit"]))
    server.asked.clear()
    again = bring(source=kind)
    assert (again["changed"], again["path"], again["bytes"], again["diff"]) == (False, result["path"], 0, {})
    assert server.asked == []


def test_a_commit_is_asked_for_by_its_name(bring, server):
    bring(revision="a" * 40)
    assert server.asked[0] == "/api/models/o/m/revision/%s?blobs=true" % ("a" * 40)
    assert not bring(revision="a" * 40, offline=True)["changed"]


def test_a_branch_moves_only_on_request(bring, server):
    first = bring(revision="release")
    assert bring(revision="release/1")["path"] == first["path"]
    server.commit, server.files["config.json"] = "b" * 40, b'{"hidden_size": 256}'
    assert bring(revision="release/1")["path"] == first["path"]
    second = bring(revision="release/1", update=True)
    assert second["changed"] and second["commit"] == "b" * 40
    assert os.path.isdir(first["path"])
    assert not bring(revision="release/1", update=True)["changed"]
    # a tag of a commit that is there costs its name alone
    named = bring(check=True, revision="v1")
    assert named["changed"] and named["path"] == second["path"]
    with pytest.raises((Refused, Failed), match="offline"):
        bring(revision="v1", offline=True)
    assert bring(revision="v1")["changed"]
    assert not bring(revision="v1", offline=True)["changed"]
    assert not bring(revision="v1", update=True)["changed"]


def test_the_hubs_own_address(bring, server, monkeypatch):
    assert hub.ENDPOINTS == {"huggingface": "https://huggingface.co", "modelscope": "https://modelscope.cn"}
    monkeypatch.setitem(hub.ENDPOINTS, "huggingface", server.url + "/")
    assert bring(url=None)["changed"]
    assert not any(path.startswith("//") for path in server.asked)


def test_everybody_may_read_it(bring):
    before = os.umask(0o077)
    try:
        path = bring()["path"]
        assert os.umask(0o077) == 0o077, "as it was"
    finally:
        os.umask(before)
    assert os.stat(path).st_mode & 0o777 == 0o755
    assert os.stat(path + "/config.json").st_mode & 0o777 == 0o644


def test_a_root_that_is_none(bring, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises((Refused, Failed), match="main of o/m: .*/file: Not a directory"):
        bring(root=str(tmp_path / "file"))


def test_check_mode_writes_nothing(bring, tmp_path):
    result = bring(check=True)
    assert result["changed"] and result["msg"].startswith("would load main of o/m, 4 files")
    assert not (tmp_path / "models").exists()


def test_offline(bring, server, tmp_path):
    with pytest.raises(
        (Refused, Failed), match="main of o/m is not in .*, and offline is true: nothing is asked of the network"
    ):
        bring(offline=True)
    assert server.asked == []
    bring()
    assert not bring(offline=True, update=True)["changed"]


def test_a_wrong_checksum_leaves_no_model(bring, server):
    server.corrupt = "model-00002-of-00002.safetensors"
    with pytest.raises(
        (Refused, Failed), match="model-00002-of-00002.safetensors has [0-9a-f]{64}; expected [0-9a-f]{64}"
    ):
        bring()
    with pytest.raises((Refused, Failed), match="offline"):
        bring(offline=True)
    server.commit, server.corrupt = "c" * 40, "config.json"  # small ones have git's checksum
    with pytest.raises((Refused, Failed), match="config.json has [0-9a-f]{40}; expected [0-9a-f]{40}"):
        bring(revision="other")
    server.corrupt = None
    assert bring()["changed"]


def test_a_broken_connection_is_gone_on_with(bring, server):
    server.cut = "model-00001-of-00002.safetensors"
    assert bring()["changed"]
    assert server.ranges == [("model-00001-of-00002.safetensors", "bytes=1000-")]


def test_an_interrupted_download_is_gone_on_with(bring, server, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.cut = "model-00002-of-00002.safetensors"
    with pytest.raises(
        (Refused, Failed),
        match="199000 more expected.*, after 1000 of 200000 bytes and 1 attempts; run it again to resume",
    ):
        bring()
    with pytest.raises((Refused, Failed), match=r"needed are 0\.2 MiB"):  # 0.5 less what is there
        bring(free_space_margin="1000TB")
    server.asked.clear()
    assert bring()["changed"]
    assert server.ranges == [("model-00002-of-00002.safetensors", "bytes=1000-")]
    assert not any("00001" in path for path in server.asked)


def test_a_server_that_is_busy_is_asked_again(bring, server):
    bring(check=True)
    server.broken = 0

    def listing_first(request, answer=server.answer):
        if "resolve" in request.path and not server.ranges:
            server.ranges.append("broken")
            server.broken = 2
        answer(request)

    server.answer = listing_first
    assert bring()["changed"]


def after_the_listing(server, act):
    """Do something between the listing and the files."""
    done = []

    def answer(request, answer=server.answer):
        if "resolve" in request.path and not done:
            done.append(act())
        answer(request)

    server.answer = answer


def test_a_server_that_stays_busy_is_asked_five_times(bring, server, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    after_the_listing(server, lambda: vars(server).update(broken=99, status=500))
    with pytest.raises((Refused, Failed), match="answers 500 .*, after 0 of 20 bytes and 5 attempts; run it again"):
        bring()
    assert len(server.asked) == 6 and [round(pause, 3) for pause in pauses] == [0.1, 0.2, 0.4, 0.8]


def test_a_server_that_refuses_is_not_asked_again(bring, server, tmp_path):
    part = tmp_path / "models/huggingface/o/m" / (".%s.part/config.json.part" % ("a" * 40))
    part.parent.mkdir(parents=True)
    part.write_bytes(FILES["config.json"][:5])
    after_the_listing(server, lambda: vars(server).update(broken=99, status=410))
    with pytest.raises((Refused, Failed), match="answers 410 Gone for http"):
        bring()
    assert len(server.asked) == 2 and part.read_bytes() == FILES["config.json"][:5], "to go on from there"


def test_a_server_that_sends_all_of_it_again(bring, server):
    server.cut, server.whole = "model-00001-of-00002.safetensors", True
    result = bring()
    assert server.ranges == [("model-00001-of-00002.safetensors", "bytes=1000-")]
    with open(result["path"] + "/model-00001-of-00002.safetensors", "rb") as file:
        assert file.read() == FILES["model-00001-of-00002.safetensors"]


def test_more_than_is_listed(bring, server, tmp_path):
    server.listed["config.json"] = 3
    with pytest.raises((Refused, Failed), match="config.json is longer than the 3 bytes that are listed"):
        bring()
    assert found(tmp_path / "models") == []


def test_more_than_there_should_be(bring, tmp_path):
    part = tmp_path / "models/huggingface/o/m" / (".%s.part/config.json.part" % ("a" * 40))
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 100)
    with open(bring()["path"] + "/config.json", "rb") as file:
        assert file.read() == FILES["config.json"]


def test_what_an_unfinished_download_left_is_not_trusted(bring, tmp_path):
    part = tmp_path / "models/huggingface/o/m" / (".%s.part" % ("a" * 40))
    part.mkdir(parents=True)
    (part / "tokenizer.json").write_bytes(b"x")
    (part / "model-00001-of-00002.safetensors.part").write_bytes(b"w" * 300000)
    (part / "model-00002-of-00002.safetensors.part").write_bytes(b"x" * 200000)
    with pytest.raises((Refused, Failed), match="00002-of-00002.safetensors has"):
        bring()
    path = bring()["path"]
    assert {name: os.path.getsize(os.path.join(path, name)) for name in WANTED} == {
        name: len(FILES[name]) for name in WANTED
    }


def test_files_without_a_checksum(server, tmp_path):
    for checksum in ("", None):
        file = File("sub/config.json", len(FILES["config.json"]), checksum)
        download.download(server.url + "/cdn/config.json", {}, file, str(tmp_path / repr(checksum)))
    assert found(tmp_path) == ["''/sub/config.json", "None/sub/config.json"]


def test_the_token_is_told_to_the_hub_alone(bring, server):
    server.token = "s3cret"
    with pytest.raises((Refused, Failed), match="answers 401 .*give a token that may read it"):
        bring()
    with pytest.raises((Refused, Failed), match="answers 401 .*the token may not read it") as caught:
        bring(token="wrong")
    assert "wrong" not in str(caught.value)
    server.tokens.clear()
    result = bring(token="s3cret")
    assert {given for host, given in server.tokens if host == "127.0.0.1"} == {"Bearer s3cret"}
    assert {given for host, given in server.tokens if host == "localhost"} == {None}
    with open(result["path"] + "/gpufleet.json", encoding="utf-8") as file:
        assert "s3cret" not in file.read()
    assert bring(source="modelscope", token="s3cret")["changed"]


def test_a_model_that_is_not_there(bring, server):
    with pytest.raises((Refused, Failed), match="main of o/other: .* correct name and revision"):
        bring(name="o/other")


def test_a_hub_that_is_not_reached(bring, server, tmp_path):
    with pytest.raises((Refused, Failed), match="http://127.0.0.1:1/.* is not reached: .*refused"):
        bring(url="http://127.0.0.1:1")
    assert not (tmp_path / "models").exists()


def test_no_space(bring, tmp_path):
    with pytest.raises((Refused, Failed), match=r"has .* free; needed are 0\.5 MiB, and 9\d+\.\d GiB shall be left"):
        bring(free_space_margin="1000TB")
    assert not (tmp_path / "models").exists()


def test_a_damaged_one_is_loaded_again(bring):
    result = bring()
    with open(result["path"] + "/config.json", "w") as file:
        file.write("{")
    assert bring()["changed"]
    with open(result["path"] + "/config.json", "rb") as file:
        assert file.read() == FILES["config.json"]
    os.unlink(result["path"] + "/config.json")
    told = bring(defer_downloads=True)
    assert (told["needs"], told["commit"]) == (["huggingface o/m main"], "a" * 40)
    assert bring()["changed"]
    for text in ("[]", "{", "{}"):
        with open(result["path"] + "/gpufleet.json", "w") as file:
            file.write(text)
        assert bring()["changed"] and not bring()["changed"]


def test_a_directory(bring, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in (str(folder), "relative", "/nowhere"):
        with pytest.raises((Refused, Failed), match="expected a directory with config.json"):
            bring(source="directory", name=name)
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Refused, Failed), match="expected a directory with config.json"):
        bring(source="directory", name="mine")
    expected = {"changed": False, "msg": "%s is there" % folder, "path": str(folder), "commit": None}
    assert bring(source="directory", name=str(folder)) == {**expected, "bytes": 0, "diff": {}}
    (folder / "config.json").rename(folder / "model.gguf")
    assert not bring(source="directory", name=str(folder))["changed"]
    (folder / "model.gguf").rename(folder / "adapter_config.json")
    assert not bring(source="directory", name=str(folder))["changed"], "a LoRA adapter"


# --- pure parts


@pytest.mark.parametrize("name", ["m", "../m", "o/../m", "o/m/x", "/o/m", "o/m ", "o//m", ""])
def test_names_that_are_none(name):
    with pytest.raises((Refused, Failed), match="expected ORGANISATION/NAME"):
        hub.check_name(name)


def test_what_is_asked_for():
    one, other = "huggingface", "modelscope"
    assert hub.listing_url(one, "http://e", "o/m", "a/b") == "http://e/api/models/o/m/revision/a%2Fb?blobs=true"
    assert hub.file_url(one, "http://e", "o/m", "a/b", "c/d e") == "http://e/o/m/resolve/a%2Fb/c/d%20e"
    api = "http://e/api/v1/models/o/m/repo"
    assert hub.listing_url(other, "http://e", "o/m", "a/b") == api + "/files?Recursive=true&Revision=a%2Fb"
    assert hub.file_url(other, "http://e", "o/m", "a/b", "c/d e") == api + "?Revision=a%2Fb&FilePath=c%2Fd%20e"
    assert hub.headers(one, "t") == {"Authorization": "Bearer t"} and hub.headers(one, None) == {}
    assert hub.headers(other, "t") == {"Cookie": "m_session_id=t"} and hub.headers(other, "") == {}


def test_what_stands_for_a_commit_is_that_of_the_same_files():
    files = [{"Path": "b", "Size": 2, "Sha256": "f" * 64}, {"Path": "a", "Size": 1, "Sha256": "e" * 64}]
    for listed in (files, files[::-1]):
        commit, _ = hub.read_listing("modelscope", json.dumps({"Data": {"Files": listed}}).encode())
        assert commit == hashlib.sha256(b"a 1 %s\nb 2 %s" % (b"e" * 64, b"f" * 64)).hexdigest()[:40]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\0b", ""])
def test_an_unsafe_listing(path):
    text = json.dumps({"sha": "a" * 40, "siblings": [{"rfilename": path, "size": 1}]}).encode()
    with pytest.raises((Refused, Failed), match="unsafe name"):
        hub.read_listing("huggingface", text)


@pytest.mark.parametrize(
    "text", [b"", b"<html>", b"[]", b"{}", b'{"sha": "x", "siblings": []}', b'{"sha": "../..", "siblings": []}']
)
def test_what_is_no_listing(text):
    with pytest.raises((Refused, Failed), match="not a listing|as the commit"):
        hub.read_listing("huggingface", text)


FLAT = [File(name, 1) for name in FILES]


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ([], [], WANTED),
        (["*"], [], sorted(FILES)),
        (["*.bin", "*.json"], [], ["config.json", "original/params.json", "pytorch_model.bin", "tokenizer.json"]),
        ([], ["token*"], [name for name in WANTED if "token" not in name]),
    ],
)
def test_files_to_have(include, exclude, names):
    assert [file.path for file in hub.wanted(FLAT, include, exclude)] == names


@pytest.mark.parametrize(
    "name",
    ["a.bin", "a.pth", "a.pt", "a.ckpt", "a.h5", "a.msgpack", "a.onnx", "a.onnx_data", "a.gguf", "original/a"]
    + ["a.ot", "onnx/a.onnx_data_1", "openvino/a.bin"],
)
def test_formats_that_are_not_used_beside_safetensors(name):
    assert [file.path for file in hub.wanted([File(name, 1), File("a.safetensors", 1)], [], [])] == ["a.safetensors"]


def test_a_module_of_sentence_transformers_has_its_weights():
    """An embedding model needs its dense layer."""
    names = ["1_Pooling/config.json", "2_Dense/pytorch_model.bin", "3_Dense/model.safetensors", "model.safetensors"]
    files = [File(name, 1) for name in [*names, "3_Dense/pytorch_model.bin", "pytorch_model.bin"]]
    assert [file.path for file in hub.wanted(files, [], [])] == names
    assert names[1] not in [file.path for file in hub.wanted(files, [], ["*.bin"])]


def test_both_formats_of_a_mistral_repository_come():
    """Which one is loaded depends on vLLM's release: 0.10.2 takes the parts, 0.33.0 the file named consolidated."""
    names = ["config.json", "consolidated.safetensors", "model-00001-of-00003.safetensors", "params.json"]
    files = [File(name, 1) for name in names]
    assert [file.path for file in hub.wanted(files, [], [])] == names
    assert len(hub.wanted(files, [], ["consolidated*"])) == 3


def test_other_formats_are_had_where_there_are_no_safetensors():
    files = [file for file in FLAT if not file.path.endswith("safetensors")]
    assert "pytorch_model.bin" in [file.path for file in hub.wanted(files, [], [])]
    with pytest.raises((Refused, Failed), match="of its 4 files none matches"):
        hub.wanted(files, ["*.safetensors"], [])
