# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama's own HTTP API, as far as the gate needs it, from the host itself.

Spoken over a bare socket as HTTP/1.0: Python's ``http.client`` pulls in ``ssl`` and costs 40 ms at each run, a third
of a module call that has nothing to change.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any, Dict, List, NamedTuple, Optional

_LARGEST = 64 << 20  # bytes of an answer


class ApiError(Exception):
    """No usable answer: nobody listens, the connection broke, or what came is not Ollama's."""


class ApiTimeout(ApiError):
    """The server took the request and did not answer in time."""


class Answer(NamedTuple):
    status: int
    body: Dict[str, Any]

    @property
    def error(self) -> str:
        """Ollama's own words about a failure; empty when there are none."""
        return str(self.body.get("error", ""))


class Api:
    """One server, reached at ``address`` and ``port``."""

    def __init__(self, address: str, port: int) -> None:
        self.address, self.port = address, port

    @property
    def url(self) -> str:
        return "http://%s:%d" % ("[%s]" % self.address if ":" in self.address else self.address, self.port)

    def version(self, timeout: float = 2.0) -> str:
        """The server's version; it answers only after it has looked for GPUs."""
        answer = self._json("GET", "/api/version", timeout)
        if answer.status != 200 or not isinstance(answer.body.get("version"), str):
            raise ApiError("%s/api/version answers %d and no version: this is not Ollama" % (self.url, answer.status))
        return answer.body["version"]

    def loaded(self, timeout: float = 5.0) -> List[Dict[str, Any]]:
        """Models that the server believes loaded, with ``name``, ``size`` and ``size_vram`` in bytes."""
        answer = self._json("GET", "/api/ps", timeout)
        return [model for model in answer.body.get("models") or () if isinstance(model, dict)]

    def one_token(self, model: str, timeout: float) -> Answer:
        """Load a model when it is not, and generate one token; the answer counts only with ``done`` true."""
        return self._json(
            "POST",
            "/api/generate",
            timeout,
            {"model": model, "prompt": "Say hello.", "stream": False, "options": {"num_predict": 1}},
        )

    def _json(self, method: str, path: str, timeout: float, body: Optional[Dict[str, Any]] = None) -> Answer:
        status, content = _exchange(self.address, self.port, method, path, timeout, body)
        try:
            document = json.loads(content.decode("utf-8")) if content else {}
        except ValueError:
            raise ApiError("%s%s answers %d and no JSON: %.80r" % (self.url, path, status, content)) from None
        return Answer(status, document if isinstance(document, dict) else {})


def _exchange(
    address: str, port: int, method: str, path: str, timeout: float, body: Optional[Dict[str, Any]]
) -> "tuple[int, bytes]":
    """One request and its whole answer, within ``timeout`` seconds altogether."""
    deadline = time.monotonic() + timeout
    payload = b"" if body is None else json.dumps(body).encode("utf-8")
    # a server on loopback answers only to a Host of this machine, which its address is
    head = "%s %s HTTP/1.0\r\nHost: %s:%d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
        method,
        path,
        "[%s]" % address if ":" in address else address,
        port,
        len(payload),
    )
    received = bytearray()
    try:
        with socket.create_connection((address, port), timeout=timeout) as connection:
            connection.sendall(head.encode("ascii") + payload)
            while len(received) < _LARGEST:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise socket.timeout("timed out")
                connection.settimeout(left)
                chunk = connection.recv(65536)
                if not chunk:
                    break
                received += chunk
    except socket.timeout:
        raise ApiTimeout("%s:%d%s did not answer within %.0f s" % (address, port, path, timeout)) from None
    except OSError as error:
        raise ApiError("%s:%d: %s" % (address, port, error)) from None
    header, separator, content = bytes(received).partition(b"\r\n\r\n")
    words = header.split(None, 2)
    if not separator or len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ApiError("%s:%d%s does not answer in HTTP: %.80r" % (address, port, path, bytes(received)))
    length = _length(header)
    if length is not None and len(content) < length:
        raise ApiError("%s:%d%s broke off after %d of %d bytes" % (address, port, path, len(content), length))
    return int(words[1]), content


def _length(header: bytes) -> Optional[int]:
    for line in header.split(b"\r\n")[1:]:
        name, _sep, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None
