# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints: what counts as the same answer, and what does not."""

from __future__ import annotations

import json
import random

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint import fingerprint
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint, EndpointError
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.fingerprint import Recorded, Token


def answer(*tokens):
    """Tokens as (text, log probability, {alternative: log probability})."""
    return [Token(text, logprob, {text: logprob, **others}) for text, logprob, others in tokens]


ACCEPTED = answer(("a", -0.1, {"x": -3.0}), ("b", -0.7, {"c": -0.75}), ("d", -0.2, {}))


@pytest.mark.parametrize(
    "other, expected",
    [
        (ACCEPTED, 0.0),
        (answer(("a", -0.15, {}), ("b", -0.6, {}), ("d", -0.2, {})), 0.1),
        (answer(("a", -0.1, {}), ("c", -0.7, {}), ("z", -9.0, {})), 0.05),  # a tie: what follows is another answer
        (answer(("x", -0.1, {}), ("b", -0.7, {}), ("d", -0.2, {})), 2.9),
        (answer(("q", -0.1, {}), ("b", -0.7, {}), ("d", -0.2, {})), float("inf")),
        (ACCEPTED[:2], float("inf")),
        ([], float("inf")),
    ],
)
def test_how_much_two_answers_differ(other, expected):
    assert fingerprint.deviation(ACCEPTED, other) == pytest.approx(expected)


def test_the_first_token_that_differs_is_named():
    recorded = Recorded("m", ["Hi", "Say\nhello."], [ACCEPTED, ACCEPTED], 0.1)
    assert fingerprint.difference(recorded, [ACCEPTED, ACCEPTED]) is None
    other = answer(("a", -0.1, {}), ("q", -0.7, {}), ("d", -0.2, {}))
    assert fingerprint.difference(recorded, [ACCEPTED, other]) == (
        "to 'Say hello.', token 2 is 'q' (log probability -0.70); recorded: 'b' (log probability -0.70)"
    )
    assert fingerprint.difference(recorded, [ACCEPTED[:1], ACCEPTED]) == (
        "to 'Hi', token 2 is missing; recorded: 'b' (log probability -0.70)"
    )


def test_the_tolerance_follows_what_one_process_differs_by():
    def noisy(by):
        return [[token._replace(logprob=token.logprob + by) for token in ACCEPTED]]

    assert fingerprint.learned([[ACCEPTED], noisy(0.001)]) == fingerprint.LEAST
    assert fingerprint.learned([[ACCEPTED], noisy(0.02), noisy(0.05)]) == pytest.approx(0.4)
    assert fingerprint.learned([[ACCEPTED], [ACCEPTED[:1]]]) == 8.0, "an answer that ends at once is no measure"


def test_a_thousand_honest_restarts_raise_no_alarm():
    """Noise of half precision moves every log probability, and decides ties."""
    rng = random.Random(4)

    def process(noise, weights):
        """What a process says: the likelier of two tokens wins, by its own rounding."""
        said = []
        for first, second in weights:
            likely = {"a": first + rng.gauss(0, noise), "b": second + rng.gauss(0, noise)}
            best = max(likely, key=likely.get)
            said.append(Token(best, likely[best], likely))
            if best != max(("a", first), ("b", second), key=lambda pair: pair[1])[0]:
                break  # what follows is another sentence
        return said + [Token("end", -1.0, {})] * (16 - len(said))

    alarms = 0
    for _ in range(1000):
        noise = rng.uniform(0.0001, 0.02)
        weights = [(-rng.random(), -rng.random()) for _ in range(16)]
        first, *further = (process(noise, weights) for _ in range(4))
        recorded = Recorded("m", ["p"], [first], fingerprint.learned([[first], *([one] for one in further)]))
        alarms += fingerprint.difference(recorded, [process(noise, weights)]) is not None
    assert alarms == 0


def test_a_real_answer(web, fixture_text):
    """Of llama-server b10488; `tests/lab/llama_server/capture.py` records it."""
    recorded = json.loads(fixture_text("llama_server/api.json"))["chat-logprobs"]
    web.answers = {"/v1/chat/completions": (recorded["status"], recorded["body"])}
    (found,) = fingerprint.take(Endpoint(web.url), "tiny", ["Say hello."], 10)
    assert [token.text for token in found] == ["h", "x", "_"]
    assert found[0].logprob == pytest.approx(-0.7718, abs=1e-4)
    assert list(found[0].others)[:2] == ["h", "~"]
    ((_path, asked),) = web.requests
    assert (asked["temperature"], asked["max_tokens"], asked["logprobs"]) == (0, fingerprint.TOKENS, True)


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": "hello"}}], "usage": {"completion_tokens": 1}},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"content": [{"token": "a"}]}}]},
        {"choices": [{"logprobs": {"content": ["a"]}}]},
        {"choices": [{"logprobs": {"content": [{"token": "a", "logprob": float("nan")}]}}]},
        {"choices": [{"logprobs": {"content": [{"token": "a", "logprob": float("-inf")}]}}]},
        {"choices": []},
    ],
)
def test_an_endpoint_without_log_probabilities(web, body):
    web.answers = {"/v1/chat/completions": (200, body)}
    with pytest.raises(fingerprint.NoLogprobs, match="/v1/chat/completions reports no log probabilities for m"):
        fingerprint.take(Endpoint(web.url), "m", ["Hi"], 10)


def test_a_model_that_generates_no_text(web):
    web.answers = {}
    with pytest.raises(fingerprint.NoLogprobs, match="generates no text with m"):
        fingerprint.take(Endpoint(web.url), "m", ["Hi"], 10)


def test_a_request_that_fails(web):
    web.answers = {"/v1/chat/completions": (500, {"error": "out of memory"})}
    with pytest.raises(EndpointError, match="HTTP 500: out of memory"):
        fingerprint.take(Endpoint(web.url), "m", ["Hi"], 10)
