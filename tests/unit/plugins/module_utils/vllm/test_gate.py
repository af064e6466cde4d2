# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the proof of vLLM has besides the checks of any engine: whether its engine is asleep."""

from __future__ import annotations

import threading

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import agent
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.gate import gate as make_gate
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import sleep
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.gate import asleep, awake, noted, unless_asleep

# --- sleep


class Hooks:
    """Remembers what it was asked to drain."""

    def __init__(self):
        self.drained = []

    def before_stop(self, running):
        self.drained.append(running.unit)


@pytest.fixture
def look(fakes):
    """`look(checks, changed)`: the verdict, the figures, and whether a check was made that an engine must be awake for."""

    def look(checks, changed):
        made, facts = [], {"devices": [], "count": 0}
        checks = [check or unless_asleep(made.append) for check in checks]
        gate = make_gate(checks, devices=[], facts=facts, gather=lambda: facts, explain=None)
        return gate(fakes.FakeRunning(), changed), gate.proof.figures, bool(made)

    return look


@pytest.fixture
def asked(web, look):
    """`asked(asleep)` looks at an engine that is declared awake."""

    def asked(asleep, changed=True, admin=True):
        return look([awake(Endpoint(web.url), "tiny", asleep == "accept", admin, 5), None], changed)

    return asked


@pytest.fixture
def bed(web, look, monkeypatch, tmp_path):
    """`bed(changed, weights)` looks at an engine that is declared asleep; `bed.hooks` drains it."""

    def bed(changed, weights=0):
        endpoint = Endpoint(web.url)
        return look([noted(endpoint), None, asleep(endpoint, weights, bed.hooks, 5)], changed)

    bed.hooks, bed.config, bed.marks = Hooks(), tmp_path / "agent.json", tmp_path / "marks"
    monkeypatch.setattr(agent, "CONFIG", str(bed.config))
    monkeypatch.setattr(agent, "MARKS", str(bed.marks))
    return bed


GAUGE = 'vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="%s"} %.1f\n'
SLEEPS = {"/is_sleeping": (200, {"is_sleeping": True})}
GAUGES = {"/metrics": (200, GAUGE % ("awake", 0) + GAUGE % ("weights_offloaded", 1) + GAUGE % ("discard_all", 0))}
DEEP = {
    **SLEEPS,
    "/metrics": (200, GAUGE % ("awake", 0) + GAUGE % ("weights_offloaded", 0) + GAUGE % ("discard_all", 1)),
}
WAKES = {"/is_sleeping": (200, {"is_sleeping": False}), **GAUGES}


def switch(web, path, state):
    """From now on a POST to this path changes what the server says of its sleep."""

    def answer():
        web.answers["/is_sleeping"] = (200, {"is_sleeping": state})
        return 200, {}

    web.answers[path] = answer


@pytest.mark.parametrize("answers", [SLEEPS, GAUGES, {"/is_sleeping": None, **GAUGES}])
def test_one_that_sleeps_is_a_fault_that_the_next_look_repairs(asked, web, answers):
    web.answers.update(answers)
    verdict, figures, made = asked("wake", changed=False)
    assert (verdict.name, verdict.remedy) == ("asleep", "proof") and not made
    switch(web, "/wake_up", False)
    verdict, figures, made = asked("wake", changed=True)
    assert verdict.ok and made and "asleep" not in figures


@pytest.mark.parametrize("changed", [True, False])
def test_one_that_may_sleep_is_left_alone(asked, web, changed):
    web.answers.update(GAUGES)
    verdict, figures, made = asked("accept", changed)
    assert verdict.ok and figures["asleep"] is True
    assert not made, "a request would wait indefinitely"


@pytest.mark.parametrize(("answers", "admin"), [(DEEP, True), (GAUGES, False)], ids=["level 2", "no /wake_up"])
def test_one_that_cannot_be_woken_is_restarted(asked, web, answers, admin):
    web.answers.update(answers)
    for changed in (True, False):
        verdict, _figures, made = asked("wake", changed, admin)
        assert (verdict.name, verdict.remedy) == ("asleep", "restart") and not made


@pytest.mark.parametrize(
    ("answer", "said"),
    [((500, {"error": {"message": "CUDA error"}}), "answers 500: CUDA error"), ((200, {}), "did not wake")],
)
def test_one_that_does_not_wake(asked, web, answer, said):
    web.answers.update(SLEEPS)
    web.answers["/wake_up"] = answer
    verdict, _figures, _made = asked("wake")
    assert verdict.name == "asleep" and said in verdict.message and not verdict.remedy


def test_one_that_is_to_sleep_answers_once_then_its_requests_end_and_it_falls_asleep(bed, web):
    web.answers.update(WAKES)
    verdict, figures, made = bed(changed=False)
    assert (verdict.name, verdict.remedy) == ("awake", "proof") and bed.hooks.drained == []
    switch(web, "/sleep?level=1", True)
    verdict, figures, made = bed(changed=True)
    assert verdict.ok and made and figures["asleep"] is True and len(bed.hooks.drained) == 1
    for changed in (True, False):
        verdict, figures, made = bed(changed)
        assert verdict.ok and not made and len(bed.hooks.drained) == 1, "it sleeps already"
    assert not bed.marks.exists(), "this host has no gateways"


def test_the_gateways_send_it_no_requests_while_it_sleeps(bed, web, fakes):
    unit = fakes.FakeRunning().unit
    bed.config.write_text('{"services": {"%s": {}}}' % unit)
    web.answers.update(SLEEPS)
    verdict, _figures, _made = bed(changed=False)
    assert (verdict.name, verdict.remedy) == ("awake", "proof") and "gateways may send requests" in verdict.message
    assert bed(changed=True)[0].ok
    assert '"drain"' in (bed.marks / unit).read_text()
    assert bed(changed=False)[0].ok


def test_weights_that_the_host_has_no_room_for(bed, web, monkeypatch):
    monkeypatch.setattr(sleep, "host_memory", lambda: 10 << 30)
    web.answers.update(WAKES)
    for changed in (True, False):
        verdict, _figures, _made = bed(changed, weights=11 << 30)
        assert verdict.name == "host_memory" and not verdict.remedy and bed.hooks.drained == []
        assert "11.0 GiB of weights in the host's memory, of which 10.0 GiB are free" in verdict.message
    assert bed(False, weights=9 << 30)[0].name == "awake"


def test_one_that_does_not_fall_asleep(bed, web):
    web.answers.update({**WAKES, "/sleep?level=1": (404, {"detail": "Not Found"})})
    verdict, _figures, _made = bed(changed=True)
    assert verdict.name == "awake" and "/sleep?level=1 answers 404" in verdict.message


def test_the_share_of_one_that_sleeps():
    devices = [{"memory": {"total_bytes": 30 << 30}}, {"memory": {"total_bytes": 60 << 30}}]
    assert sleep.share(0.9, devices) == pytest.approx(0.05)
    assert sleep.share(0.01, devices) == 0.01
    assert sleep.host_memory() > 0


@pytest.mark.parametrize(
    "answers", [WAKES, {}, {"/is_sleeping": None, "/metrics": None}, {"/metrics": (200, "x" * 99)}]
)
def test_one_that_is_awake_or_does_not_say(asked, web, answers):
    web.answers.update(answers)
    verdict, figures, made = asked("wake")
    assert verdict.ok and "asleep" not in figures and made


def test_one_that_was_restarted_meanwhile_is_asked_for_its_work(web, fakes):
    """The same gate looks twice: at the engine that slept, and at the new one."""
    made, facts = [], {"devices": [], "count": 0}
    checks = [awake(Endpoint(web.url), "tiny", True, True, 5), unless_asleep(made.append)]
    gate = make_gate(checks, devices=[], facts=facts, gather=lambda: facts, explain=None)
    web.answers.update(SLEEPS)
    assert gate(fakes.FakeRunning(), False).ok and not made
    web.answers.update(WAKES)
    assert gate(fakes.FakeRunning(), True).ok and made


def test_a_dead_engine_that_is_asked_whether_it_sleeps_is_not_waited_for(web):
    given_up = threading.Event()
    web.answers["/is_sleeping"] = lambda: given_up.wait(60) and (200, {})
    web.answers["/metrics"] = lambda: given_up.wait(60) and (200, "")
    assert sleep.level(Endpoint(web.url), 0.2) == 0
    given_up.set()
