# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several users at once: what each of them waits for, and what the GPUs hold meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from ..gpu import facts as gpu_facts
from ..gpu.processes import held_by_unit
from ..systemd.manager import System
from ..systemd.unit import unit_name
from ..toolbox.errors import Failed, Refused
from . import server
from .api import Answer, Api, ApiError, number

_GIB = float(1 << 30)
_NS = 1e9


class Request(NamedTuple):
    """What became of one request; seconds."""

    model: str
    error: str = ""
    first_token: float = 0.0
    waited: float = 0.0
    """Of the time to the first token, what neither loading nor reading the prompt took: the queue."""
    loading: float = 0.0
    tokens: int = 0
    generating: float = 0.0


def run(
    params: Mapping[str, Any],
    check_mode: bool,
    warn: Any,
    system: Optional[Any] = None,
    gather: Optional[Callable[[], Dict[str, Any]]] = None,
) -> Dict[str, Any]:
    """The result of the module ``ollama_loadtest``.

    :raises Failed: no server, no such model, or nothing at all was answered.
    """
    unit = unit_name(params["name"])
    if params["users"] < 1 or params["requests"] < 1 or params["tokens"] < 1:
        raise Refused("users, requests and tokens: expected 1 or more of each")
    try:
        found = server.find(unit, params["host"], system or System())
        for model in params["models"]:  # not measured: the first user would pay for it
            answer = found.api.load(model, params["timeout"])
            if answer.status != 200:
                raise Failed("%s cannot be loaded: HTTP %d: %s" % (model, answer.status, answer.error))
    except ApiError as error:
        raise Failed(str(error)) from None
    began = time.monotonic()
    requests = _all_at_once(found.api, params)
    seconds = time.monotonic() - began
    facts = gather() if gather else gpu_facts.gather_for(params["facts_timeout"])
    held = held_by_unit(facts["devices"], unit) if found.environ else {}
    result = {
        "changed": False,
        "users": params["users"],
        "seconds": round(seconds, 6),
        "tokens_per_second": round(sum(one.tokens for one in requests) / seconds, 1),
        "models": [_summary(model, [one for one in requests if one.model == model]) for model in params["models"]],
        "gpus": [
            {
                "index": device["index"],
                "name": device["name"],
                "used_bytes": device["memory"]["used_bytes"],
                "held_bytes": held.get(device["uuid"], 0),
            }
            for device in facts["devices"]
        ],
        "errors": sorted({one.error for one in requests if one.error}),
    }  # type: Dict[str, Any]
    if all(one.error for one in requests):
        raise Failed("not one of %d requests was answered: %s" % (len(requests), "; ".join(result["errors"])))
    result["report"] = report(result)
    return result


def _all_at_once(api: Api, params: Mapping[str, Any]) -> List[Request]:
    """All users begin at the same moment, each with the next model in turn, and ask one request after the other."""
    done = []  # type: List[Request]
    start = threading.Event()

    def user(number: int) -> None:
        model = params["models"][number % len(params["models"])]
        start.wait()
        for count in range(params["requests"]):
            # a beginning of its own, or the server would take the work of another user's prompt for it
            prompt = "User %d, question %d. %s" % (number + 1, count + 1, params["prompt"])
            done.append(_ask(api, model, prompt, params["tokens"], params["timeout"]))

    threads = [threading.Thread(target=user, args=(number,), daemon=True) for number in range(params["users"])]
    for thread in threads:
        thread.start()
    start.set()
    for thread in threads:
        thread.join()
    return done


def _ask(api: Api, model: str, prompt: str, tokens: int, timeout: float) -> Request:
    body = {"model": model, "prompt": prompt, "stream": True, "options": {"num_predict": tokens}}
    began, first = time.monotonic(), 0.0
    last = {}  # type: Dict[str, Any]
    try:
        for event in api.events("/api/generate", body, lambda: began + timeout - time.monotonic()):
            if "error" in event:
                return Request(model, error=Answer(0, event).error.strip() or "an error without words")
            if not first and (event.get("response") or event.get("thinking")):
                first = time.monotonic() - began
            last = event
    except ApiError as error:
        return Request(model, error=str(error))
    if last.get("done") is not True or not number(last.get("eval_count")):
        return Request(model, error="the answer broke off: done is %.20s" % last.get("done"))
    loading = number(last.get("load_duration")) / _NS
    reading = number(last.get("prompt_eval_duration")) / _NS
    return Request(
        model,
        first_token=first,
        waited=max(0.0, first - loading - reading),
        loading=loading,
        tokens=number(last.get("eval_count")),
        generating=number(last.get("eval_duration")) / _NS,
    )


def _summary(model: str, requests: Sequence[Request]) -> Dict[str, Any]:
    good = [one for one in requests if not one.error]
    refused = [one for one in requests if "server busy" in one.error]
    return {
        "name": model,
        "requests": len(requests),
        "refused": len(refused),
        "failed": len(requests) - len(good) - len(refused),
        "first_token_seconds": _spread([one.first_token for one in good]),
        "queue_seconds": _spread([one.waited for one in good]),
        "tokens_per_second": _spread([one.tokens / one.generating for one in good if one.generating]),
    }


def _spread(values: Sequence[float]) -> Optional[Dict[str, float]]:
    """Least, middle and most; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    middle = ordered[len(ordered) // 2] if len(ordered) % 2 else sum(ordered[len(ordered) // 2 - 1 :][:2]) / 2
    # to the microsecond: a small model's first token comes in less than a millisecond
    return {"least": round(ordered[0], 6), "median": round(middle, 6), "most": round(ordered[-1], 6)}


def report(result: Dict[str, Any]) -> List[str]:
    """The result as lines for a person."""
    lines = [
        "%d users at once: %.1f tokens/s together, %.1f s"
        % (result["users"], result["tokens_per_second"], result["seconds"])
    ]
    for model in result["models"]:
        lines.append(
            "%s: %d requests%s%s"
            % (
                model["name"],
                model["requests"],
                ", %d refused (queue full)" % model["refused"] if model["refused"] else "",
                ", %d failed" % model["failed"] if model["failed"] else "",
            )
        )
        for key, words, unit in (
            ("first_token_seconds", "time to first token", "s"),
            ("queue_seconds", "of it in the queue", "s"),
            ("tokens_per_second", "speed of each answer", "tokens/s"),
        ):
            found = model[key]
            if found:
                lines.append(
                    "  %-20s median %.2f, from %.2f to %.2f %s"
                    % (words, found["median"], found["least"], found["most"], unit)
                )
    for gpu in result["gpus"]:
        used = "%.1f" % (gpu["used_bytes"] / _GIB) if gpu["used_bytes"] is not None else "?"
        lines.append("GPU %d: %s GiB used, %.1f GiB by this service" % (gpu["index"], used, gpu["held_bytes"] / _GIB))
    return lines
