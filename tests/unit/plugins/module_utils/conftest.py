# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small web server for the parts that speak HTTP."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, List, Tuple

import pytest


class FakeWeb:
    """Answers by path: (status, body), or a function that gives it; None hangs up. Requests and headers are kept."""

    def __init__(self) -> None:
        self.answers: Dict[str, Any] = {}
        self.requests: List[Tuple[str, Any]] = []
        self.headers: List[Dict[str, str]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake.requests.append((self.path, json.loads(body) if body else None))
                fake.headers.append(dict(self.headers))
                answer = fake.answers.get(self.path, (404, {"detail": "Not Found"}))
                answer = answer() if callable(answer) else answer
                if answer is None:
                    return
                status, content = answer
                content = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                try:
                    self.wfile.write(content)
                except BrokenPipeError:
                    pass  # it did not wait

            do_POST = do_GET

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = "http://127.0.0.1:%d" % self.port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def web():
    fake = FakeWeb()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
