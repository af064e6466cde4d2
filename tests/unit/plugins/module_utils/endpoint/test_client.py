# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of OpenAI-compatible endpoints, against the answers of a real vLLM (fixtures/vllm) and of worse ones."""

from __future__ import annotations

import json
import threading

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint import client
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint, EndpointError, Load
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.probe import probe
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused

PARAMS = {
    "api_key": None,
    "state": "ready",
    "model": None,
    "smoke": False,
    "tokens": 1,
    "timeout": 30,
    "validate_certs": True,
    "ca_path": None,
}


@pytest.fixture
def recorded(web, fixture_text):
    """A server with a real one's answers."""
    answers = json.loads(fixture_text("vllm/api.json"))
    web.recorded = {name: (answer["status"], answer["body"]) for name, answer in answers.items()}
    web.answers = {
        "/v1/models": web.recorded["models"],
        "/v1/chat/completions": web.recorded["chat"],
        "/v1/completions": web.recorded["completion"],
        "/metrics": (200, fixture_text("vllm/metrics.txt")),
    }
    return web


def look(web, **options):
    return probe(dict(PARAMS, url=web.url, **options), False, print)


def verdict_of(web, **options):
    with pytest.raises(Failed) as caught:
        look(web, **options)
    name = caught.value.result["verdict"]
    assert str(caught.value).startswith(name + ": ") and not caught.value.result["changed"]
    return name, str(caught.value)[len(name) + 2 :]


def test_a_real_one_is_ready(recorded):
    result = look(recorded)
    assert (result["changed"], result["verdict"], result["models"]) == (False, "ok", ["tiny"])
    assert (result["running"], result["waiting"]) == (0, 0)
    assert "model" not in result


def test_a_token_of_a_real_one(recorded):
    result = look(recorded, smoke=True, model="tiny", tokens=3)
    assert result["model"] == "tiny"
    assert result["tokens_per_second"] > 0
    assert result["latency_seconds"] >= 0
    ((path, body),) = [request for request in recorded.requests if request[1]]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["stream"]) == ("tiny", 3, False)


def test_the_key_is_sent_with_every_request_and_is_in_no_result(recorded):
    result = look(recorded, api_key="sesame-key", smoke=True)
    assert {headers["Authorization"] for headers in recorded.headers} == {"Bearer sesame-key"}
    assert "sesame" not in json.dumps(result)


def test_a_wrong_key_is_known_at_once(recorded):
    recorded.answers["/v1/models"] = recorded.recorded["models-without-key"]
    name, message = verdict_of(recorded, timeout=60)
    assert name == "unauthorized"
    assert "answers 401" in message


def test_without_a_chat_template_a_completion_is_asked_for(recorded):
    words = "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template"
    recorded.answers["/v1/chat/completions"] = (400, {"error": {"message": words}})
    assert look(recorded, smoke=True)["model"] == "tiny"
    assert recorded.requests[-2][0] == "/v1/completions"


@pytest.mark.parametrize(
    "answer, name, words",
    [
        ((200, {"choices": [], "usage": {"completion_tokens": 0}}), "not_generated", "generated nothing"),
        ((200, "<html>"), "not_generated", "generated nothing"),
        ((500, {"error": {"message": "EngineCore encountered an issue"}}), "not_generated", "HTTP 500: EngineCore enc"),
        (None, "not_generated", "does not answer in HTTP"),
        ("no-such-model", "model_missing", "The model `nosuch` does not exist"),
        ("chat-without-key", "unauthorized", "expects another API key"),
        ("chat-too-long", "not_generated", "HTTP 400"),
    ],
)
def test_no_token(recorded, answer, name, words):
    if isinstance(answer, str):
        answer = recorded.recorded[answer if answer in recorded.recorded else "chat-" + answer]
    recorded.answers["/v1/chat/completions"] = answer
    found = verdict_of(recorded, smoke=True)
    assert found[0] == name
    assert words in found[1]


def test_no_token_in_time(recorded):
    given_up = threading.Event()
    recorded.answers["/v1/chat/completions"] = lambda: given_up.wait(60) and (200, {})
    with pytest.raises(EndpointError, match="generated none within") as caught:
        Endpoint(recorded.url).generate("tiny", 0.3)
    given_up.set()
    assert caught.value.name == "stalled"


def test_another_model_is_served(recorded):
    name, message = verdict_of(recorded, model="chat")
    assert name == "model_missing"
    assert "serves tiny, not chat" in message


def test_an_endpoint_that_comes_up_is_waited_for(recorded):
    answers = [(503, "starting"), (200, {"object": "list", "data": []}), recorded.answers["/v1/models"]]
    recorded.answers["/v1/models"] = lambda: answers.pop(0)
    assert look(recorded, timeout=30)["models"] == ["tiny"]


def test_nobody_listens(recorded, free_port):
    recorded.url = "http://127.0.0.1:%d" % free_port()
    name, message = verdict_of(recorded, timeout=0.1)
    assert name == "not_ready"
    assert "Connection refused" in message


def metrics(running, waiting):
    return (
        200,
        'vllm:num_requests_running{engine="0"} %d\nvllm:num_requests_waiting{engine="0"} %d\n' % (running, waiting),
    )


def test_idle_is_waited_for(recorded):
    answers = [metrics(2, 1), metrics(0, 1), metrics(0, 0)]
    recorded.answers["/metrics"] = lambda: answers.pop(0)
    result = look(recorded, state="idle", timeout=30)
    assert (result["running"], result["waiting"]) == (0, 0)
    assert answers == []


def test_a_busy_one_is_named(recorded):
    recorded.answers["/metrics"] = metrics(3, 4)
    assert verdict_of(recorded, state="idle", timeout=0.3)[0] == "busy"
    assert look(recorded)["waiting"] == 4


def test_ollama_tells_no_load(recorded):
    del recorded.answers["/metrics"]
    recorded.answers["/v1/models"] = (200, {"object": "list", "data": [{"id": "llama3:latest"}]})
    result = look(recorded, model="llama3")
    assert (result["running"], result["waiting"]) == (None, None)
    assert verdict_of(recorded, state="idle")[0] == "no_metrics"


def test_ollama_without_models_is_not_ready(recorded):
    recorded.answers["/v1/models"] = (200, {"object": "list", "data": None})
    assert verdict_of(recorded, timeout=0.3)[0] == "model_missing"


def test_a_busy_host_is_given_its_time_for_the_last_look_too(recorded, monkeypatch):
    """What was found before must not become "does not answer", because little was left of the time."""
    given = []
    monkeypatch.setattr(Endpoint, "models", lambda self, timeout: given.append(timeout) or [])
    assert verdict_of(recorded, timeout=0.3)[0] == "model_missing"
    assert min(given) >= 1


@pytest.mark.parametrize(
    "url, shown",
    [
        ("http://h", "http://h:80"),
        ("http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("https://h/team/v1", "https://h:443/team"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_urls(url, shown):
    assert Endpoint(url).url == shown


@pytest.mark.parametrize("url", ["", "h:8000", "ftp://h", "http://h:8000/a?b", "http://h:8000/ x", "http://u:secret@h"])
def test_what_is_no_url(url):
    with pytest.raises(Refused, match="not the URL of an endpoint") as caught:
        Endpoint(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["a b", "a\nHost: x", "é", ""])
def test_a_key_that_no_header_carries(key):
    with pytest.raises(Refused, match="API key"):
        Endpoint("http://h", key)


def test_metrics_are_added_up_over_engines(fixture_text):
    text = "# HELP vllm:num_requests_running x\n"
    text += 'vllm:num_requests_running{engine="0",model_name="a b"} 1.0\nvllm:num_requests_running{engine="1"} 2.0\n'
    text += 'vllm:num_requests_waiting{engine="0"} 5\nvllm:generation_tokens_total 7e1\nbroken\nbroken x\n'
    assert client.load_of(client.parse_metrics(text)) == Load(3, 5, 70)
    assert client.load_of(client.parse_metrics(fixture_text("vllm/metrics.txt"))).idle
    assert client.load_of(client.parse_metrics(fixture_text("llama_server/metrics.txt"))) == Load(1, 1, 1)
    assert client.load_of({}) is None
