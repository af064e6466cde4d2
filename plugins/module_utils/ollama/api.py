# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama's own HTTP API, from the host itself."""

from __future__ import annotations

import json
import re
import time
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional

from ..toolbox.addresses import host_port
from ..toolbox.http_stream import HttpError as ApiError
from ..toolbox.http_stream import Stream, decode
from ..toolbox.text import printable

__all__ = ["Answer", "Api", "ApiError", "number"]


_VERSION = re.compile(r"[0-9A-Za-z.+_-]{1,100}\Z")
_LONGEST_ERROR = 4000  # characters


def number(value: Any) -> int:
    """A size or count that a server names; 0 for what is none."""
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 1 << 63 else 0


class Answer(NamedTuple):
    status: int
    body: Dict[str, Any]

    @property
    def error(self) -> str:
        """Ollama's own words about a failure, without control characters; empty when there are none."""
        words = self.body.get("error", "")
        return printable(words[:_LONGEST_ERROR]) if isinstance(words, str) else ""


class Api:
    """One server, reached at ``address`` and ``port``."""

    def __init__(self, address: str, port: int) -> None:
        self.address, self.port = address, port

    @property
    def url(self) -> str:
        return "http://" + host_port(self.address, self.port)

    def version(self, timeout: float = 2.0) -> str:
        """The server's version; it answers only after it has looked for GPUs."""
        answer = self._json("GET", "/api/version", timeout)
        version = answer.body.get("version")
        if answer.status != 200 or not isinstance(version, str) or not _VERSION.match(version):
            raise ApiError("%s/api/version answers %d and no version: this is not Ollama" % (self.url, answer.status))
        return version

    def loaded(self, timeout: float = 5.0) -> List[Dict[str, Any]]:
        """Models that the server believes loaded, with ``name``, ``size`` and ``size_vram`` in bytes."""
        answer = self._json("GET", "/api/ps", timeout)
        models = answer.body.get("models")
        return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []

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
        """The lines in which the server reports the progress of a pull or a create.

        An error comes as a line, too, with ``error`` in it. Who stops to read ends the work: the server notices.

        :param silence: asked before each line: for how many seconds the server may say nothing from now on.
        :raises ApiError: it said nothing for so long (``timed_out``), or what it said is not JSON.
        """
        with self._request("POST", path, silence(), payload=json.dumps(body).encode("utf-8")) as stream:
            while True:
                line = stream.line(time.monotonic() + silence())
                if line is None:
                    return
                try:
                    event = decode(line)
                except ValueError:
                    raise ApiError("%s%s: a line that is not JSON: %.80r" % (self.url, path, line)) from None
                if isinstance(event, dict):
                    yield event

    def _json(self, method: str, path: str, timeout: float, body: Optional[Dict[str, Any]] = None) -> Answer:
        deadline = time.monotonic() + timeout
        payload = b"" if body is None else json.dumps(body).encode("utf-8")
        with self._request(method, path, timeout, payload=payload) as stream:
            return self._answer(path, stream.status, b"" if method == "HEAD" else stream.rest(deadline))

    def _answer(self, path: str, status: int, content: bytes) -> Answer:
        try:
            document = decode(content) if content else {}
        except ValueError:
            raise ApiError("%s%s answers %d and no JSON: %.80r" % (self.url, path, status, content)) from None
        return Answer(status, document if isinstance(document, dict) else {})

    def _request(
        self, method: str, path: str, timeout: float, payload: bytes = b"", file: Optional[BinaryIO] = None
    ) -> Stream:
        return Stream(self.address, self.port, method, path, timeout, payload=payload, file=file)
