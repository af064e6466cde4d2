# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a fleet, from the results of the roles, as data and as a person reads it."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import overview
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.plan import Pool, Unit
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.state import Planned

RESULT = {
    "service": "ollama",
    "changed": True,
    "restarted": True,
    "drift": {"OLLAMA_KEEP_ALIVE": {"declared": "5m", "on_disk": "9m", "running": None, "file": "/e/o.conf:2"}},
    "shadowed": [{"name": "A", "declared": "1", "effective": "2", "file": "/e/late.conf", "line": 3}],
    "visible_devices": "0,1",
    "gpus": [{"index": 0}, {"index": 1}],
}
GPU = {
    "findings": [
        {"effect": "unfit", "action": "replace", "line": "GPU 1: remap_failed: its rows \x1b[31mfailed"},
        {"effect": "note", "action": "look", "line": "GPU 0: hot: it is warm"},
        {"effect": "note", "action": "reboot", "line": "xid_79: Xid 79"},
    ]
}
ROW = {
    "service": "ollama",
    "engine": "ollama",
    "why": "X changes",
    "restart": True,
    "predicted": 4.0,
    "basis": "default",
}


def changing():
    registered = {"ollama_result": RESULT, "ansible_facts": {"gpu": GPU}}
    return overview.host_row(registered, {"state": "differs", "msg": "X changes"}, [ROW], {"ollama": 11434, "other": 1})


def planned():
    pools = {"chat": Pool(("a", "b"), 1), "embed": Pool(("a",), 0)}
    return Planned([Unit(("a",), ("chat", "embed"))], [], pools, 4, 0, None, ["b"], {"a": [ROW]}, [])


def test_what_a_host_gets_and_risks():
    assert changing() == {
        "state": "differs",
        "why": "X changes",
        "services": [dict(ROW, changes=True, drift=RESULT["drift"], gpus=[0, 1], ports=[11434])],
        "risks": [
            "GPU 1: remap_failed: its rows failed",
            "xid_79: Xid 79",
            "A is declared '1', but /e/late.conf:3 sets '2'",
        ],
    }


def test_a_host_that_is_as_declared_keeps_its_claims():
    check = {"as_declared": True, "registered": {"ollama_result": dict(RESULT, changed=False, drift={}, shadowed=[])}}
    found = overview.host_row({"rollout_check": check}, {"state": "as declared", "msg": ""}, [], {"ollama": 11434})
    row = found["services"][0]
    assert (row["changes"], row["restart"], row["gpus"], row["ports"]) == (False, False, [0, 1], [11434])
    assert found["risks"] == []


def test_the_verdict_and_the_text():
    same = {"state": "as declared", "why": "", "services": [], "risks": []}
    found = overview.overview({"a": changing(), "b": same}, planned(), "", ["gw"])
    assert found["verdict"] == "changes" and found["steps"][0]["pools"]["embed"]["seconds"] == 4.0
    assert overview.lines(found) == [
        "plan: changes; 1 to change, 1 as declared",
        "  risk: a: GPU 1: remap_failed: its rows failed",
        "  risk: a: xid_79: Xid 79",
        "  risk: a: A is declared '1', but /e/late.conf:3 sets '2'",
        "  risk: gw: this gateway does not answer",
        "  risk: a: pool embed has no other host: about 4.0 s unserved",
        "  host  service  change  restart  unserved  GPUs  port   why",
        "  a     ollama   yes     yes      4.0 s     0,1   11434  X changes",
        "      OLLAMA_KEEP_ALIVE: declared 5m, on disk 9m, running nothing (/e/o.conf:2)",
        "  b     -        no      no       -         -     -",
        "  step 1: a",
        "    pool chat: 1 of 2 ready, at least 1",
        "    pool embed: 0 of 1 ready, at least 0",
        "    pool embed: about 4.0 s unserved",
    ]
    assert overview.overview({"b": same}, planned(), "")["verdict"] == "nothing"


def test_one_host_that_cannot_be_changed_makes_the_plan_impossible():
    unfit = overview.host_row({}, {"state": "unfit", "msg": "no route"}, [], {})
    found = overview.overview({"a": changing(), "b": unfit}, planned(), "")
    assert (found["verdict"], found["reason"]) == ("impossible", "b cannot be changed: no route")
    assert {"host": "b", "text": "cannot be changed: no route"} in found["risks"]
    assert overview.overview({"a": changing()}, None, "pool chat is too small")["verdict"] == "impossible"


def test_gpus_that_a_service_did_not_choose_are_none_of_its_claims():
    gpus = [{"index": 0}]
    registered = {
        "ollama_result": {"visible_devices": None, "gpus": gpus},
        "vllm_result": {"instances": {"chat": {"gpus": gpus}}},
    }
    found = overview.host_row(registered, {"state": "as declared", "msg": ""}, [], {})
    assert {row["service"]: row["gpus"] for row in found["services"]} == {"ollama": [], "chat": [0]}


def test_what_a_host_answers_may_be_of_any_type():
    odd = {
        "ansible_facts": {"gpu": {"findings": [1, None]}},
        "vllm_result": {"instances": {"v": {"gpus": "x", "drift": [1]}, "w": 3}},
    }
    found = overview.host_row(odd, {"state": "as declared", "msg": ""}, [], {})
    assert found["risks"] == [] and [row["service"] for row in found["services"]] == ["v"]
