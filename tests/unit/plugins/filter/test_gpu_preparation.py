# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a host from being prepared: on the controller for the role, and on the host for its self check."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from ansible_collections.gpufleet.inference.plugins.filter.gpu_preparation import FilterModule
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts, preparation

missing = FilterModule().filters()["gpu_preparation"]
GPU = {"index": 0, "health": {"ok": True, "reasons": []}, "persistence_mode": True}
OFF = {**GPU, "persistence_mode": False}
FAULT = {"code": "driver_hang", "text": "it did not answer"}
HANG = {"check": "driver_hang", "effect": "unfit", "line": "driver_hang: it did not answer"}
SICK = {"check": "remap_pending", "effect": "unfit", "line": "GPU 2: remap_pending: reset it"}
SLOW = {"check": "hw_slowdown", "effect": "slow", "line": "GPU 2: hw_slowdown: it is slow"}
HOT = {"check": "hot", "effect": "note", "line": "GPU 2: hot: 3 °C"}
ALL = {"required": True, "pynvml": True, "persistence": True, "expected": 0}


def gpus(*devices: Dict[str, Any], **more: Any) -> Dict[str, Any]:
    return {"fault": None, "devices": devices, "count": len(devices), "source": "nvml", "findings": [], **more}


@pytest.mark.parametrize(
    "gpu, wanted, found",
    [
        (gpus(GPU), ALL, []),
        (gpus(OFF), ALL, ["persistence mode is off"]),
        (gpus({**GPU, "persistence_mode": None}), ALL, []),
        (gpus(OFF), {**ALL, "persistence": False}, []),
        (gpus(OFF, fault=FAULT, findings=[HANG]), ALL, [HANG["line"]]),
        (gpus(GPU, findings=[SICK, SLOW, HOT]), ALL, [SICK["line"]]),
        (gpus(GPU, source="nvidia-smi"), ALL, ["pynvml is missing"]),
        (gpus(GPU, source="nvidia-smi"), {**ALL, "pynvml": False}, []),
        (gpus(GPU), {**ALL, "expected": 4}, ["gpu_missing: 3 of 4 GPUs are missing on the PCI bus"]),
        (gpus(source="procfs"), ALL, ["the host has no GPU"]),
        (gpus(source="procfs"), {**ALL, "required": False}, []),
    ],
)
def test_what_is_missing(
    gpu: Dict[str, Any], wanted: Dict[str, bool], found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert missing(gpu, **wanted) == found
    monkeypatch.setattr(facts, "_reported", gpu)
    answer = preparation.check({**wanted, "timeout": 1}, True, print)
    assert answer == {"changed": bool(found), "msg": "; ".join(found) or "the GPUs are prepared"}
