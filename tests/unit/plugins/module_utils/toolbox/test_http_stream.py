# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One HTTP exchange, against a socket that says what it is told; more of it is held by ollama/test_api.py."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import http_stream
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.http_stream import HttpError, Stream


@pytest.fixture
def ask():
    """`ask(b"...", **options)` sends a request to a socket that answers so: what it got, and the body."""
    listener = socket.create_server(("127.0.0.1", 0))
    got = []

    def serve(answer, stays):
        connection = listener.accept()[0]
        got.append(connection.recv(65536))
        connection.sendall(answer)
        if stays:
            connection.recv(1)  # until the other side goes
        connection.close()

    def ask(answer, stays=False, **options):
        thread = threading.Thread(target=serve, args=(answer, stays), daemon=True)
        thread.start()
        with Stream("127.0.0.1", listener.getsockname()[1], "GET", "/x", 5, **options) as stream:
            body = stream.rest(time.monotonic() + 5)
        thread.join()
        return got.pop(), body

    yield ask
    listener.close()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_further_headers_are_sent(ask):
    request, body = ask(b"HTTP/1.1 200 OK\r\n\r\nhello", headers={"Authorization": "Bearer a"})
    assert b"\r\nAuthorization: Bearer a\r\n" in request
    assert body == b"hello"


def test_chunks_are_joined(ask):
    assert ask(CHUNKED + b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")[1] == b"hello world"
    assert ask(CHUNKED + b"0\r\n\r\n")[1] == b""


@pytest.mark.parametrize("rest", [b"", b"5\r\nhel", b"5\r\nhello\r\n", b"x\r\nhello\r\n0\r\n\r\n"])
def test_a_chunk_that_broke_off_is_an_error(ask, rest):
    with pytest.raises(HttpError, match="in the middle of a chunk"):
        ask(CHUNKED + rest)


# --- a server that is not ours


@pytest.fixture
def endless(monkeypatch):
    """`endless(head, part, **options)`: asks a server that says `head` and then `part` for as long as it is listened to.

    Gives the error. Limits are small, so that no test has to move gigabytes.
    """
    monkeypatch.setattr(http_stream, "_LARGEST", 1 << 18)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(head, part):
        connection = listener.accept()[0]
        with connection, contextlib.suppress(OSError):
            connection.sendall(head)
            while part:
                connection.sendall(part)
                if len(part) < 100:
                    time.sleep(0.01)  # byte by byte, before any time limit of a single read
            connection.recv(1 << 20)  # the request
            connection.recv(1)  # which ends when the other side has had enough

    def ask(head, part, timeout=0.3, line=False, **options):
        thread = threading.Thread(target=serve, args=(head, part), daemon=True)
        thread.start()
        deadline = time.monotonic() + timeout
        with (
            pytest.raises(HttpError) as caught,
            Stream("127.0.0.1", listener.getsockname()[1], "GET", "/x", timeout, **options) as stream,
        ):
            while line:
                stream.line(deadline)
            stream.rest(deadline)
        thread.join(20)
        assert not thread.is_alive()
        return caught.value

    yield ask
    listener.close()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "head, part",
    [
        (b"", b""),
        (b"", b"H"),
        (OK, b"X: y\r\n"),
        (OK + b"\r\n", b""),
        (OK + b"\r\n", b"{"),
        (OK + b"Content-Length: 1000\r\n\r\n", b"{"),
        (CHUNKED, b"1\r\n{\r\n"),
    ],
    ids=["nothing", "status", "header", "no-body", "body", "length", "chunks"],
)
def test_drop_by_drop_ends_with_its_time(endless, head, part):
    assert endless(head, part).timed_out


def test_drop_by_drop_after_a_file_ends_with_its_time(endless, tmp_path):
    """A file may take as long as it is large; its answer may not."""
    (tmp_path / "blob").write_bytes(b"x")
    with open(tmp_path / "blob", "rb") as file:
        assert endless(b"", b"H", file=file).timed_out


@pytest.mark.parametrize(
    "head, part, words",
    [
        (b"", b"x" * 5000, "does not answer in HTTP"),
        (OK, b"X: " + b"y" * 5000, "does not answer in HTTP"),
        (OK + b"\r\n", b"[" * 5000, "answers with more than 262144 bytes"),
        (OK + b"Content-Length: 999999999999999999999999\r\n\r\n", b"[" * 5000, "more than 262144 bytes"),
        (OK + b"Content-Length: 1073741824\r\n\r\n", b"[" * 5000, "more than 262144 bytes"),
        (CHUNKED, b"1\r\n{\r\n" * 1000, "more than 262144 bytes"),
        (CHUNKED, b"fffffffffffffff\r\n" * 100, "more than 262144 bytes"),
    ],
    ids=["rubbish", "header", "body", "length", "gibibyte", "chunks", "sizes"],
)
def test_a_flood_ends_with_its_size(endless, head, part, words):
    error = endless(head, part, timeout=30)
    assert words in str(error) and len(str(error)) < 500


def test_lines_without_an_end(endless):
    assert "a line that does not end" in str(endless(OK + b"\r\n", b"[" * 5000, timeout=30, line=True))
    assert endless(OK + b"\r\n", b"{}\n" * 5000, line=True).timed_out


def test_a_million_chunks_are_joined_at_once(ask):
    """What took the square of their number, and hours."""
    assert ask(CHUNKED + b"1\r\nx\r\n" * 1000000 + b"0\r\n\r\n")[1] == b"x" * 1000000


def test_more_than_its_length_is_not_waited_for(ask):
    assert ask(OK + b"Content-Length: 2\r\n\r\n{}", stays=True)[1] == b"{}"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 2e2 OK", b"HTTP/1.1 " + b"9" * 5000, b"HTTP/1.1", b"SSH-2.0-OpenSSH_9"])
def test_no_status(ask, answer):
    with pytest.raises(HttpError, match="does not answer in HTTP"):
        ask(answer + b"\r\n\r\n")


@pytest.mark.parametrize("content", [b"[" * 1000000, b'{"a":' * 300000, b"9" * 1000000, b"\xff", b"", b"nothing"])
def test_json_of_somebody_else(content):
    with pytest.raises(ValueError):
        http_stream.decode(content)
    assert http_stream.decode(b'{"a": [1, 2.5, "\xc3\xa4", %s]}' % (b"9" * 400))["a"][:3] == [1, 2.5, "ä"]
