# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks that hold for any engine: what a real vLLM answers passes; each way to fail has its own verdict."""

from __future__ import annotations

import json

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import checks as checks_module
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import openai
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.gate import gate as make_gate
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.model import Cause

GIB = 1 << 30
ALL = (GIB, GIB, GIB, GIB)


def explain(lines):
    said = [line for line in lines if "memory" in line]
    return Cause("out_of_memory", said[-1]) if said else Cause()


@pytest.fixture
def served(web, fixture_text, monkeypatch):
    """A server with a real one's answers, whose counter goes up with each token."""
    monkeypatch.setattr(checks_module, "_LOOK", 0.01)
    monkeypatch.setattr(checks_module, "_MEMORY_DELAY", 0.05)
    answers = json.loads(fixture_text("vllm/api.json"))
    web.tokens = 2

    def chat():
        web.tokens += 1
        return answers["chat"]["status"], answers["chat"]["body"]

    web.recorded = {name: (answer["status"], answer["body"]) for name, answer in answers.items()}
    web.answers = {
        "/v1/models": web.recorded["models"],
        "/v1/chat/completions": chat,
        "/metrics": lambda: (200, "vllm:num_requests_running 0\nvllm:generation_tokens_total %d\n" % web.tokens),
    }
    return web


@pytest.fixture
def gate_of(served, fakes):
    """`gate_of(held, before=…, **options)`: a gate that will see so much memory held."""

    def make(held=ALL, before=(0, 0, 0, 0), cpu=False, stall=5.0, token_timeout=2.0, allowed=5.0):
        after = held if isinstance(held, dict) else fakes.facts(held)
        facts = fakes.facts(before)
        endpoint = Endpoint(served.url)
        made = [
            checks_module.ComesUp(openai.lists_model(endpoint, "tiny"), allowed, stall),
            checks_module.after_change(checks_module.owns_port(endpoint.port)),
            checks_module.after_change(openai.answers(endpoint, "tiny", token_timeout)),
            checks_module.UsesGpus(),
        ]
        devices = [] if cpu else facts["devices"]
        shown = {"devices": [], "count": 0} if cpu else facts
        return make_gate(made, devices=devices, facts=shown, gather=lambda: after, explain=explain)

    return make


class Clock:
    """The gate's time, which passes only while it sleeps."""

    def __init__(self):
        self.now, self.slept = 1000.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch, served):
    monkeypatch.setattr(checks_module, "time", Clock())
    monkeypatch.setattr(checks_module, "_LOOK", 2.0)
    return checks_module.time


@pytest.fixture
def started(clock, fakes):
    """`started(before, deadline)`: an invocation of so many seconds before, and so many until its deadline."""

    def started(before=0.0, deadline=60.0):
        running = fakes.FakeRunning()
        running.started_monotonic, running.deadline = clock.now - before, clock.now + deadline
        return running

    return started


def test_a_real_one_passes(gate_of, fakes, served):
    gate = gate_of()
    verdict = gate(fakes.FakeRunning(), True)
    assert verdict.ok, verdict.message
    assert verdict.evidence["latency_seconds"] >= 0 and "ready_seconds" in verdict.evidence
    assert [gpu["used_bytes"] for gpu in gate.gpus()] == list(ALL)
    expected = {"index": 1, "uuid": "GPU-1", "name": "NVIDIA H200", "pci_bus_id": "0000:00:01.0", "used_bytes": GIB}
    assert gate.gpus()[1] == expected
    assert "/health" not in [path for path, _body in served.requests], "which proves nothing"


@pytest.mark.parametrize(
    "recorded, what, path, task, said",
    [
        ("embed", "embeddings", "/v1/embeddings", "embeddings", "an embedding of 128 dimensions"),
        ("classify", "classify", "/classify", "classification", "one of 2 classes"),
        (
            "classify",
            "none",
            "/none",
            "unknown",
            "answers not proven: it offers no text, embeddings, scores or classes",
        ),
    ],
)
def test_a_model_that_generates_no_text(gate_of, fakes, served, fixture_text, recorded, what, path, task, said):
    answers = json.loads(fixture_text("vllm/%s.json" % recorded))
    del served.answers["/v1/chat/completions"]
    if what in answers:
        served.answers[path] = answers[what]["status"], answers[what]["body"]
    verdict = gate_of()(fakes.FakeRunning(), True)
    assert verdict.ok, verdict.message
    assert (verdict.evidence["task"], verdict.evidence["answer"]) == (task, said)
    assert ("latency_seconds" in verdict.evidence) == (task != "unknown")


def test_without_a_change_no_token_is_asked_for_and_nothing_read_anew(gate_of, fakes, served):
    gate = gate_of(held={}, before=ALL)
    assert gate(fakes.FakeRunning(listener=(1, "no one looks")), False).ok
    assert [path for path, _body in served.requests] == ["/v1/models"]


def test_an_instance_without_gpus(gate_of, fakes):
    gate = gate_of(cpu=True, held={})
    assert gate(fakes.FakeRunning(), True).ok
    assert gate.gpus() == []


@pytest.mark.parametrize(
    "held, name, words",
    [
        ((0, 0, 0, 0), "cpu_fallback", "none of its processes uses memory on any GPU"),
        ((GIB, GIB, GIB, 0), "spread_missing", "uses no memory on 3 (NVIDIA H200"),
    ],
)
def test_memory_that_is_not_there(gate_of, fakes, held, name, words, monkeypatch):
    verdict = gate_of(held)(fakes.FakeRunning(), True)
    assert verdict.name == name
    assert words in verdict.message
    if name == "spread_missing":
        assert [name[0] for name in verdict.evidence["without"]] == ["3"]
    if name == "cpu_fallback":
        monkeypatch.setattr(checks_module.time, "sleep", lambda seconds: pytest.fail("it is not waited for"))
    assert gate_of(held, before=held)(fakes.FakeRunning(), False).name == name


def test_memory_elsewhere_and_of_others(gate_of, fakes):
    gate = gate_of()
    gate.proof.devices = gate.proof.devices[:2]
    verdict = gate(fakes.FakeRunning(), True)
    assert verdict.name == "wrong_gpu" and [name[0] for name in verdict.evidence["others"]] == ["2", "3"]
    others = fakes.facts(ALL, unit="ollama.service")
    assert gate_of(others)(fakes.FakeRunning(), True).name == "cpu_fallback"
    blind = fakes.facts(ALL, source="procfs")
    assert gate_of(blind)(fakes.FakeRunning(), True).name == "unproven"
    assert gate_of(fakes.facts(ALL, source="nvidia-smi"))(fakes.FakeRunning(), True).ok


def test_memory_that_an_instance_of_others_took_while_it_came_up(gate_of, fakes):
    assert gate_of(before=(GIB, 0, 0, 0))(fakes.FakeRunning(), False).ok


def test_memory_may_show_late(gate_of, fakes, monkeypatch):
    monkeypatch.setattr(checks_module, "_MEMORY_DELAY", 5.0)
    gate, looks = gate_of(), [fakes.facts(), fakes.facts(), fakes.facts(ALL)]
    gate.proof.gather = lambda: looks.pop(0)
    assert gate(fakes.FakeRunning(), True).ok and looks == []


def test_it_is_waited_for_until_it_listens(gate_of, fakes, served):
    answers = [(503, ""), None, served.recorded["models"]]
    served.answers["/v1/models"] = lambda: answers.pop(0)
    assert gate_of()(fakes.FakeRunning(), True).ok and answers == []


def test_how_often_is_looked(gate_of, served, started, clock):
    answers, looks, allowed = [(503, "")] * 40 + [served.recorded["models"]], [], gate_of(stall=30)
    served.answers["/v1/models"] = lambda: answers.pop(0)
    gather, allowed.proof.gather = allowed.proof.gather, lambda: looks.append(clock.now) or gather()
    verdict = allowed(started(before=1.0), True)
    assert verdict.ok and verdict.evidence["ready_seconds"] == round(clock.now - 999, 1)
    assert clock.slept[:3] == [0.02, 0.02 * 1.5, 0.02 * 1.5 * 1.5] and clock.slept[-1] == max(clock.slept) == 0.5
    assert len(looks) == 8 + 1, "every two seconds, once afterwards for the proof"


def test_one_that_may_be_silent_for_long_is_looked_at_less_often(gate_of, served, started):
    served.answers["/v1/models"], gate, looks = (503, ""), gate_of(stall=200.0), []
    gather = gate.proof.gather
    gate.proof.gather = lambda: looks.append(1) or gather()
    assert gate(started(deadline=55), True).name == "not_ready"
    assert len(looks) == 5 + 1, "each ten seconds, and what is told in the end is not old"


def test_a_start_that_goes_on_is_no_stall(gate_of, served, started):
    """It logs a line at each look, then answers; nothing else tells that it lives."""
    running, answers = started(), [(503, "")] * 40 + [served.recorded["models"]]

    def answer():
        running.log.append("line %d" % len(running.log))
        return answers.pop(0)

    served.answers["/v1/models"] = answer
    assert gate_of(cpu=True, stall=5.0)(running, True).ok


def test_a_sign_of_life_since_the_last_look_is_no_stall(gate_of, served, started, clock, monkeypatch):
    monkeypatch.setattr(checks_module, "_LOOK", 4.0)
    running, answers = started(), [(503, "")] * 40 + [served.recorded["models"]]

    def answer():
        if int(clock.now - 1000) % 4 == 3:  # a second before each look at the journal
            running.log.append("line %d" % len(running.log))
        return answers.pop(0)

    served.answers["/v1/models"] = answer
    assert gate_of(cpu=True, stall=3.5)(running, True).ok


def test_memory_that_grows_is_no_stall(gate_of, fakes, served, started):
    answers, looks = [(503, "")] * 40 + [served.recorded["models"]], []

    def gather():
        looks.append(len(looks) + 1)
        return fakes.facts((looks[-1],) * 4)

    served.answers["/v1/models"] = lambda: answers.pop(0)
    gate = gate_of(stall=5.0)
    gate.proof.gather = gather
    assert gate(started(), True).ok


def test_a_silent_start_is_a_stall_long_before_the_deadline(gate_of, served, started, clock):
    served.answers["/v1/models"], running = (503, ""), started(deadline=600)
    running.log = ["(Worker pid=1) INFO 01-01 00:00:00 [x.py:1] loading"]
    verdict = gate_of(stall=20.0)(running, True)
    assert verdict.name == "stalled" and 22 <= clock.now - 1000 < 23, "of which the first two were no silence"
    assert "it uses 4.0 GiB of GPU memory" in verdict.message and "loading. Raise stall_timeout" in verdict.message
    assert verdict.evidence == {"used_bytes": 4 * GIB, "silent_seconds": 20}
    running = started(deadline=600)
    verdict = gate_of(cpu=True, stall=20.0)(running, True)
    assert "it uses no GPU" in verdict.message and "Its last line: none." in verdict.message
    assert verdict.evidence == {"used_bytes": 0, "silent_seconds": 20}


@pytest.mark.parametrize(
    "changed, before, deadline, allowed, seconds",
    [
        (True, 1, 7, 60, 7),
        (False, 1, 100, 60, 59),  # started by others: it has as long as a start may take
        (False, 100, 60, 60, 5),
    ],
)
def test_not_ready_in_time(gate_of, served, started, clock, changed, before, deadline, allowed, seconds):
    served.answers["/v1/models"] = (503, "")
    gate = gate_of(cpu=True, allowed=allowed, stall=1000)
    verdict = gate(started(before, deadline), changed)
    assert verdict.name == "not_ready" and round(clock.now - 1000, 6) == seconds
    assert "within %d s of its start: " % (before + seconds) in verdict.message
    assert "it uses no GPU. Its last line: none. Raise timeout" in verdict.message
    running = started(before, deadline)
    running.log = ["loading"]
    verdict = gate_of(allowed=allowed, stall=1000)(running, changed)
    assert "it uses 4.0 GiB of GPU memory. Its last line: loading. Raise timeout" in verdict.message


def test_one_that_died_says_why(gate_of, fakes, served):
    running = fakes.FakeRunning()
    running.is_alive = lambda: False
    running.log = [
        "(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:9] ValueError: Free memory on device cuda:0 is less"
    ]
    verdict = gate_of(fakes.facts((GIB, 0, 0, 0), unit="ollama.service", pid=7))(running, True)
    assert verdict.name == "out_of_memory"
    assert "Free memory on device cuda:0" in verdict.message
    assert "PID 7 (VLLM::Worker, ollama.service) holds 1.0 GiB on GPU 0" in verdict.message
    assert "Free memory on device cuda:0" in verdict.evidence["last_words"] and running.system.synced
    running.log = []
    verdict = gate_of(fakes.facts((GIB, 0, 0, 0), unit="ollama.service", pid=7))(running, True)
    assert verdict.message == "the server ended and said nothing", "memory has nothing to do with it"


def test_one_that_dies_over_the_token(gate_of, fakes, served):
    alive = [True]
    running = fakes.FakeRunning()
    running.is_alive = lambda: alive[0]

    def chat():
        alive[0] = False
        running.log = ["RuntimeError: CUDA out of memory. Tried to allocate 2 GiB"]

    served.answers["/v1/chat/completions"] = chat
    assert gate_of()(running, True).name == "out_of_memory"


OTHER = (200, {"object": "list", "data": [{"id": "other"}]})


@pytest.mark.parametrize("ids, words", [(["a", "b"], "it serves a, b, not tiny"), ([], "it serves no model, not tiny")])
def test_another_model(gate_of, fakes, served, ids, words):
    served.answers["/v1/models"] = (200, {"object": "list", "data": [{"id": name} for name in ids]})
    assert gate_of()(fakes.FakeRunning(), True).message == words


@pytest.mark.parametrize(
    "path, answer, name",
    [
        ("/v1/models", "models-without-key", "unauthorized"),
        ("/v1/models", OTHER, "model_missing"),
        ("/v1/chat/completions", "chat-no-such-model", "model_missing"),
        ("/v1/chat/completions", (500, {"error": {"message": "EngineDeadError"}}), "not_generated"),
        ("/v1/chat/completions", (200, {"choices": []}), "not_generated"),
    ],
)
def test_wrong_answers(gate_of, fakes, served, path, answer, name):
    served.answers[path] = served.recorded[answer] if isinstance(answer, str) else answer
    assert gate_of()(fakes.FakeRunning(), True).name == name


def test_a_token_that_no_engine_counted(gate_of, fakes, served):
    served.answers["/v1/chat/completions"] = served.recorded["chat"]
    assert gate_of()(fakes.FakeRunning(), True).name == "no_progress"
    counted = served.answers["/metrics"]
    for silent in ((404, ""), None):
        for answers in ([silent, silent], [counted(), silent], [silent, counted()]):
            served.answers["/metrics"] = lambda answers=answers: answers.pop(0)
            assert gate_of()(fakes.FakeRunning(), True).ok, "one without statistics tells nothing"


@pytest.mark.parametrize("answer", ["models", "models-without-key", OTHER])
def test_somebody_else_answers(gate_of, fakes, served, answer):
    served.answers["/v1/models"] = served.recorded[answer] if isinstance(answer, str) else answer
    verdict = gate_of()(fakes.FakeRunning(listener=(4711, "nginx")), True)
    assert verdict.name == "port_taken"
    assert "process 4711 (nginx), which does not belong to vllm@chat.service" in verdict.message
    assert verdict.evidence == {"pid": 4711}
    for unknown in (None, (None, "?")):
        assert gate_of()(fakes.FakeRunning(listener=unknown), True).name != "port_taken"
