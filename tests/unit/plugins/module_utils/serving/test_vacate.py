# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two services that swap GPUs: the second one is stopped before the first one starts, and started again on a failure."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import (
    Change,
    Fault,
    ServiceError,
    Verdict,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import agent
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.vacate import Vacated, in_the_way
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import ManagerError

GIB = 1 << 30
A, B = "vllm@a.service", "vllm@b.service"


class FakeSystem:
    def __init__(self):
        self.active = {A: "active", B: "active"}
        self.does, self.failure, self.broken = [], None, False

    def lock(self, unit, limit):
        return nullcontext()

    def show(self, unit):
        if self.broken:
            raise ManagerError("no answer")
        pid = {A: 10, B: 20}[unit] if self.active[unit] == "active" else 0
        return {"ActiveState": self.active[unit], "MainPID": str(pid), "TimeoutStopUSec": "30s", "ControlGroup": unit}

    def environ(self, pid):
        return {"VLLM_API_KEY": "of %d" % pid}

    def process(self, pid):
        return pid

    def stop(self, unit, limit):
        self.does.append(("stop", unit, limit))
        self.active[unit] = "inactive"
        return self.failure

    def start(self, unit, limit):
        self.does.append(("start", unit, limit))
        self.active[unit] = "inactive" if self.failure else "active"
        return self.failure


class Hooks:
    def __init__(self, does, released):
        self.does, self.released = does, released

    def before_stop(self, running):
        self.does.append(("drain", running.unit, running.environ["VLLM_API_KEY"]))

    def after_stop(self):
        self.does.append(("memory is free",))
        return self.released


@pytest.fixture
def host(fakes):
    """Four GPUs: the first two are used by A, the others by B."""
    facts = fakes.facts((GIB, GIB, GIB, GIB), unit=A)
    for device in facts["devices"][2:]:
        device["processes"][0]["unit"] = B
    return SimpleNamespace(system=FakeSystem(), facts=facts, warn=print)


@pytest.fixture
def plan(host):
    def plan(unit, *gpus, released=None):
        devices = [host.facts["devices"][gpu] for gpu in gpus]
        return SimpleNamespace(
            unit=unit,
            service=SimpleNamespace(options={"undrain_command": []}),
            placed=SimpleNamespace(devices=devices),
            declared=SimpleNamespace(hooks=Hooks(host.system.does, released or Verdict("ok"))),
            change=Change(unit=unit, timeout=99),
        )

    return plan


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((2, 3), (0, 1), True),
        ((2, 3), (2, 3), False),  # a shared GPU that both keep, or come to
        ((0, 1), (2,), False),  # it leaves a GPU that nobody wants
        ((1, 2), (3,), True),
        ((), (0, 1), False),
    ],
)
def test_who_is_in_the_way(host, plan, first, second, expected):
    assert in_the_way(plan(B, *second), plan(A, *first), host) is expected


def test_a_gpu_that_both_use_already_is_no_reason(host, plan):
    host.facts["devices"][2]["processes"].append(dict(host.facts["devices"][2]["processes"][0], unit=A))
    assert in_the_way(plan(B, 3), plan(A, 2), host) is False


def test_a_swap_stops_the_second_one_first_and_once(host, plan):
    first, second, vacated = plan(A, 2, 3), plan(B, 0, 1), Vacated(host)
    vacated.make_room(first, [second])
    expected = [("drain", B, "of 20"), ("stop", B, 35), ("memory is free",)]
    assert host.system.does == expected and second.change.was_up
    vacated.make_room(first, [second])
    assert host.system.does == expected and not first.change.was_up


def test_one_that_is_down_is_left_alone(host, plan):
    host.system.active[B] = "failed"
    second, vacated = plan(B, 0, 1), Vacated(host)
    vacated.make_room(plan(A, 2, 3), [second])
    assert host.system.does == [] and not second.change.was_up and vacated.start_again() == ""


def test_after_a_failure_it_runs_again_as_it_was(host, plan):
    vacated = Vacated(host)
    vacated.make_room(plan(A, 2, 3), [plan(B, 0, 1)])
    assert vacated.start_again() == " vllm@b.service runs again."
    assert host.system.does[-1] == ("start", B, 99)
    assert vacated.start_again() == "", "it runs"


def test_one_that_does_not_start_again_is_reported(host, plan):
    vacated = Vacated(host)
    vacated.make_room(plan(A, 2, 3), [plan(B, 0, 1)])
    host.system.failure = "it timed out"
    assert vacated.start_again() == " vllm@b.service DOES NOT START AGAIN: it timed out."
    host.system.broken = True
    assert vacated.start_again() == " vllm@b.service DOES NOT START AGAIN: no answer."


@pytest.fixture
def marks(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "MARKS", str(tmp_path))
    monkeypatch.setattr(agent, "CONFIG", str(tmp_path / "agent.json"))
    (tmp_path / "agent.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    "error, verdict",
    [(Fault("not_drained", "no such pool"), "not_drained"), (OSError(28, "no space", "/run/x"), "not_stopped")],
)
@pytest.mark.parametrize("former, after", [({}, None), ({"verdict": "wrong_gpu"}, "down")])
def test_a_drain_that_fails_ends_the_run_and_is_taken_back(host, plan, marks, error, verdict, former, after):
    other, vacated = plan(B, 0, 1), Vacated(host)

    def fails(running):
        (marks / B).write_text(json.dumps(dict(former, state="drain")))
        raise error

    other.declared.hooks.before_stop = fails
    with pytest.raises(ServiceError, match="vllm@b.service: .*no s") as failed:
        vacated.make_room(plan(A, 2, 3), [other])
    assert failed.value.outcome.verdict.name == verdict
    assert vacated.start_again() == "" and host.system.does == [], "it has never been stopped"
    assert (json.loads((marks / B).read_text())["state"] if (marks / B).exists() else None) == after


def test_one_that_runs_again_and_cannot_be_put_back_is_reported(host, plan, marks):
    other, vacated = plan(B, 0, 1), Vacated(host)
    other.service.options["undrain_command"] = ["/bin/false"]
    other.declared.hooks.before_stop = lambda running: (marks / B).write_text('{"state": "drain", "command": true}')
    vacated.make_room(plan(A, 2, 3), [other])
    said = vacated.start_again()
    assert said.startswith(" vllm@b.service runs again. vllm@b.service is proven, but takes no requests yet: undrain")
    assert agent.marked(B)


def test_memory_that_is_not_released_ends_the_run(host, plan):
    vacated = Vacated(host)
    with pytest.raises(ServiceError, match="vllm@b.service: vram_held: PID 20 holds it") as failed:
        vacated.make_room(plan(A, 2, 3), [plan(B, 0, 1, released=Verdict("vram_held", "PID 20 holds it"))])
    assert failed.value.outcome.verdict.name == "vram_held" and vacated.start_again()


def test_a_systemd_that_does_not_answer_ends_the_run(host, plan):
    host.system.broken = True
    with pytest.raises(ServiceError, match="vllm@b.service: no answer"):
        Vacated(host).make_room(plan(A, 2, 3), [plan(B, 0, 1)])


def test_one_that_does_not_stop_ends_the_run(host, plan):
    host.system.failure = "it did not end within 35 s"
    with pytest.raises(ServiceError, match="not_stopped: it did not end within 35 s"):
        Vacated(host).make_room(plan(A, 2, 3), [plan(B, 0, 1)])
