# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several simultaneous users of an OpenAI-compatible endpoint, and how long each waits."""

from __future__ import annotations

import threading
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from ..toolbox.errors import Failed, Refused
from ..toolbox.http_stream import HttpError
from .client import Endpoint, EndpointError

_CHAT = "/v1/chat/completions"
_WRITTEN = ("content", "reasoning_content", "reasoning", "tool_calls", "text")
"""Where a piece of an answer may be."""


class Request(NamedTuple):
    """What became of one request; seconds from its start."""

    model: str
    error: str = ""
    first_token: Optional[float] = None
    """None if the answer did not come as a stream."""
    last_token: float = 0.0
    tokens: int = 0

    @property
    def between_tokens(self) -> Optional[float]:
        """Seconds between two tokens after the first, on average."""
        if self.first_token is None or self.tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.tokens - 1)


def run(params: Mapping[str, Any], check_mode: bool, warn: Any) -> Dict[str, Any]:
    """The result of the module ``inference_loadtest``.

    :raises Failed: no endpoint, no such model, or nothing at all was answered.
    """
    _check(params)
    endpoint = Endpoint(params["url"], params["api_key"], params["validate_certs"], params["ca_path"])
    try:  # not measured: the model may have to be loaded
        paths = {model: endpoint.generate(model, params["timeout"]).path for model in params["models"]}
    except EndpointError as error:
        raise Failed(str(error)) from None
    began = time.monotonic()
    requests = _all_users(endpoint, paths, params)
    seconds = time.monotonic() - began
    errors = sorted({one.error for one in requests if one.error})
    if all(one.error for one in requests):
        raise Failed("none of %d requests was answered: %s" % (len(requests), "; ".join(errors)))
    result = {
        "changed": False,
        "users": params["users"],
        "seconds": round(seconds, 6),
        "requests_per_second": round(sum(not one.error for one in requests) / seconds, 3),
        "tokens_per_second": round(sum(one.tokens for one in requests) / seconds, 1),
        "models": [_summary(model, [one for one in requests if one.model == model]) for model in params["models"]],
        "errors": errors,
    }  # type: Dict[str, Any]
    return {**result, "report": report(result)}


def _check(params: Mapping[str, Any]) -> None:
    for name in ("users", "requests", "tokens"):
        if params[name] < 1:
            raise Refused("%s is %d; expected 1 or more" % (name, params[name]))
    for name in ("rate", "timeout"):
        if params[name] is not None and not params[name] > 0:  # nor is it NaN
            raise Refused("%s is %g; expected more than 0" % (name, params[name]))
    if not params["models"] or len(set(params["models"])) < len(params["models"]):
        raise Refused("models is %s; expected one or more names, each once" % params["models"])


def _all_users(endpoint: Endpoint, paths: Mapping[str, str], params: Mapping[str, Any]) -> List[Request]:
    """All users begin at the same moment, each with the next model in turn, and send one request after the other."""
    done = []  # type: List[Request]
    began = time.monotonic()

    def user(number: int) -> None:
        model = params["models"][number % len(params["models"])]
        for count in range(params["requests"]):
            if params["rate"]:
                due = began + (count * params["users"] + number) / params["rate"]
                time.sleep(max(0.0, due - time.monotonic()))
            # each prompt begins differently, or the server would reuse its work on another user's prompt
            prompt = "User %d, question %d. %s" % (number + 1, count + 1, params["prompt"])
            done.append(_send(endpoint, model, paths[model], prompt, params))

    threads = [threading.Thread(target=user, args=(number,), daemon=True) for number in range(params["users"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def _send(endpoint: Endpoint, model: str, path: str, prompt: str, params: Mapping[str, Any]) -> Request:
    body = {"model": model, "max_tokens": params["tokens"], "stream": params["stream"]}  # type: Dict[str, Any]
    body.update({"messages": [{"role": "user", "content": prompt}]} if path == _CHAT else {"prompt": prompt})
    try:
        if params["stream"]:
            return _streamed(endpoint, model, path, body, params["timeout"])
        began = time.monotonic()
        answer = endpoint.ask("POST", path, params["timeout"], body)
        endpoint.refuse_failure(answer, path, model, "an answer")
        return Request(model, last_token=time.monotonic() - began, tokens=_tokens(answer.body))
    except (HttpError, EndpointError) as error:
        return Request(model, error=str(error))


def _streamed(endpoint: Endpoint, model: str, path: str, body: Dict[str, Any], timeout: float) -> Request:
    first, last, pieces, tokens = None, 0.0, 0, 0  # type: Optional[float], float, int, int
    began = time.monotonic()
    for event in endpoint.events(path, dict(body, stream_options={"include_usage": True}), timeout, model):
        tokens = _tokens(event) or tokens
        if _writes(event):
            last = time.monotonic() - began
            first = last if first is None else first
            pieces += 1
    if first is None:
        return Request(model, error="the answer has no text")
    return Request(model, first_token=first, last_token=last, tokens=tokens or pieces)


def _tokens(body: Mapping[str, Any]) -> int:
    usage = body.get("usage")
    made = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return made if isinstance(made, int) else 0


def _writes(event: Mapping[str, Any]) -> bool:
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    delta = choice.get("delta")
    return any((delta if isinstance(delta, dict) else choice).get(name) for name in _WRITTEN)


def _summary(model: str, requests: Sequence[Request]) -> Dict[str, Any]:
    good = [one for one in requests if not one.error]
    return {
        "name": model,
        "requests": len(requests),
        "failed": len(requests) - len(good),
        "tokens": sum(one.tokens for one in good),
        "first_token_seconds": _spread([one.first_token for one in good]),
        "between_tokens_seconds": _spread([one.between_tokens for one in good]),
        "answer_seconds": _spread([one.last_token for one in good]),
    }


def _spread(values: Sequence[Optional[float]]) -> Optional[Dict[str, float]]:
    """Mean, median, 99th percentile and the longest; None if nothing was measured."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    late = ordered[-(-99 * len(ordered) // 100) - 1]
    found = {"mean": sum(ordered) / len(ordered), "median": middle, "p99": late, "most": ordered[-1]}
    # to the microsecond: a small model's first token comes in less than a millisecond
    return {name: round(value, 6) for name, value in found.items()}


def report(result: Mapping[str, Any]) -> List[str]:
    """The result as lines for a person."""
    lines = [
        "%d users at once: %.1f tokens/s and %.2f requests/s in total, %.1f s"
        % (result["users"], result["tokens_per_second"], result["requests_per_second"], result["seconds"])
    ]
    for model in result["models"]:
        failed = ", %d failed" % model["failed"] if model["failed"] else ""
        lines.append("%s: %d requests%s, %d tokens" % (model["name"], model["requests"], failed, model["tokens"]))
        for key, words in (
            ("first_token_seconds", "time to first token"),
            ("between_tokens_seconds", "between two tokens"),
            ("answer_seconds", "whole answer"),
        ):
            if model[key]:
                lines.append(
                    "  %-20s median %.4f s, mean %.4f s, p99 %.4f s, at most %.4f s"
                    % (words, *(model[key][name] for name in ("median", "mean", "p99", "most")))
                )
    return [*lines, *("error: %s" % error for error in result["errors"])]
