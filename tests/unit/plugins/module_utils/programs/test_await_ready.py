# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which answers of a server end the wait for it."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import await_ready


@pytest.fixture
def server():
    """`server.answers = [(status, body), ...]` in order, the last one again and again; `server.url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = found.answers.pop(0) if len(found.answers) > 1 else found.answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words):
            pass

    found = HTTPServer(("127.0.0.1", 0), Handler)
    found.url = "http://127.0.0.1:%d/health" % found.server_port
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"", True),
        (200, b'{"status":"ok"}', True),
        (200, b"[]", True),
        (200, b"\xff not JSON", True),
        (401, b"", True),
        (403, b"", True),
        (503, b'{"error":"Loading model"}', False),
        (404, b"", False),
        (200, b'{"is_sleeping": false}', True),
        (200, b'{"is_sleeping": true}', False),
    ],
)
def test_what_counts_as_ready(server, status, body, expected):
    server.answers = [(status, body)]
    assert await_ready.ready(server.url) is expected


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert not await_ready.ready("http://127.0.0.1:%d/health" % free.getsockname()[1])


def test_no_proxy_is_asked(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server.answers = [(200, b"")]
    assert await_ready.ready(server.url)


def test_it_waits_until_the_model_is_loaded_and_awake(server, monkeypatch):
    slept = []
    monkeypatch.setattr(await_ready.time, "sleep", slept.append)
    server.answers = [(503, b"{}"), (503, b"{}"), (200, b'{"is_sleeping": true}'), (200, b'{"is_sleeping": false}')]
    await_ready.main(server.url)
    assert len(slept) == 3
