# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands at 127.0.0.1:5001 before Debian's docker-registry at 5000, for Ollama pulls no blob without a redirect.

A blob's GET is answered by 307 to another name of this machine; everything else is passed on. The file
/run/registry-rate holds bytes a second that a blob then comes at; 0: none at all, for ever.
"""

from __future__ import annotations

import http.client
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RATE = "/run/registry-rate"
PIECE = 16384


def rate():
    try:
        with open(RATE) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1 << 40


class Front(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.command == "GET" and "/blobs/sha256:" in self.path and self.headers["Host"].startswith("127."):
            self.send_response(307)
            self.send_header("Location", "http://localhost:5001" + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        length = int(self.headers.get("Content-Length") or 0)
        behind = http.client.HTTPConnection("127.0.0.1", 5000)
        behind.request(self.command, self.path, self.rfile.read(length), dict(self.headers))
        answer = behind.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        slow = self.command == "GET" and "/blobs/" in self.path
        while self.command != "HEAD":
            while slow and not rate():
                time.sleep(0.1)
            piece = answer.read(PIECE)
            if not piece:
                return
            self.wfile.write(piece)
            if slow:
                time.sleep(PIECE / rate())

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *words):
        pass


ThreadingHTTPServer(("127.0.0.1", 5001), Front).serve_forever()
