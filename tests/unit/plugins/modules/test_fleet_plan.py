# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook plan over the local connection, with a pretended service on each host: its exit status and its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pretended_fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def planned(fleet: Fleet, rc: int, *words: str, **variables: Any) -> str:
    output = fleet.run(*words, rc=rc, playbook="plan", plan_output=str(fleet.folder / "plan.json"), **variables)
    assert fleet.log() == [] and not fleet.state.exists()
    return " ".join(output.split())


def test_changes_are_printed_and_written(fleet: Fleet) -> None:
    said = planned(fleet, 0)
    assert "plan: changes; 4 to change, 0 as declared" in said
    assert "h1 service yes yes 10.0 s - - old becomes new" in said and "step 1: canary h1" in said
    assert "pool chat: 2 of 3 ready, at least 2" in said
    written = fleet.folder / "plan.json"
    assert written.stat().st_mode & 0o777 == 0o600
    found = json.loads(written.read_text())
    assert found["verdict"] == "changes" and found["risks"] == []
    assert found["steps"][0] == {
        "hosts": ["h1"],
        "canary": True,
        "pools": {"chat": {"ready": 2, "hosts": 3, "minimum": 2, "seconds": 10.0}},
    }
    assert found["hosts"]["h4"]["services"][0]["predicted"] == 10.0
    assert "plan: changes; 4 to change" in planned(fleet, 2, plan_exit_status=True)


def test_nothing_to_do(fleet: Fleet) -> None:
    said = planned(fleet, 0, want="old", plan_exit_status=True)
    assert "plan: nothing; 0 to change, 4 as declared" in said


@pytest.mark.parametrize(
    ("asked", "fault", "variables", "why"),
    [
        (False, "unfit", {}, "impossible: h4 cannot be changed: GPU 0 fell off the bus"),
        (True, "gone", {}, "no route to h4"),
        (False, "", {"rollout_min_ready": {"embed": 3}}, "impossible: pool embed has 3 hosts, of which 3 must serve"),
        (True, "", {"rollout_width": 0}, "impossible: rollout_width: 0 is 0, and must be at least 1"),
        (False, "", {"plan_output": "/proc/none/plan.json"}, "the plan cannot be written"),
    ],
)
def test_what_is_impossible(fleet: Fleet, asked: bool, fault: str, variables: Any, why: str) -> None:
    if fault:
        fleet.fault("h4", fault)
    output = fleet.run(rc=4, playbook="plan", plan_exit_status=asked, **variables)
    assert why in " ".join(output.split()).replace("''", "'") and fleet.log() == []


def test_an_inventory_without_our_groups(fleet: Fleet) -> None:
    fleet.inventory.write_text("others:\n  hosts:\n    h1:\n")
    assert "nothing to do: of the hosts of this run" in fleet.run(rc=2, playbook="plan")


def test_an_exit_status_that_is_neither_true_nor_false(fleet: Fleet) -> None:
    said = " ".join(fleet.run(rc=4, playbook="plan", plan_exit_status="maybe").split()).replace("''", "'")
    assert "plan_exit_status is 'maybe'; expected true or false" in said and "plan:" not in said
