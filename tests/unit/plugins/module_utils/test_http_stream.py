# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One HTTP exchange, against a socket that says what it is told; more of it is held by ollama/test_api.py."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.http_stream import HttpError, Stream


@pytest.fixture
def ask():
    """`ask(b"...", **options)` sends a request to a socket that answers so: what it got, and the body."""
    listener = socket.create_server(("127.0.0.1", 0))
    got = []

    def serve(answer):
        connection = listener.accept()[0]
        got.append(connection.recv(65536))
        connection.sendall(answer)
        connection.close()

    def ask(answer, **options):
        thread = threading.Thread(target=serve, args=(answer,), daemon=True)
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
    with pytest.raises(HttpError, match="in the midst of a chunk"):
        ask(CHUNKED + rest)
