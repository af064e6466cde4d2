# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama's own HTTP API, from the host itself.

Spoken over a bare socket as HTTP/1.0: Python's ``http.client`` pulls in ``ssl`` and costs 40 ms at each run, a third
of a module call that has nothing to change.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional

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

    def tags(self, timeout: float = 30.0) -> List[Dict[str, Any]]:
        """Models of the store, with ``name``, ``digest`` (64 hex digits) and ``size`` in bytes."""
        answer = self._json("GET", "/api/tags", timeout)
        if answer.status != 200 or not isinstance(answer.body.get("models"), list):
            raise ApiError("%s/api/tags answers %d and no list of models: %s" % (self.url, answer.status, answer.error))
        return [model for model in answer.body["models"] if isinstance(model, dict)]

    def show(self, model: str, timeout: float = 30.0) -> Answer:
        """What the server knows of one model: ``modelfile``, ``parameters``, ``capabilities``; 404: nothing."""
        return self._json("POST", "/api/show", timeout, {"model": model})

    def load(self, model: str, timeout: float, embedding: bool = False, **more: Any) -> Answer:
        """Load a model without generating anything; one that only embeds is asked for an embedding.

        :param more: ``keep_alive`` and ``options`` of the request.
        """
        if embedding:
            return self._json("POST", "/api/embed", timeout, dict(more, model=model, input="hello"))
        return self._json("POST", "/api/generate", timeout, dict(more, model=model, stream=False))

    def unload(self, model: str, timeout: float = 30.0) -> Answer:
        """Take a model out of memory; of one that is not loaded the answer is the same."""
        return self._json("POST", "/api/generate", timeout, {"model": model, "keep_alive": 0, "stream": False})

    def copy(self, source: str, destination: str, timeout: float = 60.0) -> Answer:
        return self._json("POST", "/api/copy", timeout, {"source": source, "destination": destination})

    def delete(self, model: str, timeout: float = 120.0) -> Answer:
        return self._json("DELETE", "/api/delete", timeout, {"model": model})

    def has_blob(self, sha256: str, timeout: float = 30.0) -> bool:
        """Whether a file with this digest is in the store."""
        return self._json("HEAD", "/api/blobs/sha256:" + sha256, timeout).status == 200

    def upload(self, sha256: str, file: BinaryIO, silence: float) -> Answer:
        """Put a file into the store, under its digest.

        :param silence: seconds that the server may take nothing, or afterwards say nothing.
        """
        with self._request("POST", "/api/blobs/sha256:" + sha256, silence, file=file) as stream:
            return self._answer("/api/blobs", stream.status, stream.rest(time.monotonic() + silence))

    def events(self, path: str, body: Dict[str, Any], silence: Callable[[], float]) -> Iterator[Dict[str, Any]]:
        """The lines with which the server tells how far a pull or a create is.

        An error comes as a line, too, with ``error`` in it. Who stops to read ends the work: the server notices.

        :param silence: asked before each line: for how many seconds the server may say nothing from now on.
        :raises ApiTimeout: it said nothing for so long.
        """
        with self._request("POST", path, silence(), payload=json.dumps(body).encode("utf-8")) as stream:
            while True:
                line = stream.line(time.monotonic() + silence())
                if line is None:
                    return
                try:
                    event = json.loads(line.decode("utf-8"))
                except ValueError:
                    raise ApiError("%s%s: a line that is no JSON: %.80r" % (self.url, path, line)) from None
                if isinstance(event, dict):
                    yield event

    def _json(self, method: str, path: str, timeout: float, body: Optional[Dict[str, Any]] = None) -> Answer:
        deadline = time.monotonic() + timeout
        payload = b"" if body is None else json.dumps(body).encode("utf-8")
        with self._request(method, path, timeout, payload=payload) as stream:
            return self._answer(path, stream.status, b"" if method == "HEAD" else stream.rest(deadline))

    def _answer(self, path: str, status: int, content: bytes) -> Answer:
        try:
            document = json.loads(content.decode("utf-8")) if content else {}
        except ValueError:
            raise ApiError("%s%s answers %d and no JSON: %.80r" % (self.url, path, status, content)) from None
        return Answer(status, document if isinstance(document, dict) else {})

    def _request(
        self, method: str, path: str, timeout: float, payload: bytes = b"", file: Optional[BinaryIO] = None
    ) -> "_Stream":
        return _Stream(self.address, self.port, method, path, timeout, payload, file)


class _Stream:
    """One request, and its answer as it comes."""

    def __init__(
        self, address: str, port: int, method: str, path: str, timeout: float, payload: bytes, file: Optional[BinaryIO]
    ) -> None:
        self.where = "%s:%d" % (address, port)
        self.path, self.timeout = path, timeout
        self.received = bytearray()
        length = os.fstat(file.fileno()).st_size if file else len(payload)
        # a server on loopback answers only to a Host of this machine, which its address is
        head = "%s %s HTTP/1.0\r\nHost: %s:%d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
            method,
            path,
            "[%s]" % address if ":" in address else address,
            port,
            length,
        )
        deadline = time.monotonic() + timeout
        try:
            self.connection = socket.create_connection((address, port), timeout=timeout)
        except socket.timeout:
            raise self._late() from None
        except OSError as error:
            raise ApiError("%s: %s" % (self.where, error)) from None
        try:
            self._send(head.encode("ascii") + payload, file)
            while b"\r\n\r\n" not in self.received and self._more(deadline if file is None else None):
                pass
            header, separator, content = bytes(self.received).partition(b"\r\n\r\n")
            words = header.split(None, 2)
            if not separator or len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
                raise ApiError("%s%s does not answer in HTTP: %.80r" % (self.where, path, bytes(self.received)))
        except BaseException:
            self.connection.close()
            raise
        self.status, self.length = int(words[1]), _length(header)
        self.received = bytearray(content)

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_error: Any) -> None:
        self.connection.close()

    def rest(self, deadline: float) -> bytes:
        """The whole body."""
        while len(self.received) < _LARGEST and self._more(deadline):
            pass
        if self.length is not None and len(self.received) < self.length:
            raise ApiError(
                "%s%s broke off after %d of %d bytes" % (self.where, self.path, len(self.received), self.length)
            )
        return bytes(self.received)

    def line(self, deadline: float) -> Optional[bytes]:
        """The next line of the body, None at its end."""
        while b"\n" not in self.received:
            if len(self.received) > _LARGEST:
                raise ApiError("%s%s answers with a line that does not end" % (self.where, self.path))
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
            pass  # it refuses the rest; its answer says why
        except OSError as error:
            raise ApiError("%s: %s" % (self.where, error)) from None

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
            raise ApiError("%s: %s" % (self.where, error)) from None
        self.received += chunk
        return bool(chunk)

    def _late(self) -> ApiTimeout:
        return ApiTimeout("%s%s did not answer within %.0f s" % (self.where, self.path, self.timeout))


def _length(header: bytes) -> Optional[int]:
    for line in header.split(b"\r\n")[1:]:
        name, _sep, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None
