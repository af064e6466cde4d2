# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a service gives the recorded answers: what is recorded, what is compared, and what a record may be."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Fault
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.fingerprint import REPEATS
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import fingerprint
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.gate import Proof

CHAT = "/v1/chat/completions"
UNIT = "e@one.service"


def chat(*tokens):
    """An answer of the server: (text, log probability) each."""
    content = [{"token": t, "logprob": p, "top_logprobs": [{"token": t, "logprob": p}]} for t, p in tokens]
    return 200, {"choices": [{"logprobs": {"content": content}}]}


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def compare(web, tmp_path, monkeypatch, warnings):
    """`compare(new_answers=…)` makes the check, keeps what is new, and returns the figures."""
    monkeypatch.setattr(fingerprint, "FOLDER", str(tmp_path / "fingerprints"))
    web.answers = {CHAT: chat(("yes", -0.1))}

    def run(model="m", prompts=("Hi",), new_answers=False):
        options = {"fingerprints": list(prompts), "new_answers": new_answers, "timeout": 10}
        service = SimpleNamespace(unit=UNIT, options=options)
        proof = Proof([], {}, dict, None, running=SimpleNamespace(dying=lambda: False))
        fingerprint.compare(service, Endpoint(web.url), model, warnings.append, proof)
        if proof.accepted:
            fingerprint.keep(UNIT, proof.accepted, warnings.append)
        return proof.figures["fingerprint"]

    return run


def test_recorded_once_then_compared(compare, web, tmp_path):
    assert compare() == {"state": "recorded", "deviation": 0.0, "tolerance": 0.1}
    assert len(web.requests) == 1 + REPEATS
    assert os.stat(fingerprint.place_of(UNIT)).st_mode & 0o777 == 0o600
    web.answers[CHAT] = chat(("yes", -0.15))
    assert compare() == {"state": "same", "deviation": 0.05, "tolerance": 0.1}
    assert len(web.requests) == 2 + REPEATS
    assert [path.name for path in (tmp_path / "fingerprints").iterdir()] == [UNIT + ".json"]


def test_other_answers_are_wrong_answers_until_they_are_meant(compare, web):
    compare()
    web.answers[CHAT] = chat(("no", -0.1))
    for _ in range(2):
        with pytest.raises(
            Fault, match="the answers of m differ from those recorded on this host: to 'Hi', token 1 is 'no'"
        ) as caught:
            compare()
        assert caught.value.verdict.name == "wrong_answers"
        assert "run it with -e gpufleet_new_answers=true" in str(caught.value)
    assert compare(new_answers=True)["state"] == "recorded"
    assert compare()["state"] == "same"


def test_answers_that_another_request_has_moved_are_asked_for_again(compare, web):
    compare()
    later = [chat(("yes", -0.9)), chat(("yes", -0.1))]
    web.answers[CHAT] = lambda: later.pop(0)
    assert compare()["state"] == "same"
    assert later == []


@pytest.mark.parametrize(
    "moved, running, wrong",
    [(0.3, [8], False), (0.3, [0, 8], False), (0.3, [8, 0], False), (0.3, [0, 0], True), (0.9, [8], True)],
)
def test_requests_of_others_may_move_answers_a_little(compare, web, moved, running, wrong):
    """They run before the second answers, or after them."""
    compare()
    web.answers[CHAT] = chat(("yes", -0.1 - moved))
    web.answers["/metrics"] = lambda: (200, "vllm:num_requests_running %d\n" % running.pop(0))
    if wrong:
        with pytest.raises(Fault, match="token 1 is 'yes'"):
            compare()
    else:
        assert compare() == {"state": "same", "deviation": moved, "tolerance": 0.5}


@pytest.mark.parametrize("change", [{"model": "n"}, {"prompts": ("Hi", "there")}])
def test_another_model_or_other_prompts_are_recorded_again(compare, web, change):
    compare()
    web.answers[CHAT] = chat(("no", -0.1))
    assert compare(**change)["state"] == "recorded"


def test_a_server_without_log_probabilities_is_warned_about(compare, web, warnings):
    web.answers[CHAT] = 200, {"choices": [{"message": {"content": "yes"}}]}
    assert compare() == {"state": "not_offered"}
    (warning,) = warnings
    assert warning.startswith("fingerprints: the answers are not compared: http://127.0.0.1:")
    assert not os.path.exists(fingerprint.place_of(UNIT))


def test_log_probabilities_that_are_none_any_more_are_wrong_answers(compare, web):
    """As llama-server reports the NaN of a broken weight."""
    compare()
    web.answers[CHAT] = chat(("yes", None))
    with pytest.raises(Fault, match="the answers of m can no longer be compared: .* reports no log probabilities"):
        compare()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        json.dumps({"model": "m", "prompts": 1, "answers": [], "tolerance": 0.1}),
        json.dumps({"model": "m", "prompts": ["Hi"], "answers": [[["yes"]]], "tolerance": 0.1}),
        json.dumps({"model": "m", "prompts": ["Hi"], "answers": [], "tolerance": 0.1}),
        json.dumps({"model": "m", "prompts": ["Hi"], "answers": [[]], "tolerance": float("nan")}),
        json.dumps({"model": "m", "prompts": ["Hi"], "answers": "no", "tolerance": None}),
    ],
)
def test_a_damaged_record_counts_as_none(compare, content):
    compare()
    with open(fingerprint.place_of(UNIT), "w", encoding="utf-8") as file:
        file.write(content)
    assert compare()["state"] == "recorded"
    assert compare()["state"] == "same"


def test_a_full_disk_is_warned_about(compare, monkeypatch, warnings):
    def full(path, record, mode):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fingerprint.record, "write", full)
    assert compare()["state"] == "recorded"
    assert "are not recorded ([Errno 28] No space left on device)" in warnings[0]
