# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof of a host that shares a model: it waits for the word of the others."""

from __future__ import annotations

import re
import signal

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import gate as gate_module
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import span

GIB = 1 << 30


@pytest.fixture
def told(fakes, monkeypatch):
    """`told(kind, words, held)`: the verdict of a gate whose program says these, one at each look; `.said` by us."""
    monkeypatch.setattr(span, "_LOOK", 0.01)
    monkeypatch.setattr(gate_module, "_MEMORY_DELAY", 0.05)
    monkeypatch.setattr(span.os, "kill", lambda pid, number: told.said.append((pid, number, told.heard)))

    def told(kind, words, held=(GIB,) * 4, changed=True, alive=lambda: True, timeout=30):
        running, told.said, told.heard, waiting = fakes.FakeRunning(timeout), [], None, list(words)
        running.main_pid = 99
        running.is_alive = alive

        def show(unit):
            told.heard = waiting.pop(0) if waiting[1:] else waiting[0]
            return {} if told.heard is None else {"StatusText": told.heard}

        running.system.show = show
        running.log.append("gpufleet: gpu2 (node 1) is gone: all hosts of this model end, and start together")
        facts = fakes.facts(held)
        more = {"stall": 5.0, "token_timeout": 1.0, "allowed": 1.0, "served": "tiny", "facts": facts}
        gate = kind(endpoint=Endpoint("http://127.0.0.1:9"), devices=facts["devices"], gather=lambda: facts, **more)
        return gate(running, changed)

    return told


SERVES, PROVEN = "2 hosts: a, b, a serves", "2 hosts: a, b, all proven"


def test_a_host_without_an_api_says_so_once_node_0_serves_and_waits_for_all(told):
    verdict = told(span.WorkerGate, ["waits for a", "2 hosts: a, b", SERVES, SERVES, PROVEN])
    assert verdict.ok and 0 <= verdict.evidence["ready_seconds"] < 30
    assert told.said == [(99, signal.SIGUSR1, SERVES)]


def test_without_a_change_nobody_is_waited_for(told):
    assert told(span.WorkerGate, ["2 hosts: a, b"], changed=False).ok
    assert told.said == []


def test_one_that_holds_no_memory_does_not_say_it(told):
    assert told(span.WorkerGate, [SERVES], held=(0, 0, 0, 0)).name == "cpu_fallback"
    assert told.said == []


def test_one_that_waits_in_vain(told):
    verdict = told(span.WorkerGate, ["waits for a (node 0) at 192.0.2.1:29501, Connection refused"], timeout=0.1)
    assert verdict.name == "not_ready" and "waits for a (node 0)" in verdict.message and "--forks" in verdict.message
    assert re.search(r"within \d s: waits", verdict.message)
    assert "its program says nothing" in told(span.WorkerGate, [None], timeout=0.1).message


@pytest.mark.parametrize("changed, looks", [(True, 0), (True, 2), (False, 0)])
def test_one_whose_other_hosts_end(told, changed, looks):
    alive = iter([True] * looks)
    verdict = told(span.WorkerGate, ["2 hosts: a, b"], changed=changed, alive=lambda: next(alive, False))
    assert verdict.name == "peer_lost" and "gpu2 (node 1) is gone" in verdict.message


def test_one_that_is_gone_as_it_is_about_to_be_told(told, monkeypatch):
    def gone(pid, number):
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(span.os, "kill", gone)
    assert told(span.WorkerGate, [SERVES]).name == "peer_lost"


def test_the_end_of_another_host_while_all_are_waited_for(told, monkeypatch):
    monkeypatch.setattr(span.VllmGate, "__call__", lambda self, running, changed: gate_module.Verdict("ok"))
    assert told(span.HeadGate, ["2 hosts: a, b"], alive=lambda: False).name == "peer_lost"


@pytest.mark.parametrize("drain, waited", [(60, 75), (0, 0)])
def test_a_host_without_an_api_lets_the_requests_of_node_0_end(fakes, drain, waited):
    running, limits = fakes.FakeRunning(), []
    running.process = type("Process", (), {"ended_within": lambda self, seconds: limits.append(seconds)})()
    more = {"gather": fakes.facts, "gpus": True, "release": 0, "warn": None}
    hooks = span.WorkerStopHooks(endpoint_of=lambda environ: pytest.fail("it has none"), drain=drain, **more)
    hooks.before_stop(running)
    assert limits == [waited] and hooks.pids == running.pids


def test_node_0_is_proven_as_on_one_host_and_then_waits_for_all(told, monkeypatch):
    monkeypatch.setattr(span.VllmGate, "__call__", lambda self, running, changed: gate_module.Verdict("ok"))
    assert told(span.HeadGate, ["2 hosts: a, b", PROVEN]).ok
    assert told.said == [(99, signal.SIGUSR1, None)]
    assert told(span.HeadGate, ["2 hosts: a, b"], timeout=0.1).name == "not_ready"
    monkeypatch.setattr(span.VllmGate, "__call__", lambda self, running, changed: gate_module.Verdict("liar"))
    assert told(span.HeadGate, [PROVEN]).name == "liar" and told.said == []
