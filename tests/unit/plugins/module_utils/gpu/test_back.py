# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the GPUs of a host are as before work on it."""

from __future__ import annotations

import json
from typing import Any, Dict, Optional, Sequence

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.back import missing, snapshot


def facts(uuids: Sequence[str] = ("GPU-a", "GPU-b"), version: str = "580.95.05", **more: Any) -> Dict[str, Any]:
    devices = [{"index": n, "uuid": uuid, "pci_bus_id": "0000:0%d:00.0" % n} for n, uuid in enumerate(uuids)]
    return {"devices": devices, "fault": None, "findings": [], "driver": {"version": version}, **more}


def finding(check: str, action: str = "look", gpu: Optional[int] = 1) -> Dict[str, Any]:
    return {"gpu": gpu, "check": check, "effect": "note", "action": action, "text": "…"}


FAULT = {"code": "driver_mismatch", "text": "580 and 570", "remedy": "reboot"}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {}, []),
        ({}, {"uuids": ["GPU-b", "GPU-a", "GPU-c"]}, []),
        ({"fault": FAULT}, {"fault": FAULT}, []),
        ({"findings": [finding("pcie_narrow")]}, {"findings": [finding("pcie_narrow")]}, []),
        ({}, {"findings": [finding("xid_43", "none"), finding("xid_31", "restart")]}, []),
        ({}, {"fault": FAULT}, ["driver_mismatch: 580 and 570 (reboot)"]),
        ({}, {"findings": [finding("pcie_narrow")]}, ["GPU 0000:01:00.0: pcie_narrow, which is new"]),
        ({}, {"findings": [finding("xid_79", "reboot")]}, ["GPU 0000:01:00.0: xid_79, which is new"]),
        (
            {},
            {"uuids": ["GPU-a"]},
            ["1 GPUs, and 2 before", "missing: GPU-b (0000:01:00.0); if they were replaced, say so with new_gpus"],
        ),
        (
            {"uuids": ["GPU-a", None]},
            {"uuids": ["GPU-c", "GPU-b"]},
            ["missing: GPU-a (0000:00:00.0); if they were replaced, say so with new_gpus"],
        ),
    ],
)
def test_what_is_not_as_before(before: Dict[str, Any], after: Dict[str, Any], said: Sequence[str]) -> None:
    kept = json.loads(json.dumps(snapshot(facts(**before))))
    assert missing(kept, facts(**after), False, None) == said


def test_replaced_gpus_count() -> None:
    kept = snapshot(facts())
    assert missing(kept, facts(["GPU-c", "GPU-d"]), True, None) == []
    assert missing(kept, facts(["GPU-c"]), True, None) == ["1 GPUs, and 2 before"]


@pytest.mark.parametrize(("driver", "right"), [("580", True), ("580.95", True), ("580.9", False), ("590", False)])
def test_the_driver_is_as_expected(driver: str, right: bool) -> None:
    said = [] if right else ["the driver is 580.95.05; expected %s" % driver]
    assert missing(snapshot(facts()), facts(), False, driver) == said


@pytest.mark.parametrize("after", [[1], [0, 1]])
def test_another_gpu_that_is_lost_is_new(after: Sequence[int]) -> None:
    def lost(*gpus: int) -> Dict[str, Any]:
        fault = {"code": "gpu_lost", "text": "…", "remedy": "reboot"}
        return facts(fault=fault, findings=[finding("gpu_lost", gpu=gpu) for gpu in gpus])

    assert missing(snapshot(lost(0)), lost(*after), False, None) == ["GPU 0000:01:00.0: gpu_lost, which is new"]
    assert missing(snapshot(lost(*after)), lost(*after), False, None) == []


def test_a_fault_of_the_host_is_said_once() -> None:
    fault = {"code": "driver_hang", "text": "no answer", "remedy": "reboot"}
    before, after = snapshot(facts()), facts(fault=fault, findings=[finding("driver_hang", gpu=None)])
    assert missing(before, after, False, None) == ["driver_hang: no answer (reboot)"]
