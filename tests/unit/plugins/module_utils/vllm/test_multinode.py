# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof of a host that shares a model: it waits for the word of the others."""

from __future__ import annotations

import re
import signal

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import supervisor
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import checks
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.gate import gate as make_gate
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import log, multinode

WORKER = [multinode.leader_serves, checks.UsesGpus(), checks.after_change(multinode.all_proven)]
LEADER = [checks.after_change(multinode.all_proven)]

GIB = 1 << 30


@pytest.fixture
def told(fakes, monkeypatch):
    """`told(checks, words, held)`: the verdict of a gate whose program says these, one at each look; `.said` by us."""
    monkeypatch.setattr(multinode, "_POLL", 0.01)
    monkeypatch.setattr(checks, "_MEMORY_DELAY", 0.05)
    monkeypatch.setattr(multinode.os, "kill", lambda pid, number: told.said.append((pid, number, told.heard)))

    def told(made, words, held=(GIB,) * 4, changed=True, alive=lambda: True, timeout=30):
        running, told.said, told.heard, waiting = fakes.FakeRunning(timeout), [], None, list(words)
        running.main_pid = 99
        running.is_alive = alive

        def show(unit):
            told.heard = waiting.pop(0) if waiting[1:] else waiting[0]
            return {} if told.heard is None else {"StatusText": told.heard}

        running.system.show = show
        running.log.append("gpufleet: gpu2 (node 1) is gone: all hosts of this model end, and start together")
        facts = fakes.facts(held)
        gate = make_gate(made, devices=facts["devices"], facts=facts, gather=lambda: facts, explain=log.last_words)
        return gate(running, changed)

    return told


STARTED = "state=started 2 hosts: a, b"
SERVING = "state=serving 2 hosts: a, b, a serves"
PROVEN = "state=proven 2 hosts: a, b, all proven"


def test_a_host_without_an_api_says_so_once_node_0_serves_and_waits_for_all(told):
    verdict = told(WORKER, ["state=waiting waiting for a", STARTED, SERVING, SERVING, PROVEN])
    assert verdict.ok and 0 <= verdict.evidence["ready_seconds"] < 30
    assert told.said == [(99, signal.SIGUSR1, SERVING)]


def test_without_a_change_nobody_is_waited_for(told):
    assert told(WORKER, [STARTED], changed=False).ok
    assert told.said == []


def test_one_that_holds_no_memory_does_not_say_it(told):
    assert told(WORKER, [SERVING], held=(0, 0, 0, 0)).name == "cpu_fallback"
    assert told.said == []


def test_one_that_waits_in_vain(told):
    verdict = told(WORKER, ["state=waiting waiting for a (node 0) at 192.0.2.1:29501, Connection refused"], timeout=0.1)
    assert verdict.name == "not_ready" and "waiting for a (node 0)" in verdict.message and "--forks" in verdict.message
    assert re.search(r"within \d s; its supervisor reports: state=waiting", verdict.message)
    assert "its supervisor reports: nothing" in told(WORKER, [None], timeout=0.1).message


@pytest.mark.parametrize("changed, looks", [(True, 0), (True, 2), (False, 0)])
def test_one_whose_other_hosts_end(told, changed, looks):
    alive = iter([True] * looks)
    verdict = told(WORKER, [STARTED], changed=changed, alive=lambda: next(alive, False))
    assert verdict.name == "peer_lost" and "gpu2 (node 1) is gone" in verdict.message


def test_one_that_is_gone_as_it_is_about_to_be_told(told, monkeypatch):
    def gone(pid, number):
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(multinode.os, "kill", gone)
    assert told(WORKER, [SERVING]).name == "peer_lost"


def test_the_end_of_another_host_while_all_are_waited_for(told):
    assert told(LEADER, [STARTED], alive=lambda: False).name == "peer_lost"


@pytest.mark.parametrize("drain, waited", [(60, 75), (0, 0)])
def test_a_host_without_an_api_lets_the_requests_of_node_0_end(fakes, drain, waited):
    running, limits = fakes.FakeRunning(), []
    running.process = type("Process", (), {"ended_within": lambda self, seconds: limits.append(seconds)})()
    more = {"gather": fakes.facts, "gpus": True, "release": 0, "warn": None}
    hooks = multinode.WorkerStop(endpoint_of=lambda environ: pytest.fail("it has none"), drain=drain, **more)
    hooks.before_stop(running)
    assert limits == [waited] and hooks.pids == running.pids


def test_node_0_is_proven_as_on_one_host_and_then_waits_for_all(told):
    assert told(LEADER, [STARTED, PROVEN]).ok
    assert told.said == [(99, signal.SIGUSR1, None)]
    assert told(LEADER, [STARTED], timeout=0.1).name == "not_ready"
    assert told([*WORKER[1:2], *LEADER], [PROVEN], held=(0, 0, 0, 0)).name == "cpu_fallback" and told.said == []


def test_a_state_is_a_word_at_its_place_and_not_one_in_a_hosts_name(told):
    named = "state=started 2 hosts: llm-serving01, proven"
    verdict = told(WORKER, [named], timeout=0.1)
    assert verdict.name == "not_ready" and told.said == [], "the leader does not serve"
    verdict = told(WORKER, [SERVING, named.replace("proven", "state=proven")], timeout=0.1)
    assert verdict.name == "not_ready" and len(told.said) == 1, "not all are proven"


@pytest.mark.parametrize(
    "status, state",
    [
        ("state=proven 2 hosts: a, b, all proven", "proven"),
        ("state=started ", "started"),
        ("state=started", ""),
        (" state=proven x", ""),
        ("state=Proven x", ""),
        ("states=proven x", ""),
        ("2 hosts: a, b, all proven", ""),
        ("2 hosts: a, state=proven ", ""),
        ("", ""),
    ],
)
def test_the_form_of_a_status_is_fixed(status, state):
    assert multinode.state_of(status) == state


def test_each_state_of_the_supervisor_is_one_of_its_form():
    for state in supervisor.STATES:
        assert multinode.state_of("state=%s anything" % state) == state
