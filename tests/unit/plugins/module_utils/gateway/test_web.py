# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page for people behind a real HAProxy: paths, headers, and sockets that stay open."""

from __future__ import annotations

import http.client
import socket
import threading
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any, Callable, Dict, Iterator, List

import pytest
from gateways import Gateway
from waiting import until


class _Page(StreamRequestHandler):
    """Answers with the request's head; a request to upgrade gets everything back that it sends."""

    server: "Page"

    def handle(self) -> None:
        lines: List[str] = []
        while not lines or lines[-1]:
            line = self.rfile.readline()
            if not line:
                return
            lines.append(line.decode().rstrip("\r\n"))
        if lines[0].startswith("GET /health "):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif any(line.lower() == "upgrade: websocket" for line in lines):
            self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
            self.wfile.write(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
            while True:
                said = self.request.recv(1024)
                if not said:
                    return
                self.wfile.write(said)
        else:
            head = "\n".join(lines).encode()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(head) + head)


class Page(ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that is gone


@pytest.fixture
def web(gateway: Gateway, free_port: Callable[[], int]) -> Iterator[int]:
    """The port of the page behind the gateway."""
    with Page(("127.0.0.1", 0), _Page) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        port = free_port()
        server = {"host": "gw", "address": "127.0.0.1", "port": page.server_address[1]}
        gateway.options = dict(gateway.options, web_port=port, web=[server])
        gateway.reload()
        until(lambda: gateway.states().get(":web/gw:open-webui:%d" % page.server_address[1]) == "UP")
        yield port
        page.shutdown()


def get(port: int, path: str, headers: Dict[str, str]) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def test_every_path_reaches_the_page_and_nobody_chooses_an_address(gateway: Gateway, web: int) -> None:
    answer = get(web, "/api/v1/chats/?page=2", {"X-Forwarded-For": "203.0.113.7", "Cookie": "token=x"})
    said = answer.read().decode().lower().split("\n")
    assert answer.status == 200 and said[0].startswith("get /api/v1/chats/?page=2 ")
    assert "x-forwarded-for: 127.0.0.1" in said and "x-forwarded-proto: http" in said and "cookie: token=x" in said
    assert not [line for line in said if "203.0.113.7" in line]
    assert get(gateway.port, "/api/v1/chats/", {}).status in (401, 404), "the page is not where the APIs are"


def test_a_socket_stays_open_through_a_reload(gateway: Gateway, web: int) -> None:
    with socket.create_connection(("127.0.0.1", web), timeout=30) as client:
        client.sendall(b"GET /ws/socket.io/ HTTP/1.1\r\nHost: chat\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")
        client.sendall(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1024)
        assert head.startswith(b"HTTP/1.1 101 ")
        client.sendall(b"before")
        assert client.recv(1024) == b"before"
        gateway.reload()
        client.sendall(b"after")
        assert client.recv(1024) == b"after"
