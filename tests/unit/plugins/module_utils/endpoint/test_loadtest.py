# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several users see of a server whose answers are known, and of a stream of a real vLLM."""

from __future__ import annotations

import json
import threading
from typing import Any, Dict, Optional

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint import loadtest
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused


def stream(*events: Dict[str, Any], end: str = "data: [DONE]\n\n") -> str:
    return "".join("data: %s\n\n" % json.dumps(event) for event in events) + end


def piece(text: str) -> Dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def usage(tokens: int) -> Dict[str, Any]:
    return {"choices": [], "usage": {"completion_tokens": tokens}}


WHOLE = {"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": 10}}


@pytest.fixture
def load(web: Any) -> Any:
    """`load(**params)` runs the test; `.asked` are the requests that were measured; `.answers` replace the usual one."""

    def run(**params: Any) -> Dict[str, Any]:
        given = dict(url=web.url, api_key=None, models=["a"], users=3, requests=2, tokens=10, prompt="Go.", rate=None)
        given.update(stream=True, timeout=5.0, validate_certs=True, ca_path=None)
        given.update(params)
        found = loadtest.run(given, False, print)
        run.asked = [body for path, body in web.requests if body["max_tokens"] != 1]
        return found

    def chat() -> Optional[Any]:
        with run.lock:
            body = web.requests[-1][1]
            if body["max_tokens"] == 1 or not body["stream"]:
                return 200, WHOLE
            return run.answers.pop(0) if run.answers else (200, stream(piece("a"), piece("b"), usage(10)))

    run.asked, run.answers, run.lock = [], [], threading.Lock()
    web.answers["/v1/chat/completions"] = chat
    return run


def test_what_is_measured(load: Any) -> None:
    found = load()
    assert len({body["messages"][0]["content"] for body in load.asked}) == 6, "no prompt is another one's beginning"
    (model,) = found["models"]
    assert (model["name"], model["requests"], model["failed"], model["tokens"]) == ("a", 6, 0, 60)
    assert 0 < model["first_token_seconds"]["median"] <= model["answer_seconds"]["most"]
    assert model["between_tokens_seconds"]["median"] >= 0
    assert found["tokens_per_second"] == pytest.approx(60 / found["seconds"], rel=0.01)
    assert found["report"][0].startswith("3 users at once: ") and "a: 6 requests, 60 tokens" in found["report"]
    assert found["errors"] == []


def test_figures_of_an_answer() -> None:
    """As upstream's own benchmark defines them."""
    one = loadtest.Request("a", first_token=1.0, last_token=10.0, tokens=10)
    assert one.between_tokens == 1.0
    assert one._replace(tokens=1).between_tokens is None and one._replace(first_token=None).between_tokens is None
    spread = loadtest._spread([None, *(float(number) for number in range(1, 201))])
    assert spread == {"mean": 100.5, "median": 100.5, "p99": 198.0, "most": 200.0}
    assert loadtest._spread([0.0004]) == {"mean": 0.0004, "median": 0.0004, "p99": 0.0004, "most": 0.0004}
    assert loadtest._spread([None]) is None


def test_users_share_the_models(load: Any) -> None:
    found = load(models=["a", "b"], users=4)
    assert [model["requests"] for model in found["models"]] == [4, 4]
    assert sorted(body["model"] for body in load.asked) == ["a"] * 4 + ["b"] * 4


def test_without_a_stream(load: Any) -> None:
    (model,) = load(stream=False)["models"]
    assert model["tokens"] == 60 and model["answer_seconds"]["median"] > 0
    assert model["first_token_seconds"] is None and model["between_tokens_seconds"] is None


def test_a_rate(load: Any) -> None:
    """Six requests, the last of which begins after five intervals."""
    found = load(rate=50.0)
    assert found["seconds"] >= 0.1 and found["requests_per_second"] <= 60


def test_a_model_without_chat(load: Any, web: Any) -> None:
    web.answers["/v1/chat/completions"] = (400, {"error": {"message": "you must provide a chat template"}})
    web.answers["/v1/completions"] = lambda: (
        (200, WHOLE) if web.requests[-1][1]["max_tokens"] == 1 else (200, stream({"choices": [{"text": "a"}]}))
    )
    (model,) = load(users=1, requests=1)["models"]
    assert model["tokens"] == 1 and load.asked[-1]["prompt"].startswith("User 1")


def test_failures(load: Any) -> None:
    load.answers = [
        (503, {"error": {"message": "server busy"}}),
        (200, stream(piece("x"), end="")),
        (200, stream({"error": {"message": "the worker died"}})),
        (200, stream(usage(0))),
        None,
    ]
    found = load()
    (model,) = found["models"]
    assert (model["requests"], model["failed"], model["tokens"]) == (6, 5, 10)
    said = "; ".join(found["errors"])
    for words in ("HTTP 503: server busy", "the stream broke off", "the worker died", "the answer has no text"):
        assert words in said
    assert "a: 6 requests, 5 failed, 10 tokens" in found["report"]


def test_nothing_is_answered(load: Any) -> None:
    load.answers = [(503, {"error": {"message": "server busy"}})] * 6
    with pytest.raises(Failed, match="none of 6 requests was answered: .*server busy"):
        load()


@pytest.mark.parametrize(
    "params, said",
    [
        ({"users": 0}, "users is 0; expected 1 or more"),
        ({"requests": -1}, "requests is -1; expected 1 or more"),
        ({"tokens": 0}, "tokens is 0; expected 1 or more"),
        ({"rate": 0.0}, "rate is 0; expected more than 0"),
        ({"rate": float("nan")}, "rate is nan; expected more than 0"),
        ({"timeout": 0.0}, "timeout is 0; expected more than 0"),
        ({"models": []}, "models is \\[\\]; expected one or more names, each once"),
        ({"models": ["a", "a"]}, "each once"),
    ],
)
def test_what_is_refused(load: Any, params: Dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        load(**params)


def test_a_model_that_is_not_served(load: Any, web: Any) -> None:
    web.answers["/v1/chat/completions"] = (404, {"error": {"message": "The model `a` does not exist."}})
    with pytest.raises(Failed, match="does not serve a"):
        load()
