# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands at port 5001 before Debian's docker-registry at 5000, for Ollama pulls no blob without a redirect.

A blob's GET is answered by 307 to another spelling of this machine's address; everything else is passed on. What blobs
cost is written to /run/registry-log: bytes sent and path, a line for each request. Files that make it misbehave:
    /run/registry-rate     bytes a second at which a blob comes; 0: none at all, for ever
    /run/registry-fault    gone: every connection is closed; 503: every request is answered so; corrupt: the first byte
                           of each blob is another one
"""

from __future__ import annotations

import http.client
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 16384


def told(what, default):
    try:
        with open("/run/registry-" + what) as file:
            return file.read().strip() or default
    except OSError:
        return default


def rate():
    return int(told("rate", 1 << 40))


class Front(BaseHTTPRequestHandler):
    def do_GET(self):
        fault = told("fault", "")
        if fault == "gone":
            return
        if fault == "503":
            self.send_error(503)
            return
        blob = self.command == "GET" and "/blobs/sha256:" in self.path
        if blob and not self.headers["Host"].startswith("["):
            self.send_response(307)
            self.send_header("Location", "http://[::ffff:%s]:5001%s" % (self.connection.getsockname()[0], self.path))
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
        sent = 0
        try:
            while self.command != "HEAD":
                while blob and not rate() and told("fault", "") != "gone":
                    time.sleep(0.1)
                if blob and told("fault", "") == "gone":
                    return
                piece = answer.read(PIECE)
                if not piece:
                    return
                if blob and fault == "corrupt" and not sent:
                    piece = bytes([piece[0] ^ 1]) + piece[1:]
                self.wfile.write(piece)
                sent += len(piece)
                if blob:
                    time.sleep(PIECE / rate())
        finally:
            if blob:
                with open("/run/registry-log", "a") as file:
                    file.write("%d %s\n" % (sent, self.path))

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *words):
        pass


ThreadingHTTPServer(("0.0.0.0", 5001), Front).serve_forever()
