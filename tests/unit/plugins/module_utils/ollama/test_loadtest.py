# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several users see of a server whose answers are known."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import Any, Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import loadtest
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused

GIB = 1 << 30


class FakeSystem:
    def __init__(self, port: int) -> None:
        self.environment = {"OLLAMA_HOST": "127.0.0.1:%d" % port}

    def show(self, unit: str) -> Dict[str, str]:
        return {"MainPID": "10"}

    def environ(self, pid: int) -> Dict[str, str]:
        return self.environment


def lines(*events: Dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def answer(tokens: int = 10, seconds: float = 2.0) -> bytes:
    return lines(
        {"response": "a"},
        {
            "response": "",
            "done": True,
            "eval_count": tokens,
            "eval_duration": int(seconds * 1e9),
            "load_duration": 0,
            "prompt_eval_duration": 0,
        },
    )


@pytest.fixture
def load(ollama: Any, fakes: Any) -> Any:
    """`load(**params)` runs the test; `.asked` are the requests that were measured."""

    def run(**params: Any) -> Dict[str, Any]:
        given = dict(models=["a"], users=3, requests=2, tokens=10, prompt="Go.", name="ollama", host=None)
        given.update(timeout=5, facts_timeout=1.0, **params)
        facts = fakes.facts((4 * GIB, 0, 0, 0))
        for device in facts["devices"]:
            device["memory"]["used_bytes"] = 5 * GIB
        facts["devices"][3]["memory"]["used_bytes"] = None
        return loadtest.run(given, False, print, FakeSystem(ollama.port), lambda: facts)

    def generate(body: Dict[str, Any]) -> Any:
        if "prompt" not in body:
            return 200, {"done": True}
        with run.lock:
            run.asked.append(body)
            return run.answers.pop(0) if run.answers else (200, answer())

    run.asked, run.answers, run.lock = [], [], threading.Lock()
    ollama.answers["/api/generate"] = generate
    return run


def test_what_is_measured(load: Any) -> None:
    found = load()
    assert len(load.asked) == 6
    assert len({body["prompt"] for body in load.asked}) == 6, "no prompt is another one's beginning"
    (model,) = found["models"]
    assert (model["name"], model["requests"], model["refused"], model["failed"]) == ("a", 6, 0, 0)
    assert model["tokens_per_second"] == {"least": 5.0, "median": 5.0, "most": 5.0}
    assert 0 < model["first_token_seconds"]["least"] <= model["first_token_seconds"]["most"]
    assert found["gpus"][0] == {"index": 0, "name": "NVIDIA H200", "used_bytes": 5 * GIB, "held_bytes": 4 * GIB}
    assert found["errors"] == []
    assert found["report"][0].startswith("3 users at once: ")
    assert "a: 6 requests" in found["report"]
    assert "GPU 0: 5.0 GiB used, 4.0 GiB by this service" in found["report"]
    assert "GPU 3: ? GiB used, 0.0 GiB by this service" in found["report"]


def test_a_first_token_within_a_millisecond_is_not_nothing() -> None:
    assert loadtest._spread([0.0004]) == {"least": 0.0004, "median": 0.0004, "most": 0.0004}


def test_users_share_the_models(load: Any) -> None:
    found = load(models=["a", "b"], users=4)
    assert [model["requests"] for model in found["models"]] == [4, 4]
    assert sorted(body["model"] for body in load.asked) == ["a"] * 4 + ["b"] * 4


def test_a_full_queue_and_other_failures(load: Any) -> None:
    load.answers = [
        (503, {"error": "server busy, please try again.  maximum pending requests exceeded"}),
        (200, lines({"response": "x"}, {"response": "", "done": False, "eval_count": 5})),
        (200, lines({"error": "the worker died"})),
    ]
    found = load()
    (model,) = found["models"]
    assert (model["requests"], model["refused"], model["failed"]) == (6, 1, 2)
    assert found["errors"][0] == "server busy, please try again.  maximum pending requests exceeded"
    assert "a: 6 requests, 1 refused (queue full), 2 failed" in found["report"]


def test_nothing_is_answered(load: Any) -> None:
    load.answers = [(503, {"error": "server busy"})] * 6
    with pytest.raises(Failed, match="not one of 6 requests was answered: server busy"):
        load()


@pytest.mark.parametrize("wrong", [{"users": 0}, {"requests": 0}, {"tokens": 0}])
def test_numbers_that_mean_nothing(load: Any, wrong: Dict[str, int]) -> None:
    given: Dict[str, Any] = {"users": 1, "requests": 1, "tokens": 1}
    with pytest.raises(Refused, match="expected 1 or more of each"):
        loadtest.run(
            {**given, "models": ["a"], "name": "ollama", "host": None, **wrong}, False, print, FakeSystem(1), dict
        )


def test_a_model_that_is_not_there(load: Any, ollama: Any) -> None:
    ollama.answers["/api/generate"] = (404, {"error": "model 'a' not found"})
    with pytest.raises(Failed, match="a cannot be loaded: HTTP 404: model 'a' not found"):
        load()


def test_no_server() -> None:
    given = {"models": ["a"], "users": 1, "requests": 1, "tokens": 1, "name": "ollama", "host": "127.0.0.1:1"}
    with pytest.raises(Failed, match="127.0.0.1:1"):
        loadtest.run(dict(given, timeout=1, prompt="x"), False, print, FakeSystem(1), dict)


@pytest.mark.parametrize("values, middle", [([3.0, 1.0, 2.0], 2.0), ([4.0, 1.0, 2.0, 3.0], 2.5), ([7.0], 7.0)])
def test_the_median(values: List[float], middle: float) -> None:
    assert loadtest._spread(values) == {"least": min(values), "median": middle, "most": max(values)}


def test_an_answer_that_does_not_end_is_given_up(load: Any, endless: int) -> None:
    """Each line comes in time: it is the whole answer that is waited for no longer than the limit."""
    asked = loadtest._ask(loadtest.Api("127.0.0.1", endless), "a", "Go.", 10, 0.3)
    assert "did not answer within" in asked.error


@pytest.fixture
def endless() -> Any:
    """The port of a server that goes on answering."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection = listener.accept()[0]
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(b'{"response": "a"}\n')
                # paces an answer without an end, which would else fill the memory
                time.sleep(0.01)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


@pytest.mark.parametrize("wrong", ["x", [], -1, 1e400, None, {"a": 1}])
def test_figures_that_are_none(load: Any, wrong: Any) -> None:
    last = {"response": "", "done": True, "eval_count": 10}
    for name in ("eval_duration", "load_duration", "prompt_eval_duration"):
        last[name] = wrong
    load.answers = [(200, lines({"response": "a"}, last))] * 6
    assert load()["models"][0]["failed"] == 0
    load.answers = [(200, lines({"response": "a"}, dict(last, eval_count=wrong)))] * 5
    assert load()["models"][0]["failed"] == 5


def test_an_error_is_told_without_control_characters(load: Any) -> None:
    load.answers = [(200, lines({"error": "a\x1b[2J"}))]
    assert load()["errors"] == ["a"]
