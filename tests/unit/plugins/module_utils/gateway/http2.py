# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames of HTTP/2 (RFC 9113) as no library would send them, over TLS."""

from __future__ import annotations

import socket
import ssl
from typing import Tuple

DATA, HEADERS, RESET, SETTINGS, GOAWAY, CONTINUATION = 0, 1, 3, 4, 7, 9
END_STREAM, END_HEADERS = 1, 4
BEGIN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Field = Tuple[bytes, bytes]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def fields(*pairs: Field) -> bytes:
    """Header fields as literals without an index and without Huffman coding (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)


def _text(value: bytes) -> bytes:
    if len(value) < 127:
        return bytes((len(value),)) + value
    rest, found = len(value) - 127, b"\x7f"
    while rest >= 128:
        found, rest = found + bytes((rest % 128 + 128,)), rest // 128
    return found + bytes((rest,)) + value


def request(method: bytes, path: bytes, *more: Field) -> Tuple[Field, ...]:
    pseudo = ((b":method", method), (b":scheme", b"https"), (b":authority", b"x"), (b":path", path))
    return (*pseudo, *more)


def connect(port: int) -> ssl.SSLSocket:
    """A connection on which both sides have agreed on HTTP/2."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=60))
    assert connection.selected_alpn_protocol() == "h2"
    connection.sendall(BEGIN + frame(SETTINGS, 0, 0))
    return connection


def read_until(connection: ssl.SSLSocket, *streams: int) -> bool:
    """Read until these streams have ended; False if the gateway ends the connection before."""
    left = set(streams)
    with connection.makefile("rb") as answer:
        while left:
            head = answer.read(9)
            if len(head) < 9:
                return False
            answer.read(int.from_bytes(head[:3], "big"))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind == GOAWAY:
                return False
            if kind == RESET or (kind in (DATA, HEADERS) and flags & END_STREAM):
                left.discard(stream)
    return True


def exchange(port: int, raw: bytes, last: int, *streams: int) -> bool:
    """Send these frames, and a request as stream `last`; whether that one ends, and `streams` do."""
    ask = frame(HEADERS, END_STREAM | END_HEADERS, last, fields(*request(b"GET", b"/health")))
    with connect(port) as connection:
        try:
            connection.sendall(raw + ask)
            return read_until(connection, last, *streams)
        except OSError:  # it has ended the connection while we wrote
            return False
