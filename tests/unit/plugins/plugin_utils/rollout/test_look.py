# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the results of the roles say of a host, and what a gateway says of all."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import haproxy
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import look
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.look import Look

CHANGED = {"changed": True, "restarted": True, "reasons": ["the value in force changes: X"], "downtime_ms": 1940}
QUIET = {"changed": False, "restarted": False, "reasons": [], "msg": "ok"}


def test_one_question_is_enough_for_a_host_that_is_as_declared():
    assert look.look({"rollout_check": {"as_declared": True}, "ollama_result": CHANGED}) == Look("as declared")


@pytest.mark.parametrize(
    ("registered", "why"),
    [
        ({"rollout_reached": {"unreachable": True, "msg": "no\nroute"}}, "unreachable: no route"),
        ({"ollama_result": {"unreachable": True, "msg": "gone"}}, "ollama: gone"),
        ({"rollout_apply": "/tasks.yml"}, "the tasks of rollout_apply register no rollout_result"),
    ],
)
def test_unfit(registered, why):
    assert look.look(registered) == Look("unfit", why)


def test_a_reason_is_one_line():
    assert look.reason({"msg": "claims: \x1b[2JGPU 0\nis taken"}) == "claims: GPU 0 is taken"
    assert look.reason({}) == "a task failed without a message"


@pytest.mark.parametrize(
    "lie",
    [
        "words",
        {"changed": True, "restarted": True, "reasons": 7, "downtime_ms": "long", "service": "\x1b]0;x\x07\nok: all"},
        {"changed": True, "restarted": True, "downtime_ms": float("nan"), "instances": [1]},
        {"changed": True, "restarted": True, "downtime_ms": -5, "instances": {"a\nb.service": "words"}},
    ],
)
def test_a_host_may_answer_anything(lie):
    found = look.look({"ollama_result": lie, "vllm_models_result": {"results": [lie]}})
    assert found.state in ("as declared", "differs") and found.why.isprintable()
    assert all(row["service"].isprintable() and row["why"].isprintable() for row in found.services)
    assert look.measured({"ollama_result": lie}) == {}


def test_what_changes_of_each_service():
    registered = {
        "ollama_result": {
            "changed": True,
            "msg": "x",
            "instances": {"ollama@a.service": CHANGED, "ollama@b.service": QUIET},
        },
        "ollama_models_result": {"changed": True, "msg": "would download m8b"},
        "vllm_result": {"changed": False, "skipped": True},
        "vllm_models_result": {"changed": False, "results": [QUIET, {"changed": True, "msg": "would download q"}]},
    }
    found = look.look(registered)
    assert found.state == "differs"
    assert [(row["service"], row["engine"], row["restart"]) for row in found.services] == [
        ("ollama@a", "ollama", True),
        ("models", "", False),
        ("models", "", False),
    ]
    assert found.why.startswith("ollama@a: the value in force changes: X; models: would download")
    assert look.measured(registered) == {"ollama@a": 1.94}
    assert look.look({"ollama_result": QUIET}) == Look("as declared")


@pytest.mark.parametrize(
    ("recorded", "restarts"),
    [
        ({"ollama.service": [{"downtime_ms": 1900}, {"downtime_ms": 0}, {"downtime_ms": 2100}]}, [1.9, 2.1]),
        ({"other.service": [{"downtime_ms": 1900}]}, []),
        ({"ollama.service": [7, {"downtime_ms": "long"}, {"downtime_ms": float("nan")}, {}]}, []),
        ({"ollama.service": 7}, []),
        ("words", []),
    ],
)
def test_the_host_has_recorded_its_restarts(recorded, restarts):
    registered = {"ollama_result": CHANGED, "rollout_generations": {"generations": recorded}}
    assert look.look(registered).services[0]["restarts"] == restarts


@pytest.mark.parametrize(
    ("figures", "start"),
    [
        ([{"ready_seconds": 3.0}, {"ready_seconds": 4}, {"ready_seconds": "long"}, 7, {}], 4.0),
        ([{"ready_seconds": 0}, {"ready_seconds": float("inf")}, {"ready_seconds": -1}], 0.0),
    ],
)
def test_the_host_has_recorded_its_last_start(figures, start):
    recorded = {"ollama.service": [{"figures": own} for own in figures]}
    registered = {"ollama_result": CHANGED, "rollout_generations": {"generations": recorded}}
    assert look.look(registered).services[0]["start"] == start


@pytest.mark.parametrize(
    ("result", "weights"),
    [
        ({"fit": {"weight_bytes": 10}, "parallel": {"tensor": 4, "pipeline": 2}}, 80),
        ({"fit": {}, "parallel": {"tensor": 4, "pipeline": 2}}, 0),
        ({"fit": {"weight_bytes": "much"}, "parallel": {"tensor": 4, "pipeline": 2}}, 0),
        ({"fit": {"weight_bytes": 1 << 60}, "parallel": {"tensor": 4, "pipeline": 2}}, 0),
        ({"fit": 7, "parallel": []}, 0),
        ({}, 0),
    ],
)
def test_the_bytes_that_a_start_loads(result, weights):
    found = look.look({"vllm_result": {"instances": {"vllm@x.service": dict(CHANGED, **result)}}})
    assert found.services[0]["weights"] == weights


def test_the_unit_of_an_engine_may_have_a_hyphen():
    recorded = {"llama-server.service": [{"downtime_ms": 3000}]}
    registered = {"llama_server_result": CHANGED, "rollout_generations": {"generations": recorded}}
    assert look.look(registered).services[0]["restarts"] == [3.0]


@pytest.mark.parametrize(
    ("recorded", "generation"),
    [
        ({"a.service": [{"accepted": "2026-11-30T08:00:01Z"}], "b.service": [{"accepted": "2026-11-29T08:00:00Z"}]}, 1),
        ({"a.service": [{"accepted": "2026-11-30T08:00:01Z"}, {"accepted": "tomorrow {{ x }}"}, {"accepted": 9}]}, 1),
        ({"a.service": [7]}, 0),
        ({"a.service": "words"}, 0),
        ({}, 0),
        (7, 0),
    ],
)
def test_the_last_accepted_configuration_is_the_way_back(recorded, generation):
    found = look.look({"ollama_result": CHANGED, "rollout_generations": {"generations": recorded}})
    assert found.generation == ("2026-11-30T08:00:01Z" if generation else "")


@pytest.mark.parametrize(
    ("results", "back"),
    [([CHANGED], True), ([QUIET], False), ([CHANGED, dict(CHANGED, failed=True)], False), ([], False)],
)
def test_whether_the_services_were_taken_back(results, back):
    assert look.taken_back(dict(zip(("ollama_result", "vllm_result"), results))) is back


@pytest.mark.parametrize(
    ("failed", "safe"),
    [
        ({"msg": "no such model"}, True),
        ({"restarted": True, "rolled_back": True}, True),
        ({"restarted": True, "rolled_back": False}, False),
        ({"unreachable": True}, False),
        ({"msg": "MODULE FAILURE", "module_stdout": "", "rc": 137}, False),
        ({"msg": "Timed out after 5 second(s).", "timedout": {"period": 5}}, False),
    ],
)
def test_whether_a_host_serves_as_before(failed, safe):
    assert look.safe(failed) is safe


def test_a_host_is_out_of_service_until_its_maintenance_has_ended():
    assert look.out({"rollout_result": {"stopped": True}})
    assert not any(map(look.out, ({}, {"rollout_result": {"ended": True}}, {"rollout_result": "gone"})))


def test_a_host_leaves_the_pools_of_the_engines_that_restart():
    served = {"m8b": {"a": {"ollama"}, "b": {"vllm"}}, "chat": {"a": {"vllm"}}, "the gateways": {"a": {"gateway"}}}
    rows = [{"engine": "ollama", "restart": True}, {"engine": "vllm", "restart": False}]
    assert look.left("a", rows, served) == ["m8b"] and look.left("b", rows, served) == []
    assert look.left("a", [{"engine": "", "restart": True}], served) == ["m8b", "chat", "the gateways"]


def servers(*rows):
    """A gateway's figures: its servers, named as its configuration names them, and their states."""
    lines = ["# HELP haproxy_server_status Current status of the service, per state label value."]
    for pool, host, unit, states in rows:
        name = haproxy.server({"host": host, "unit": unit, "port": 8000})
        for state in ("DOWN", "UP", "DRAIN", "MAINT"):
            words = (pool, name, state, state == states)
            lines.append('haproxy_server_status{proxy="%s",server="%s",state="%s"} %d' % words)
    return "\n".join(lines) + "\n"


def test_who_serves_as_a_gateway_reports_it():
    figures = servers(
        ("m8b", "gpu1", "ollama", "UP"),
        ("m8b", "gpu10", "ollama", "DRAIN"),
        ("m8b", "gpu2.example", "ollama", "UP"),
        ("chat", "gpu2.example", "vllm@chat/1", "MAINT"),
        ("chat", "gpu3", "vllm@chat/1", "UP"),
        ("chat", "größe", "vllm@chat", "UP"),
    )
    hosts = ["gpu1", "gpu10", "gpu2", "gpu2.example", "gpu3", "gpu4", "größe"]
    known = {"gpu1", "gpu10", "gpu2.example", "gpu3", "größe"}
    assert look.serving(figures, hosts) == ({"gpu1", "gpu3", "größe"}, known)
