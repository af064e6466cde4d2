# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for engines behind a gateway: they write down what reaches them, and answer as the request's body says."""

from __future__ import annotations

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, List


class Engine(ThreadingHTTPServer):
    """One engine on a free port of loopback.

    A request's body may hold ``text``: the answer itself; ``pieces``: how many events the answer has, each sent once
    ``go`` is set and the one before it was taken, and ``last``, which follows them; ``wait``: the answer begins once
    ``go`` is set; ``drop``: there is none, the connection ends.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.health = name, 200
        self.seen: List[Dict[str, Any]] = []
        self.go = threading.Event()
        self.go.set()
        self.step = threading.Semaphore(0)
        self.stepwise = False
        self.arrived = threading.Semaphore(0)
        self.cut = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that is gone


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def log_message(self, *_words: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self.server.health, b"{}")

    def do_POST(self) -> None:
        engine, length = self.server, int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length) if length else self._chunked()
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            body = json.loads(raw)
        except ValueError:
            body = {}
        engine.seen.append({"path": self.path, "headers": headers, "body": body, "length": len(raw)})
        engine.arrived.release()
        if body.get("wait"):
            engine.go.wait(30)
        if body.get("drop"):
            self.close_connection = True
            return None
        if body.get("pieces"):
            return self._stream(int(body["pieces"]), str(body.get("last", "")).encode())
        if body.get("text"):
            return self._answer(200, body["text"].encode())
        self._answer(200, json.dumps({"engine": engine.name, "path": self.path, "model": body.get("model")}).encode())

    def _chunked(self) -> bytes:
        found = b""
        while True:
            size = int(self.rfile.readline() or b"0", 16)
            found += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                return found

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, pieces: int, last: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for number in range(pieces + bool(last)):
                if self.server.stepwise:
                    self.server.step.acquire(timeout=30)
                event = b'data: {"engine": "%s", "piece": %d}\n\n' % (self.server.name.encode(), number)
                event = last if number == pieces else event
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.server.cut.set()


class Agent(socketserver.ThreadingTCPServer):
    """The agent of a GPU host, on a free port of loopback: it answers what it is told to."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Question)
        self.said = "up ready 100%"
        self.heard = threading.Semaphore(0)
        """Released for each answer."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def say(self, text: str) -> None:
        """Answer this from now on; returns when somebody has asked."""
        self.said, self.heard = text, threading.Semaphore(0)
        assert self.heard.acquire(timeout=60)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a gateway that is gone


class _Question(socketserver.StreamRequestHandler):
    server: Agent

    def handle(self) -> None:
        said, heard = self.server.said, self.server.heard
        if self.rfile.readline():
            self.wfile.write(said.encode() + b"\n")
            heard.release()
