# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A registry of the few files that it is given, for a while: what runs on a seeding host.

Passed to ``python3 -`` as its standard input, followed by a call of :func:`serve`, so that its configuration, which
holds a token, is in no command line. Ollama takes a blob only through a redirect to another host name; another spelling
of the same address is one.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict

_SILENCE = 60  # seconds that one peer may take nothing


class Server(ThreadingHTTPServer):
    """Ends itself when for ``idle`` seconds nobody has asked for anything or is still taking it."""

    request_queue_size = 256
    idle = 0.0

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self._lock, self._busy, self._last = threading.Lock(), 0, time.monotonic()

    def count(self, more: int) -> None:
        """One request more, or less."""
        with self._lock:
            self._busy, self._last = self._busy + more, time.monotonic()

    def service_actions(self) -> None:
        if not self._busy and time.monotonic() - self._last > self.idle:
            raise SystemExit(0)


def serve(config: Dict[str, Any]) -> None:
    """Serve until nobody asks any more.

    :param config: ``address``, ``port``, ``idle`` in seconds, ``prefix`` of all paths, ``manifests``: text by digest,
        ``blobs``: path by digest, ``sha256:`` before each.
    """
    make(config).serve_forever()


def make(config: Dict[str, Any]) -> Server:
    """The server, listening."""
    prefix, other = config["prefix"], "http://[::ffff:%s]:%d/" % (config["address"], config["port"])
    manifests = {
        "/v2/%s/%s/manifests/seed" % (prefix, digest[7:]): text.encode("utf-8")
        for digest, text in config["manifests"].items()
    }
    asked = re.compile(r"/(?:v2/)?%s/(?:[0-9a-f]{64}/)?blobs/(sha256:[0-9a-f]{64})\Z" % re.escape(prefix))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _SILENCE

        def do_GET(self) -> None:
            server: Any = self.server
            server.count(1)
            try:
                self._answer()
            except OSError:
                self.close_connection = True  # the peer is gone, or the file
            finally:
                server.count(-1)

        do_HEAD = do_GET

        def _answer(self) -> None:
            blob = asked.match(self.path)
            digest = blob.group(1) if blob else ""
            file = config["blobs"].get(digest)
            if self.path in manifests:
                content = manifests[self.path]
                self._head(200, len(content), ("Content-Type", config["type"]))
                if self.command == "GET":
                    self.wfile.write(content)
            elif file is None:
                self._head(404, 0)
            elif self.command == "GET" and self.path.startswith("/v2/"):
                self._head(307, 0, ("Location", "%s%s/blobs/%s" % (other, prefix, digest)))
            else:
                self._file(file)

        def _file(self, path: str) -> None:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError("it was replaced since it was offered")
                size = os.fstat(file.fileno()).st_size
                first, last = 0, size - 1
                part = re.match(r"bytes=(\d+)-(\d*)\Z", self.headers.get("Range") or "")
                if part:
                    first, last = int(part.group(1)), min(int(part.group(2) or last), last)
                    if first > last:
                        self._head(416, 0)
                        return
                length = last - first + 1
                span = [("Content-Range", "bytes %d-%d/%d" % (first, last, size))] if part else []
                self._head(206 if part else 200, length, *span)
                if self.command == "GET" and length:
                    self.connection.sendfile(file, first, length)

        def _head(self, status: int, length: int, *headers: Any) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, *_words: Any) -> None:
            pass  # paths hold the token

    server = Server((config["address"], config["port"]), Handler)
    server.idle = float(config["idle"])
    return server
