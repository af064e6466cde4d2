# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each kind of model answers a request of its own kind; answers of a real vLLM, and of older and worse ones."""

from __future__ import annotations

import json
import threading
import time

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.answers import answer
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint, EndpointError
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.probe import probe
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.sleep import level

PATHS = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "score": "/score",
    "classify": "/classify",
    "pooling": "/pooling",
    "transcription": "/v1/audio/transcriptions",
    "rerank": "/v1/rerank",
}


@pytest.fixture
def serves(web, fixture_text):
    """`serves(name, without=…)`: the web server answers as the recorded one did, but for some of its paths."""

    def serves(name, without=()):
        recorded = json.loads(fixture_text("%s.json" % name if "/" in name else "vllm/%s.json" % name))
        for what, path in PATHS.items():
            if what in recorded and what not in without:
                web.answers[path] = (recorded[what]["status"], recorded[what]["body"])
        return Endpoint(web.url)

    return serves


def old(web, *offered):
    """Versions up to 0.19 register every path, and say which API the model does not support."""
    apis = {
        "chat": "Chat Completions",
        "completion": "Completions",
        "embeddings": "Embeddings",
        "score": "Score",
        "classify": "Classification",
        "pooling": "Pooling",
        "transcription": "Transcriptions",
        "rerank": "Rerank",
    }
    for what, api in apis.items():
        if what not in offered:
            words = "The model does not support %s API" % api
            web.answers[PATHS[what]] = (400, {"object": "error", "message": words, "type": "BadRequestError"})


@pytest.mark.parametrize(
    "name, without, task, said",
    [
        ("api", (), "text", "a token"),
        ("api", ("chat",), "text", "a token"),
        ("embed", (), "embeddings", "an embedding of 128 dimensions"),
        ("embed", ("embeddings",), "scores", "a score"),
        ("classify", (), "classification", "one of 2 classes"),
        ("classify", ("classify",), "pooling", "a pooled output"),
    ],
)
@pytest.mark.parametrize("version", ["new", "old"])
def test_each_does_its_own_work(serves, web, name, without, task, said, version):
    asked = serves(name, without)
    if version == "old":
        old(web, *[what for what, path in PATHS.items() if path in web.answers and web.answers[path][0] == 200])
    found = answer(asked, "tiny", 5)
    assert (found.task, found.said, found.proven) == (task, said, True)
    assert found.tokens == (task == "text")


@pytest.mark.parametrize(
    "name, task, said",
    [
        ("api", "text", "a token"),
        ("embeddings", "embeddings", "an embedding of 2 dimensions"),
        ("reranking", "reranking", "a score"),
    ],
)
def test_a_llama_server_does_what_is_declared(serves, name, task, said):
    """It answers requests for text, too, when it is to serve embeddings or rankings."""
    found = answer(serves("llama_server/" + name), "tiny", 5, declared=task)
    assert (found.task, found.said, found.tokens) == (task, said, int(task == "text"))


@pytest.mark.parametrize("task", ["embeddings", "reranking", "scores"])
def test_a_task_that_is_not_offered(serves, task):
    with pytest.raises(EndpointError) as caught:
        answer(serves("llama_server/api"), "tiny", 5, declared=task)
    assert caught.value.name == "not_offered" and task in str(caught.value)


def test_a_text_that_is_not_offered_is_refused_in_the_words_of_the_server(serves):
    with pytest.raises(EndpointError, match="generates no text with tiny: ") as caught:
        answer(serves("embed"), "tiny", 5, declared="text")
    assert caught.value.name == "not_offered"


def test_what_is_not_proven_says_so(serves, web):
    asked = serves("classify", PATHS)
    found = answer(asked, "tiny", 5)
    assert (found.task, found.proven) == ("unknown", False) and "answers not proven" in found.said
    web.answers[PATHS["transcription"]] = (422, {"detail": [{"msg": "Field required"}]})
    found = answer(asked, "tiny", 5)
    assert (found.said, found.proven) == ("answers not proven: transcription", False)


@pytest.mark.parametrize(
    "given, name, words",
    [
        ((200, {"data": []}), "not_generated", "answered 200, but without a result (no embedding in data)"),
        ((200, {"data": [{"embedding": []}]}), "not_generated", "without a result"),
        ((200, {"data": [{"embedding": ["x"]}]}), "not_generated", "without a result"),
        ((200, "<html>"), "not_generated", "without a result"),
        ((500, {"error": {"message": "EngineCore encountered an issue"}}), "not_generated", "HTTP 500: EngineCore enc"),
        ((401, {"error": "Unauthorized"}), "unauthorized", "another API key"),
        (None, "not_generated", "does not answer in HTTP"),
        ("embeddings-no-such-model", "model_missing", "The model `nosuch` does not exist"),
    ],
)
def test_work_that_fails(serves, web, fixture_text, given, name, words):
    asked = serves("embed")
    if isinstance(given, str):
        recorded = json.loads(fixture_text("vllm/embed.json"))[given]
        given = recorded["status"], recorded["body"]
    web.answers["/v1/embeddings"] = given
    with pytest.raises(EndpointError) as caught:
        answer(asked, "tiny", 5)
    assert caught.value.name == name and words in str(caught.value)


def test_a_generating_model_that_fails_is_asked_for_nothing_else(serves, web):
    asked = serves("api")
    web.answers[PATHS["chat"]] = (500, {"error": {"message": "EngineDeadError"}})
    with pytest.raises(EndpointError, match="EngineDeadError"):
        answer(asked, "tiny", 5)
    assert [path for path, _body in web.requests] == [PATHS["chat"]]


def test_an_answer_that_does_not_come(serves, web):
    asked, given_up = serves("embed"), threading.Event()
    web.answers["/v1/embeddings"] = lambda: given_up.wait(60) and (200, {})
    with pytest.raises(EndpointError, match="asked for embeddings") as caught:
        answer(asked, "tiny", 0.5)
    given_up.set()
    assert caught.value.name == "stalled"


def test_the_module_for_any_endpoint(serves, web):
    web.answers["/v1/models"] = (200, {"object": "list", "data": [{"id": "tiny"}]})
    serves("embed")
    params = dict(api_key=None, state="ready", model=None, smoke=True, tokens=1, timeout=30)
    params.update(url=web.url, validate_certs=True, ca_path=None)
    result = probe(params, False, print)
    assert "an embedding of 128 dimensions" in result["msg"]
    assert (result["task"], result["tokens_per_second"]) == ("embeddings", None)
    for path in PATHS.values():
        web.answers.pop(path, None)
    with pytest.raises(Failed, match="answers not proven"):
        probe(params, False, print)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100000,
        '{"data": ' * 50000,
        '{"data": [{"embedding": [%s]}]}' % ("9" * (2 << 20)),
        '{"usage": {"completion_tokens": "x"}, "choices": [1]}',
        '{"usage": {"completion_tokens": 1e999}, "choices": [1]}',
        '{"error": {"message": "%s\\u001b]0;owned\\u0007\\u001b[2J"}}' % ("x" * (2 << 20)),
        '{"error": ["\\u202e"]}',
        "\x1b[2J" * 100000,
        "vllm:num_requests_running inf\nvllm:generation_tokens_total nan\nvllm:num_requests_waiting 1e999\n",
        "vllm:engine_sleep_state{" + 'sleep_state="awake"' * 100000,
    ],
)
@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_server_that_means_harm(web, text, status):
    """Each answer ends in time, in a verdict, and its words do nothing to a terminal."""
    for path in (*PATHS.values(), "/v1/models", "/metrics", "/is_sleeping"):
        web.answers[path] = (status, text)
    asked, begun = Endpoint(web.url), time.process_time()
    for work in (lambda: answer(asked, "tiny", 5), asked.models, asked.load, lambda: level(asked)):
        try:
            work()
        except EndpointError as error:
            assert str(error).isprintable() and len(str(error)) < 1500
    assert time.process_time() - begun < 10
