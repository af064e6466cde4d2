# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a model do its own kind of work: text, an embedding, a score or a class.

vLLM registers a path for each task of its model: 404 for all others, and up to 0.19 an error that names the missing
API. So each path is tried until one exists. Recorded of 0.32.0: tests/unit/fixtures/vllm/embed.json, classify.json.
"""

from __future__ import annotations

import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ..toolbox.http_stream import HttpError
from .client import Endpoint, EndpointError, not_offered

_TEXT = "Say hello."
_REQUESTS: Tuple[Tuple[str, str, Dict[str, Any], str], ...] = (
    ("embeddings", "/v1/embeddings", {"input": _TEXT}, "embedding"),
    ("scores", "/score", {"text_1": _TEXT, "text_2": _TEXT}, "score"),
    ("classification", "/classify", {"input": _TEXT}, "probs"),
    ("pooling", "/pooling", {"input": _TEXT}, "data"),
    ("reranking", "/v1/rerank", {"query": _TEXT, "documents": [_TEXT]}, "relevance_score"),
)
"""Task, path, request, and the key of each answer's data that holds the result."""
_TRANSCRIPTIONS = "/v1/audio/transcriptions"


class Answered(NamedTuple):
    """What a model was seen to do."""

    task: str
    """``text``, ``embeddings``, ``scores``, ``classification``, ``pooling``, ``reranking``, ``transcription``, or
    ``unknown``."""
    seconds: Optional[float]
    """From the request to the whole answer; None where no answer was asked for."""
    tokens: int
    """Tokens generated."""
    said: str
    """What came, such as ``an embedding of 1024 dimensions``; of an unproven task, that it is."""

    @property
    def proven(self) -> bool:
        return self.seconds is not None


def answer(endpoint: Endpoint, model: str, timeout: float, tokens: int = 1, declared: Optional[str] = None) -> Answered:
    """Ask ``model`` for an answer to a request of its own task.

    :param timeout: seconds for all requests together.
    :param declared: its task, where that is known; the server must then offer it.
    :raises EndpointError: ``stalled``, ``model_missing``, ``unauthorized``, ``not_generated``, ``not_offered``.
    """
    until = time.monotonic() + timeout
    if declared in (None, "text"):
        try:
            token = endpoint.generate(model, timeout, tokens)
        except EndpointError as error:
            if error.name != "not_offered" or declared:
                raise
        else:
            return Answered("text", token.seconds, token.tokens, "a token")
    for task, path, request, key in _REQUESTS:
        if declared in (None, task):
            asked = time.monotonic()
            body = _ask(endpoint, path, dict(request, model=model), model, task, until)
            if body is not None:
                return Answered(task, time.monotonic() - asked, 0, _result(endpoint, path, body, key))
    if declared:
        raise EndpointError("not_offered", "%s does not offer %s with %s" % (endpoint.url, declared, model))
    if _offers_transcriptions(endpoint, until):
        return Answered("transcription", None, 0, "answers not proven: transcription")
    return Answered("unknown", None, 0, "answers not proven: it offers no text, embeddings, scores or classes")


def _ask(
    endpoint: Endpoint, path: str, request: Dict[str, Any], model: str, task: str, until: float
) -> Optional[Dict[str, Any]]:
    """The answer's body; None where the server has no such path for this model."""
    try:
        answer = endpoint.ask("POST", path, max(0.1, until - time.monotonic()), request)
    except HttpError as error:
        verdict = "stalled" if error.timed_out else "not_generated"
        raise EndpointError(verdict, "%s was asked for %s: %s" % (model, task, error)) from None
    if not_offered(answer):
        return None
    endpoint.refuse_failure(answer, path, model, task)
    return answer.body


def _result(endpoint: Endpoint, path: str, body: Dict[str, Any], key: str) -> str:
    """What came, in words.

    :raises EndpointError: ``not_generated``, the answer holds no result.
    """
    data = body.get("data") or body.get("results")
    result: Any = data[0].get(key) if isinstance(data, list) and data and isinstance(data[0], dict) else None
    score = key in ("score", "relevance_score")
    if score:
        good = isinstance(result, (int, float))
    else:
        good = isinstance(result, list) and bool(result) and (key == "data" or _numbers(result))
    if not good:
        raise EndpointError(
            "not_generated", "%s%s answered 200, but without a result (no %s in data)" % (endpoint.url, path, key)
        )
    if key == "embedding":
        return "an embedding of %d dimensions" % len(result)
    return "one of %d classes" % len(result) if key == "probs" else "a score" if score else "a pooled output"


def _numbers(values: List[Any]) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def _offers_transcriptions(endpoint: Endpoint, until: float) -> bool:
    """Whether the path exists, by a request that holds no audio."""
    try:
        return not not_offered(endpoint.ask("POST", _TRANSCRIPTIONS, max(0.1, until - time.monotonic()), {}))
    except HttpError:
        return False
