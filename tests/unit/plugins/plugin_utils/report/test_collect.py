# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the page shows of a host and of a rollout, from registered results."""

from __future__ import annotations

import json
from typing import Any, Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils.report import collect

GIB = 2**30
SECRET = "hunter2"


def device(index: int = 0, used: int = 40, health: Any = None, **more: Any) -> Dict[str, Any]:
    return {
        "index": index,
        "name": "NVIDIA H200",
        "memory": {"used_bytes": used * GIB, "total_bytes": 141 * GIB},
        "temperature": {"gpu_celsius": 40, "slowdown_celsius": 89},
        "health": health or {"ok": True, "fit": True, "lost": False, "reasons": []},
        "processes": [{"unit": "vllm@chat.service", "used_bytes": used * GIB}],
        **more,
    }


def read(*devices: Dict[str, Any], **facts: Any) -> Dict[str, Any]:
    return {"ansible_facts": {"gpu": {"devices": list(devices), "findings": [], "fault": None, **facts}}}


def result(**more: Any) -> Dict[str, Any]:
    return {"changed": False, "verdict": "ok", "msg": "ok · 4× H200", "version": "0.32.0", **more}


def instances(**more: Any) -> Dict[str, Any]:
    return {"vllm_result": {"instances": {"vllm@chat.service": result(**more)}}}


def host(variables: Dict[str, Any], **declared: List[str]) -> Dict[str, Any]:
    return collect.host("gpu1", {"report_gpus": read(device()), **variables}, declared)


def test_a_healthy_host_has_no_problem() -> None:
    found = host({"rollout_check": {"as_declared": True, "registered": instances()}})
    assert (found["level"], found["problems"]) == ("good", [])
    (service,) = found["services"]
    assert [service[key] for key in ("unit", "engine", "verdict", "state", "version")] == [
        *("vllm@chat", "vllm", "ok", "as declared", "0.32.0")
    ]
    (gpu,) = found["gpus"]
    assert (gpu["name"], gpu["used"], gpu["celsius"], gpu["health"]) == ("H200", 40 * GIB, 40, "fit")


def test_a_host_that_does_not_answer() -> None:
    said = 'Data could not be sent to remote host "h" over ssh: ssh: connect to host h port 22: No route to host'
    found = collect.host("gpu1", {"report_gpus": {"unreachable": True, "msg": said}}, {})
    assert found["level"] == "bad" and found["gpus"] == [] and found["services"] == []
    assert [(one["kind"], one["text"]) for one in found["problems"]] == [("unreachable", "No route to host")]


@pytest.mark.parametrize(
    ("health", "expected"),
    [
        ({"ok": True, "fit": True, "lost": False}, "fit"),
        ({"ok": False, "fit": True, "lost": False}, "slow"),
        ({"ok": False, "fit": False, "lost": False}, "unfit"),
        ({"ok": False, "fit": False, "lost": True}, "lost"),
    ],
)
def test_the_health_of_a_gpu(health: Any, expected: str) -> None:
    assert host({"report_gpus": read(device(health=health))})["gpus"][0]["health"] == expected


@pytest.mark.parametrize(
    ("effect", "kind", "level"), [("unfit", "gpu", "bad"), ("slow", "slow", "warn"), ("note", "note", "good")]
)
def test_a_finding_is_a_problem_with_an_action(effect: str, kind: str, level: str) -> None:
    finding = {"gpu": 3, "check": "remap_pending", "effect": effect, "text": "rows", "remedy": "reset the GPU"}
    found = host({"report_gpus": read(device(), findings=[finding])})
    assert found["problems"] == [
        {"kind": kind, "place": "GPU 3", "text": "remap_pending: rows", "action": "reset the GPU"}
    ]
    assert found["level"] == level


def test_a_fault_of_the_host_is_a_problem_with_its_remedy() -> None:
    finding = {"gpu": None, "check": "driver_hang", "effect": "unfit", "text": "no answer", "remedy": "reboot"}
    found = host({"report_gpus": read(findings=[finding])})
    assert found["problems"] == [{"kind": "gpu", "place": "GPUs", "text": "driver_hang: no answer", "action": "reboot"}]


def test_drift_names_variables_and_not_their_values() -> None:
    values = {"HF_TOKEN": {"declared": SECRET, "on_disk": None, "running": None}}
    why = ["the value in force changes: HF_TOKEN"]
    found = host(instances(changed=True, restarted=True, reasons=why, drift=values))
    assert found["services"][0]["drift"] == ["HF_TOKEN"] and found["services"][0]["state"] == "differs"
    action = "run site.yml; it restarts the service"
    assert found["problems"] == [{"kind": "drift", "place": "vllm@chat", "text": why[0], "action": action}]
    assert found["level"] == "warn" and SECRET not in json.dumps(found)


def test_what_differs_and_is_no_service() -> None:
    row = {"service": "models", "why": "would download m8b", "restart": False}
    found = host({**instances(), "rollout_look": {"state": "differs", "services": [row]}})
    assert [(one["kind"], one["place"]) for one in found["problems"]] == [("drift", "models")]


@pytest.mark.parametrize(
    "more", [{"failed": True, "msg": "crash_loop: it ends"}, {"verdict": "crash_loop", "msg": "crash_loop: it ends"}]
)
def test_a_service_that_fails(more: Any) -> None:
    found = host({**instances(**more), "rollout_look": {"state": "unfit", "msg": "vllm@chat: crash_loop"}})
    assert [(one["kind"], one["text"]) for one in found["problems"]] == [("service", "crash_loop: it ends")]


def test_a_role_that_fails_before_its_service() -> None:
    found = host({"rollout_look": {"state": "unfit", "msg": "driver_mismatch: reboot"}})
    assert [(one["kind"], one["text"]) for one in found["problems"]] == [("service", "driver_mismatch: reboot")]


def test_the_memory_of_a_model_by_gpu() -> None:
    other = device(2, processes=[{"unit": "ollama.service", "used_bytes": GIB}])
    read_gpus = {"report_gpus": read(device(0, 40), device(1, 39), other)}
    found = collect.host("gpu1", {**read_gpus, **instances()}, {"vllm@chat": ["qwen", "adapter"]})
    (model,) = found["services"][0]["models"]
    assert model == {"name": "qwen, adapter", "held": {"0": 40 * GIB, "1": 39 * GIB}, "context": None}


def test_ollama_says_itself_which_models_it_holds() -> None:
    loaded = [{"name": "m8b", "held_bytes": {"0": 5 * GIB}, "context": 4096}]
    found = host(
        {"ollama_result": result(), "report_ollama": {"results": [{"unit": "ollama.service", "loaded": loaded}]}}
    )
    assert found["services"][0]["models"] == [{"name": "m8b", "held": {"0": 5 * GIB}, "context": 4096}]


def test_the_last_proof_is_the_newest_generation() -> None:
    kept = [
        {"number": number, "accepted": "2026-11-30T10:0%d:00Z" % number, "downtime_ms": 1240, "figures": {}}
        for number in (1, 2)
    ]
    found = host({**instances(), "report_generations": {"generations": {"vllm@chat.service": kept}}})
    newest, oldest = found["services"][0]["generations"]
    assert (newest["number"], newest["unserved"], oldest["number"]) == (2, 1.24, 1)


def test_a_service_that_the_inventory_no_longer_has_is_unknown() -> None:
    found = host({"report_generations": {"generations": {"ollama.service": [{"number": 1, "figures": {}}]}}})
    assert [(one["unit"], one["state"]) for one in found["services"]] == [("ollama", "unknown")]
    assert found["problems"] == []


@pytest.mark.parametrize(
    "rubbish", [None, [], "x", 7, {"ansible_facts": "x"}, {"ansible_facts": {"gpu": {"devices": 7}}}]
)
def test_answers_of_any_type(rubbish: Any) -> None:
    names = ("report_gpus", "report_generations", "report_ollama", "rollout_check", "rollout_look", "vllm_result")
    json.dumps(collect.host("gpu1", dict.fromkeys(names, rubbish), {}))


def test_nothing_but_named_values_is_taken() -> None:
    """A secret anywhere else does not reach the page."""
    options = {"api_key": SECRET, "environment": {"HF_TOKEN": SECRET}}
    more = {"environment": options, "diff": {"before": SECRET}, "invocation": options, "evidence": options}
    kept = [{"number": 1, "accepted": "now", "figures": {"other": SECRET}, "options": options}]
    variables = {
        **instances(**more),
        "report_gpus": dict(read(device(secret=SECRET), driver={"version": "1", "x": SECRET}), invocation=options),
        "report_generations": {"generations": {"vllm@chat.service": kept}},
        "rollout_check": {"as_declared": False, "invocation": options},
        "vllm_api_key": SECRET,
    }
    assert SECRET not in json.dumps(host(variables))


def test_a_receipt() -> None:
    rows = [{"service": "ollama", "predicted": 2.1, "measured": 1.9, "why": "x", "basis": "default"}]
    receipt = {
        "run": "20261130T081400-abc",
        "verdict": "failed",
        "hosts": {"gpu1": {"status": "failed", "why": "not_ready", "rolled_back": True, "services": rows}},
        "as_declared": ["gpu2"],
        "prediction_error": {"all": 0.1, "measured_here": None},
        "pools": {"m8b": {"hosts": 4, "minimum": 3, "least_ready": 3}},
    }
    found = collect.rollout(receipt)
    (own,) = found["hosts"]
    assert found["error"] == 0.1
    assert own["services"] == [{"service": "ollama", "predicted": 2.1, "measured": 1.9}] and own["rolled_back"]
    assert found["pools"] == [{"name": "m8b", "hosts": 4, "minimum": 3, "least_ready": 3}] and found["as_declared"] == 1
