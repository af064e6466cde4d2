# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the proof of vLLM has besides the checks of any engine: whether its engine is asleep."""

from __future__ import annotations

import threading

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.gate import gate as make_gate
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import sleep
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.gate import awake, unless_asleep

# --- sleep


@pytest.fixture
def asked(web, fakes):
    """`asked(asleep)`: the verdict, the figures, and whether the check that an engine must be awake for was made."""

    def asked(asleep, changed=True):
        made, facts = [], {"devices": [], "count": 0}
        checks = [awake(Endpoint(web.url), "tiny", asleep == "accept"), unless_asleep(made.append)]
        gate = make_gate(checks, devices=[], facts=facts, gather=lambda: facts, explain=None)
        return gate(fakes.FakeRunning(), changed), gate.proof.figures, bool(made)

    return asked


GAUGE = 'vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="%s"} %.1f\n'
SLEEPS = {"/is_sleeping": (200, {"is_sleeping": True})}
GAUGES = {"/metrics": (200, GAUGE % ("awake", 0) + GAUGE % ("weights_offloaded", 1))}
WAKES = {"/is_sleeping": (200, {"is_sleeping": False}), **GAUGES}


@pytest.mark.parametrize("changed", [True, False])
@pytest.mark.parametrize("answers", [SLEEPS, GAUGES, {"/is_sleeping": None, **GAUGES}])
def test_one_that_sleeps(asked, web, answers, changed):
    web.answers.update(answers)
    verdict, figures, made = asked("refuse", changed)
    assert verdict.name == "asleep" and not verdict.remedy, "nothing is restarted for it"
    assert "POST %s/wake_up" % web.url in verdict.message and not made
    verdict, figures, made = asked("accept", changed)
    assert verdict.ok and figures["asleep"] is True
    assert not made, "a request would wait indefinitely"


@pytest.mark.parametrize(
    "answers", [WAKES, {}, {"/is_sleeping": None, "/metrics": None}, {"/metrics": (200, "x" * 99)}]
)
def test_one_that_is_awake_or_does_not_say(asked, web, answers):
    web.answers.update(answers)
    verdict, figures, made = asked("refuse")
    assert verdict.ok and "asleep" not in figures and made


def test_one_that_was_restarted_meanwhile_is_asked_for_its_work(web, fakes):
    """The same gate looks twice: at the engine that slept, and at the new one."""
    made, facts = [], {"devices": [], "count": 0}
    checks = [awake(Endpoint(web.url), "tiny", True), unless_asleep(made.append)]
    gate = make_gate(checks, devices=[], facts=facts, gather=lambda: facts, explain=None)
    web.answers.update(SLEEPS)
    assert gate(fakes.FakeRunning(), False).ok and not made
    web.answers.update(WAKES)
    assert gate(fakes.FakeRunning(), True).ok and made


def test_a_dead_engine_that_is_asked_whether_it_sleeps_is_not_waited_for(web):
    given_up = threading.Event()
    web.answers["/is_sleeping"] = lambda: given_up.wait(60) and (200, {})
    web.answers["/metrics"] = lambda: given_up.wait(60) and (200, "")
    assert sleep.asleep(Endpoint(web.url), 0.2) is False
    given_up.set()
