# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any OpenAI-compatible HTTP endpoint: is it ready, does it generate, is it idle.

Facts of vLLM 0.32.0: tests/unit/fixtures/vllm. Ollama offers the same under ``/v1``, but no metrics.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from ..toolbox.errors import Refused
from ..toolbox.http_stream import HttpError, Stream, decode
from ..toolbox.text import one_line

COUNTERS = (
    ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:generation_tokens_total"),
    ("llamacpp:requests_processing", "llamacpp:requests_deferred", "llamacpp:tokens_predicted_total"),
)
"""By engine, its metrics for requests running and waiting, and for tokens generated."""

_PAUSE = 0.25  # seconds between two looks
_LOOK = 1.0  # seconds that a look takes at least before it counts as no answer, also the last one
_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{.*\})?\s+(\S+)")


class EndpointError(Exception):
    """The endpoint did not do what was asked for; ``name`` is the verdict."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Answer(NamedTuple):
    status: int
    body: Dict[str, Any]
    text: str

    @property
    def error(self) -> str:
        """The server's own words about a failure."""
        error = self.body.get("error") or self.body.get("detail") or self.body.get("message")
        if isinstance(error, dict):
            error = error.get("message")
        return one_line(str(error or self.text[:200].strip()))


class Token(NamedTuple):
    """What came of a request for a few tokens."""

    model: str
    path: str
    tokens: int
    seconds: float


class Load(NamedTuple):
    """Requests in the server, and tokens that it has generated since its start."""

    running: int
    waiting: int
    generated: int

    @property
    def idle(self) -> bool:
        return not (self.running or self.waiting)


def parse_metrics(text: str) -> Dict[str, float]:
    """Prometheus text as name to value, the values of all label sets added up. Pure."""
    found = {}  # type: Dict[str, float]
    for line in text.splitlines():
        sample = _SAMPLE.match(line)  # a comment begins with "#", which no name does
        if sample:
            try:
                value = float(sample.group(2))
            except ValueError:
                continue
            if abs(value) < 1e18:  # nor is it NaN
                found[sample.group(1)] = found.get(sample.group(1), 0.0) + value
    return found


def load_of(metrics: Dict[str, float]) -> Optional[Load]:
    """The load that a server's metrics report; None where they do not. Pure."""
    for running, waiting, generated in COUNTERS:
        if running in metrics:
            return Load(int(metrics[running]), int(metrics.get(waiting, 0)), int(metrics.get(generated, 0)))
    return None


class Endpoint:
    """One endpoint.

    :param url: ``http://address:8000``, perhaps with a prefix; a ``/v1`` at its end is not part of the prefix.
    :param api_key: sent as a bearer token with every request.
    :param verify: whether the certificate of an https endpoint is verified; ``ca_file``: by which authorities.
    :raises Refused: the URL or the key is not valid.
    """

    def __init__(
        self, url: str, api_key: Optional[str] = None, verify: bool = True, ca_file: Optional[str] = None
    ) -> None:
        found = re.match(r"(https?)://(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?(/[^\s?#]*)?\Z", url)
        if not found:
            raise Refused(
                "%r is not the URL of an endpoint; expected such as http://127.0.0.1:8000"
                % re.sub("//.*@", "//…@", url)
            )
        if api_key is not None and not re.match(r"[\x21-\x7e]+\Z", api_key):
            raise Refused("the API key has blanks, line ends or characters beyond ASCII, which no header can carry")
        scheme, host, port, path = found.groups()
        self.address = host.strip("[]")
        self.port = int(port or (443 if scheme == "https" else 80))
        self.prefix = re.sub(r"/v1\Z", "", (path or "").rstrip("/"))
        self.url = "%s://%s:%d%s" % (scheme, host, self.port, self.prefix)
        self._headers = {"Authorization": "Bearer " + api_key} if api_key else {}
        self._tls = None  # type: Any
        if scheme == "https":
            import ssl  # costs as much as a whole call over plain HTTP

            self._tls = ssl.create_default_context(cafile=ca_file)
            if not verify:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE

    # --- one request each

    def ask(self, method: str, path: str, timeout: float, body: Optional[Dict[str, Any]] = None) -> Answer:
        """:raises HttpError: no usable answer."""
        deadline = time.monotonic() + timeout
        payload = b"" if body is None else json.dumps(body).encode("utf-8")
        path = self.prefix + path
        with Stream(
            self.address, self.port, method, path, timeout, payload=payload, headers=self._headers, tls=self._tls
        ) as stream:
            return _answer(stream.status, stream.rest(deadline))

    def events(self, path: str, body: Dict[str, Any], timeout: float, model: str) -> Iterator[Dict[str, Any]]:
        """The events of a streamed answer as they come, up to its end.

        :param timeout: seconds for the whole answer.
        :param model: for messages.
        :raises HttpError: no usable answer, or it broke off.
        :raises EndpointError: as ``refuse_failure`` does.
        """
        deadline, payload = time.monotonic() + timeout, json.dumps(body).encode("utf-8")
        where = (self.address, self.port, "POST", self.prefix + path)
        with Stream(*where, timeout, payload=payload, headers=self._headers, tls=self._tls) as stream:
            if stream.status != 200:
                answer = _answer(stream.status, stream.rest(deadline))
                self.refuse_failure(answer, path, model, "a stream")
            while True:
                line = stream.line(deadline)
                if line is None:
                    raise HttpError("%s%s: the stream broke off" % (self.url, path))
                text = line[5:].strip() if line.startswith(b"data:") else b""
                if text == b"[DONE]":
                    return
                event = _document(text)
                if event.get("error"):
                    raise HttpError("%s%s: %s" % (self.url, path, Answer(200, event, "").error))
                if event:
                    yield event

    def models(self, timeout: float = 5.0) -> List[Dict[str, Any]]:
        """Models that it serves, with ``id``.

        :raises HttpError: no usable answer.
        :raises EndpointError: ``unauthorized``, ``not_ready``.
        """
        answer = self.ask("GET", "/v1/models", timeout)
        self._refuse_unauthorized(answer, "/v1/models")
        data = answer.body.get("data")
        if answer.status != 200 or not isinstance(data, list):
            if answer.status == 200 and answer.body.get("object") == "list" and data is None:
                return []  # Ollama with an empty store
            raise EndpointError(
                "not_ready",
                "%s/v1/models answers %d and no list of models: %s" % (self.url, answer.status, answer.error),
            )
        return [model for model in data if isinstance(model, dict)]

    def load(self, timeout: float = 5.0) -> Optional[Load]:
        """Requests running and waiting; None where the endpoint does not report them.

        :raises HttpError: no usable answer.
        """
        answer = self.ask("GET", "/metrics", timeout)
        return load_of(parse_metrics(answer.text)) if answer.status == 200 else None

    def generate(self, model: str, timeout: float, tokens: int = 1) -> Token:
        """Let a model generate ``tokens`` tokens.

        :raises EndpointError: as for :meth:`complete`; ``not_generated`` also for an answer without a token.
        """
        asked = time.monotonic()
        path, body = self.complete(model, "Say hello.", timeout, tokens)
        usage = body.get("usage")
        made = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if not body.get("choices") or not made or not isinstance(made, int):
            raise EndpointError(
                "not_generated",
                "%s%s answered 200 for %s, but generated nothing (usage: %s); expected %d token%s"
                % (self.url, path, model, one_line(str(usage)), tokens, "s"[: tokens != 1]),
            )
        return Token(model, path, made, time.monotonic() - asked)

    def complete(self, model: str, prompt: str, timeout: float, tokens: int, **more: Any) -> Tuple[str, Dict[str, Any]]:
        """The greedy answer to a prompt, as a chat, or as a completion if the model has no chat template.

        :param timeout: seconds for both together.
        :param more: further keys of the request.
        :returns: the path that answered, and the body of the answer.
        :raises EndpointError: ``stalled``, ``model_missing``, ``unauthorized``, ``not_generated``; ``not_offered``: the
            server generates no text with this model.
        """
        until = time.monotonic() + timeout
        chat = {"messages": [{"role": "user", "content": prompt}]}  # type: Dict[str, Any]
        for path, request in (("/v1/chat/completions", chat), ("/v1/completions", {"prompt": prompt})):
            body = dict(request, model=model, max_tokens=tokens, temperature=0, stream=False, **more)
            try:
                answer = self.ask("POST", path, max(0.1, until - time.monotonic()), body)
            except HttpError as error:
                if error.timed_out:
                    raise EndpointError(
                        "stalled",
                        "%s was asked for a token at %s%s and generated none within %.0f s"
                        % (model, self.url, path, timeout),
                    ) from None
                raise EndpointError("not_generated", "%s was asked for a token: %s" % (model, error)) from None
            if answer.status == 200 or not _no_chat(answer):
                break
        if not_offered(answer):
            raise EndpointError("not_offered", "%s generates no text with %s: %s" % (self.url, model, answer.error))
        self.refuse_failure(answer, path, model, "a token")
        return path, answer.body

    def refuse_failure(self, answer: Answer, path: str, model: str, what: str) -> None:
        """Raise EndpointError unless the answer to a request for ``what`` is a success."""
        self._refuse_unauthorized(answer, path)
        if answer.status == 404:
            raise EndpointError("model_missing", "%s does not serve %s: %s" % (self.url, model, answer.error))
        if answer.status != 200:
            raise EndpointError(
                "not_generated", "%s was asked for %s: HTTP %d: %s" % (model, what, answer.status, answer.error)
            )

    def _refuse_unauthorized(self, answer: Answer, path: str) -> None:
        if answer.status in (401, 403):
            raise EndpointError(
                "unauthorized", "%s%s answers %d: it expects another API key" % (self.url, path, answer.status)
            )

    # --- waiting

    def wait_ready(self, timeout: float, model: Optional[str] = None) -> List[str]:
        """Wait until it lists its models, and ``model`` among them: their names.

        :raises EndpointError: ``not_ready``, ``unauthorized``, ``model_missing``.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                names = [
                    str(entry.get("id")) for entry in self.models(min(5.0, max(_LOOK, deadline - time.monotonic())))
                ]
            except HttpError as error:
                last = EndpointError("not_ready", "%s does not answer: %s" % (self.url, error))
            except EndpointError as error:
                if error.name != "not_ready":
                    raise
                last = error
            else:
                if model is None and names:
                    return names
                if model is not None and _served(model, names):
                    return names
                last = EndpointError(
                    "model_missing",
                    "%s serves %s, not %s" % (self.url, one_line(", ".join(names)) or "no model", model or "any model"),
                )
                if model is not None and names:
                    raise last
            if time.monotonic() >= deadline:
                raise EndpointError(last.name, "%s; waited %.0f s" % (last, timeout))
            # a server sends no word when it is ready or idle
            time.sleep(min(_PAUSE, max(0.0, deadline - time.monotonic())))

    def wait_idle(self, timeout: float) -> Load:
        """Wait until no request is running or waiting.

        :raises EndpointError: ``not_ready``, ``no_metrics``, or ``busy`` when there still are some at the end.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                load = self.load(min(5.0, max(_LOOK, deadline - time.monotonic())))
            except HttpError as error:
                raise EndpointError("not_ready", "%s does not answer: %s" % (self.url, error)) from None
            if load is None:
                raise EndpointError(
                    "no_metrics",
                    "%s/metrics does not report how many requests are running (%s); Ollama never does"
                    % (self.url, " or ".join(names[0] for names in COUNTERS)),
                )
            if load.idle:
                return load
            if time.monotonic() >= deadline:
                raise EndpointError(
                    "busy",
                    "%s still has %d requests running and %d waiting after %.0f s; raise timeout, or take it out of "
                    "the load balancer first" % (self.url, load.running, load.waiting, timeout),
                )
            # a server sends no word when it is ready or idle
            time.sleep(min(_PAUSE, max(0.0, deadline - time.monotonic())))


def _answer(status: int, content: bytes) -> Answer:
    return Answer(status, _document(content), content.decode("utf-8", "replace"))


def _document(content: bytes) -> Dict[str, Any]:
    """The object in a JSON text; empty if there is none."""
    try:
        document = decode(content) if content else {}
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _served(model: str, names: List[str]) -> bool:
    """Whether the model is among the names; Ollama adds ``:latest`` to one without a tag."""
    return model in names or model + ":latest" in names


def not_offered(answer: Answer) -> bool:
    """Whether the server has no such path, or not for this model. Pure."""
    words = answer.error.lower().rstrip(".")
    unknown = words in ("not found", "404 page not found", "file not found")
    missing = "does not support" in words and (words.endswith(" api") or answer.status == 501)
    return answer.status in (400, 404, 501) and (unknown or missing)


def _no_chat(answer: Answer) -> bool:
    """Whether the server has no chat for this model, which does not rule out plain completions."""
    words = answer.error.lower()
    chat = "chat template" in words or "chat completions" in words
    return (chat and answer.status in (400, 404)) or not_offered(answer)
