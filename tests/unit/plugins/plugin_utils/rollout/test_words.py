# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan and the receipt, as a person reads them."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import state, words
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.plan import Pool, Unit
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.state import HostState, Planned, State


def row(seconds, basis="default", **more):
    return {
        "service": "ollama",
        "engine": "ollama",
        "why": "X changes",
        "restart": True,
        "predicted": seconds,
        "basis": basis,
        "restarts": [seconds] if "here" in basis else [],
        **more,
    }


def planned():
    return Planned(
        [Unit((name,), ("chat", "embed")) for name in "abc"],
        ["a"],
        {"chat": Pool(("a", "b", "d"), 2), "embed": Pool(("c",), 0)},
        2,
        0,
        None,
        ["d"],
        {"a": [row(2.0, "last restart here")], "b": [row(3.0)], "c": [row(4.0)]},
        [],
        {"chat": [2.0, 1.5]},
    )


def test_the_plan():
    assert words.plan_lines(planned()) == [
        "3 hosts to change, 1 host as declared",
        "1. canary a",
        "   a ollama: X changes",
        "   a  restart, about 2.0 s without it (last restart here)",
        "   pool chat: 2 of 3 ready, at least 2",
        "   pool chat: requests: about 1 are waited for, 1 go to the other hosts (gateways' mean rate)",
        "2. b, c",
        "   b ollama: X changes",
        "   b  restart, about 3.0 s without it (default)",
        "   c ollama: X changes",
        "   c  restart, about 4.0 s without it (default)",
        "   pool chat: 2 of 3 ready, at least 2",
        "   pool chat: requests: about 1 are waited for, 2 go to the other hosts (gateways' mean rate)",
        "   pool embed: 0 of 1 ready, at least 0",
        "   pool embed: about 4.0 s unserved",
    ]


def test_the_receipt_of_a_run_that_failed():
    plan = planned()
    plan.services["b"][0]["renewed"] = 2.5
    found = State("r1", "1", 100.0, plan, least={"chat": 2, "embed": 1})
    found.hosts = {
        "a": HostState("done", measured={"ollama": 2.5}),
        "b": HostState("failed", "crash_loop: it ends", True, {"ollama": 2.0}),
        "c": HostState(),
    }
    receipt = words.receipt(found, 130.0)
    assert (receipt["verdict"], receipt["seconds"], receipt["prediction_error"]) == (
        "failed",
        30.0,
        {"all": 0.33, "measured_here": 0.2, "after_the_canary": 0.25},
    )
    assert receipt["hosts"]["b"] == {
        "status": "failed",
        "why": "crash_loop: it ends",
        "rolled_back": True,
        "services": [row(3.0, renewed=2.5, measured=2.0)],
    }
    assert words.receipt_lines(receipt) == [
        "rollout failed: 1 changed, 1 not touched, 1 failed, 1 as declared; 1 failed (b), and rollout_max_failures allows 0"
        ": crash_loop: it ends",
        "  host  service  predicted  renewed  measured  status",
        "  a     ollama   2.0 s      -        2.5 s     done",
        "  b     ollama   3.0 s      2.5 s    2.0 s     failed   crash_loop: it ends",
        "  c     ollama   4.0 s      -        -         waiting",
        "  pool chat: never fewer than 2 of 3 ready, at least 2 wanted",
        "  pool embed: never fewer than 1 of 1 ready, at least 0 wanted",
        "  predictions were off: all by 33 %, measured here by 20 %, after the canary by 25 %",
    ]


def test_what_the_canary_has_changed_of_the_plan():
    plan = planned()
    plan.services["b"] = [row(3.0, renewed=2.52)]
    plan.services["c"] = [row(4.0, renewed=2.5)]
    assert words.renewed_lines(plan) == ["after the canary: ollama restarts in about 2.5 s on b, c"]


def test_the_receipt_of_a_run_without_a_plan():
    receipt = words.receipt(State("r1", "1", 100.0), 101.0)
    assert words.receipt_lines(receipt) == ["rollout incomplete: 0 as declared"]


def test_a_canary_that_was_not_taken_back_says_what_does_so():
    assert words.not_taken_back("too slow", "a", "", "") == (
        "too slow. It is not taken back, as nothing was recorded there before: declare the previous values"
    )
    assert words.not_taken_back("too slow", "a", "2026-11-30T08:00:00Z", "no such model") == (
        "too slow. It is not taken back (no such model): run ansible-playbook gpufleet.inference.rollback "
        "-e gpufleet_generation=2026-11-30T08:00:00Z --limit a"
    )


def test_every_status_has_a_word():
    for status in ("waiting", "admitted", "applied", "done", "failed", "lost"):
        found = State("r1", "1", 0.0, planned(), {name: HostState(status) for name in "abc"})
        assert "3 " in words.summary(words.receipt(found, 1.0)), status
    assert state.FAILED == ("failed", "lost")
