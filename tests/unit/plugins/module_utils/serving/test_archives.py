# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives from servers and folders that are not to be trusted: they end in time, and say what was wrong."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import archives
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.sources import UNVERIFIED, Source

CONTENT = b"release"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
SECRET = "s3cret%40word"


@pytest.fixture
def web():
    """`web(answer)` gives a URL; `answer(handler)` sends what it likes. `web.seen` are paths and credentials."""
    servers = []

    def serve(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                serve.seen.append((self.path, self.headers.get("Authorization")))
                try:
                    answer(self)
                except OSError:
                    pass  # nobody listens any more

            def log_message(self, *words):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return "http://127.0.0.1:%d/ollama.tgz" % server.server_address[1]

    serve.seen = []
    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def sends(content=CONTENT, length=None):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) if length is None else length))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def redirects(to):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.end_headers()

    return answer


@pytest.fixture
def fetch(tmp_path):
    def run(url, checksum=DIGEST):
        archives.fetch(url, str(tmp_path / "download"), checksum)
        return (tmp_path / "download").read_bytes()

    return run


def test_name_and_password_go_to_their_host_alone(web, fetch):
    elsewhere = web(sends())
    first = web(redirects(elsewhere + "?signature=1"))
    assert fetch(first.replace("//", "//bob:%s@" % SECRET)) == CONTENT
    login = "Basic " + base64.b64encode(b"bob:s3cret@word").decode()
    assert web.seen == [("/ollama.tgz", login), ("/ollama.tgz?signature=1", None)]


@pytest.mark.parametrize("checksum", ["0" * 64, DIGEST])
def test_no_message_shows_a_password_or_a_signature(web, fetch, checksum):
    def refuses(handler):
        handler.send_error(403)

    url = web(sends() if checksum != DIGEST else refuses).replace("//", "//bob:%s@" % SECRET) + "?X-Amz-Signature=5ign"
    with pytest.raises(StepError) as failed:
        fetch(url, checksum)
    said = str(failed.value)
    assert said.startswith("http://127.0.0.1:") and "/ollama.tgz " in said
    assert "s3cret" not in said and "bob" not in said and "5ign" not in said


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/a", "file:///etc/passwd", "gopher://a"])
def test_a_redirect_to_another_protocol(web, fetch, to):
    with pytest.raises(StepError, match="cannot be fetched: "):
        fetch(web(redirects(to)), UNVERIFIED)


def test_a_redirect_away_from_https():
    assert not archives.may_redirect("https://a/x", "http://a/x")
    assert archives.may_redirect("https://a/x", "https://b/x")
    assert archives.may_redirect("http://a/x", "https://b/x")
    assert not archives.may_redirect("http://a/x", "file:///x")


def test_a_redirect_in_a_circle(web, fetch):
    with pytest.raises(StepError, match="cannot be fetched"):
        fetch(web(redirects("/again")), UNVERIFIED)


@pytest.mark.parametrize("length", [5, 9])
def test_another_length_than_was_told(web, fetch, length):
    """What is longer is cut by the client; what is shorter must not pass for whole where there is no checksum."""
    url = web(sends(length=length))
    with pytest.raises(StepError, match="it ended after 7 of 9 bytes|has the SHA-256"):
        fetch(url, UNVERIFIED if length > len(CONTENT) else DIGEST)


@pytest.mark.parametrize("told", [True, False])
def test_more_than_any_release_has(web, fetch, monkeypatch, told, tmp_path):
    def endless(handler):
        handler.send_response(200)
        if told:
            handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 4096)

    monkeypatch.setattr(archives, "LARGEST", 1 << 16)
    with pytest.raises(StepError, match="expected a release, of 65536 bytes at most"):
        fetch(web(endless), UNVERIFIED)
    assert not told or not os.path.lexists(tmp_path / "download")


def test_more_than_there_is_room_for(web, fetch, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 1 << 62)
    with pytest.raises(StepError, match="No space left on device: it has .* are free; free space"):
        fetch(web(sends(length=1 << 60)), UNVERIFIED)


@pytest.mark.parametrize("where", ["header", "status", "body", "nothing"])
def test_a_byte_now_and_then(fetch, monkeypatch, where):
    """Each one comes within the time limit of the socket, but never all of it."""
    monkeypatch.setattr(archives, "STALL", 0.3)
    ended = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def trickle():
        try:
            peer = listening.accept()[0]
        except OSError:  # on a busy machine the time is up before there is a connection
            return
        with peer:
            peer.recv(4096)
            begin = {"header": b"HTTP/1.1 200 OK\r\nX: ", "body": b"HTTP/1.1 200 OK\r\n\r\n"}.get(where, b"")
            peer.sendall(begin)
            while not ended.wait(0.02):
                try:
                    peer.sendall(b"" if where == "nothing" else b"1")
                except OSError:
                    return

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        with pytest.raises(StepError, match=r"less than 1048576 bytes came within 0.3 s|timed out"):
            fetch("http://127.0.0.1:%d/a.tgz" % listening.getsockname()[1])
    finally:
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)  # ends the wait for a connection
        thread.join()
        listening.close()


def test_a_server_that_does_not_speak_http(fetch):
    listening = socket.create_server(("127.0.0.1", 0))

    def nonsense():
        with listening.accept()[0] as peer:
            peer.recv(4096)
            peer.sendall(b"SSH-2.0-OpenSSH\r\n")

    thread = threading.Thread(target=nonsense)
    thread.start()
    with pytest.raises(StepError, match="cannot be fetched: SSH"):
        fetch("http://127.0.0.1:%d/a.tgz" % listening.getsockname()[1])
    thread.join()
    listening.close()


# --- from this host


def release(path, text):
    with gzip.GzipFile(path, "wb", mtime=0) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        (path.parent / "bin").mkdir(exist_ok=True)
        (path.parent / "bin/ollama").write_text(text)
        tar.add(path.parent / "bin/ollama", "bin/ollama")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_archive_of_a_user_is_unpacked_as_it_was_checked(tmp_path, monkeypatch):
    """He swaps it between the check and the unpacking."""
    folder = tmp_path / "of-a-user"
    folder.mkdir()
    digest = release(folder / "a.tgz", "good")
    release(folder / "evil.tgz", "evil")
    os.chown(folder, 1234, 1234)
    check = archives.sha256_of

    def swapped(path):
        found = check(path)
        os.replace(folder / "evil.tgz", folder / "a.tgz")
        return found

    monkeypatch.setattr(archives, "sha256_of", swapped)
    into = tmp_path / "into"
    into.mkdir()
    archives.lay(Source(str(folder / "a.tgz"), digest), str(into))
    assert (into / "bin/ollama").read_text() == "good"
    assert not [name for name in os.listdir(tmp_path) if "download" in name]


@pytest.mark.parametrize("owner", [0, 1234])
def test_an_archive_that_is_a_pipe_is_not_waited_for(tmp_path, owner):
    os.mkfifo(tmp_path / "a.tgz")
    if os.geteuid() == 0:
        os.chown(tmp_path / "a.tgz", owner, owner)
    (tmp_path / "into").mkdir()
    with pytest.raises(StepError, match=r"a.tgz is not a file"):
        archives.lay(Source(str(tmp_path / "a.tgz"), DIGEST), str(tmp_path / "into"))


@pytest.mark.parametrize("behind", [b"\0" * 1000, b"x" * (3 << 20)], ids=["zeros", "megabytes"])
@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_what_follows_an_archive_does_not_hang_the_unpacker(tmp_path, kind, behind):
    """A zstd that nobody reads from would be waited for without an end."""
    import io
    import subprocess

    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    packed = plain.getvalue() + behind
    path = tmp_path / ("a." + kind)
    if kind == "gz":
        path.write_bytes(gzip.compress(packed))
    else:
        subprocess.run(["zstd", "-q", "-o", str(path)], check=True, input=packed)
    (tmp_path / "into").mkdir()
    if len(behind) > 1000:
        with pytest.raises(StepError, match="behind its end"):
            archives.extract(str(path), str(tmp_path / "into"), "a")
    else:
        archives.extract(str(path), str(tmp_path / "into"), "a")
