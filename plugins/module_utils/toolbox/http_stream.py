# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One HTTP request and its answer as it comes, over a bare socket.

Python's ``http.client`` pulls in ``ssl`` and costs 40 ms at each run, a third of a module call that has nothing to
change. So HTTP/1.0 is spoken here, and ``ssl`` is imported only for https.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from typing import Any, BinaryIO, List, Mapping, Optional

from .addresses import host_port

_LARGEST = 64 << 20  # bytes of an answer
_LARGEST_HEADER = 64 << 10
_DIGITS = 400  # of a number; more would take Python long, and no size or time has them


class HttpError(Exception):
    """No usable answer: nobody listens, the connection broke, or what came is not what was expected.

    :param timed_out: the server did not answer in time.
    """

    def __init__(self, message: str, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Stream:
    """One request, and its answer as it comes.

    :param payload: body of the request; ``file``: the same from an open file.
    :param headers: further header fields; their values must hold no line end.
    :param tls: an ``ssl.SSLContext``, for https.
    """

    def __init__(
        self,
        address: str,
        port: int,
        method: str,
        path: str,
        timeout: float,
        *,
        payload: bytes = b"",
        file: Optional[BinaryIO] = None,
        headers: Optional[Mapping[str, str]] = None,
        tls: Any = None,
    ) -> None:
        self.where = "%s:%d" % (address, port)
        self.path, self.timeout = path, timeout
        self.received = bytearray()
        length = os.fstat(file.fileno()).st_size if file else len(payload)
        # a server on loopback answers only to a Host of this machine, which its address is
        own = {"Host": host_port(address, port), "Content-Type": "application/json", "Content-Length": str(length)}
        fields = dict(own, **(headers or {}))
        head = "%s %s HTTP/1.0\r\n%s\r\n" % (method, path, "".join("%s: %s\r\n" % field for field in fields.items()))
        deadline = time.monotonic() + timeout
        try:
            # of a text, Python would import its codec for names that are not ASCII
            place: Any = address.encode() if address.isascii() else address
            self.connection = socket.create_connection((place, port), timeout=timeout)
            if tls is not None:
                self.connection = tls.wrap_socket(self.connection, server_hostname=address)
        except socket.timeout:
            raise self._late() from None
        except OSError as error:
            raise HttpError("%s: %s" % (self.where, error)) from None
        try:
            self._send(head.encode("latin-1") + payload, file)
            if file is not None:  # which took as long as it is large
                deadline = time.monotonic() + timeout
            while b"\r\n\r\n" not in self.received and len(self.received) < _LARGEST_HEADER and self._more(deadline):
                pass
            header, separator, content = bytes(self.received).partition(b"\r\n\r\n")
            words = header.split(None, 2)
            if not separator or not re.match(rb"HTTP/\S*\s+[0-9]{3}(\s|\Z)", header):
                raise HttpError("%s%s does not answer in HTTP: %.80r" % (self.where, path, bytes(self.received[:80])))
        except BaseException:
            self.connection.close()
            raise
        self.status, self.length = int(words[1]), _length(header)
        self.chunked = _field(header, b"transfer-encoding") == b"chunked"  # some servers do so to HTTP/1.0 as well
        self.received = bytearray(content)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_error: Any) -> None:
        self.connection.close()

    def rest(self, deadline: float) -> bytes:
        """The whole body.

        :raises HttpError: it is larger than any answer that is expected, or broke off.
        """
        length = _LARGEST + 1 if self.length is None else self.length
        while len(self.received) < min(length, _LARGEST + 1) and self._more(deadline):
            pass
        if len(self.received) > _LARGEST:
            raise HttpError("%s%s answers with more than %d bytes" % (self.where, self.path, _LARGEST))
        if self.length is not None and len(self.received) < self.length:
            raise HttpError(
                "%s%s broke off after %d of %d bytes" % (self.where, self.path, len(self.received), self.length)
            )
        return self._joined() if self.chunked else bytes(self.received)

    def _joined(self) -> bytes:
        """The body out of its chunks."""
        parts: List[bytes] = []
        at, content = 0, bytes(self.received)
        while True:
            size = _CHUNK.match(content, at)
            length = int(size.group(1), 16) if size else -1
            if length == 0:
                return b"".join(parts)
            start = size.end() if size else 0
            at = start + length + 2
            if length < 0 or len(content) < at:
                raise HttpError("%s%s broke off in the middle of a chunk" % (self.where, self.path))
            parts.append(content[start : start + length])

    def line(self, deadline: float) -> Optional[bytes]:
        """The next line of the body, None at its end."""
        while b"\n" not in self.received:
            if len(self.received) > _LARGEST:
                raise HttpError("%s%s answers with a line that does not end" % (self.where, self.path))
            if not self._more(deadline):
                last, self.received = bytes(self.received), bytearray()
                return last or None
        line, _newline, self.received = self.received.partition(b"\n")
        return bytes(line)

    def _send(self, head: bytes, file: Optional[BinaryIO]) -> None:
        try:
            self.connection.sendall(head)
            if file:
                self.connection.sendfile(file)
        except socket.timeout:
            raise self._late() from None
        except (BrokenPipeError, ConnectionResetError):
            pass  # it refuses the rest; its answer has the reason
        except OSError as error:
            raise HttpError("%s: %s" % (self.where, error)) from None

    def _more(self, deadline: Optional[float]) -> bool:
        """Receive something; False at the end."""
        left = self.timeout if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        try:
            self.connection.settimeout(left)
            chunk = self.connection.recv(65536)
        except socket.timeout:
            raise self._late() from None
        except OSError as error:
            raise HttpError("%s: %s" % (self.where, error)) from None
        self.received += chunk
        return bool(chunk)

    def _late(self) -> HttpError:
        message = "%s%s did not answer within %.0f s" % (self.where, self.path, self.timeout)
        return HttpError(message, timed_out=True)


def decode(content: bytes) -> Any:
    """The value of a JSON text that anybody may have written.

    :raises ValueError: it is not JSON, or too deeply nested.
    """
    try:
        return json.loads(content.decode("utf-8"), parse_int=_whole)
    except RecursionError:
        raise ValueError("too deep") from None


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError("a number of %d digits" % len(digits))
    return int(digits)


_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")


def _field(header: bytes, wanted: bytes) -> bytes:
    for line in header.split(b"\r\n")[1:]:
        name, _sep, value = line.partition(b":")
        if name.strip().lower() == wanted:
            return value.strip()
    return b""


def _length(header: bytes) -> Optional[int]:
    value = _field(header, b"content-length")
    return int(value) if value.isdigit() and len(value) < 19 else None
