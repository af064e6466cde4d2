# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A unit's running invocation and GPUs as the facts show them."""

from __future__ import annotations

import sys
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest

UNIT = "vllm@chat.service"
GIB = 1 << 30


def device(index: int, held: int = 0, unit: str = UNIT, pid: int = 100) -> Dict[str, Any]:
    processes = [{"pid": pid, "name": "VLLM::Worker", "type": "compute", "used_bytes": held, "unit": unit}]
    return {
        "index": index,
        "uuid": "GPU-%d" % index,
        "name": "NVIDIA H200",
        "pci_bus_id": "0000:00:0%d.0" % index,
        "memory": {"total_bytes": 140 * GIB, "free_bytes": 140 * GIB - held},
        "display_active": False,
        "mig": {"enabled": False},
        "health": {"ok": True, "lost": False, "reasons": []},
        "processes": processes if held else [],
    }


def facts(held: Tuple[int, ...] = (0, 0, 0, 0), source: str = "nvml", **more: Any) -> Dict[str, Any]:
    devices = [device(index, bytes_, **more) for index, bytes_ in enumerate(held)]
    return {"source": source, "count": len(devices), "fault": None, "devices": devices}


class FakeSystem:
    def __init__(self, listener: Optional[Tuple[int, str]]) -> None:
        self._listener, self.synced = listener, False

    def listener(self, port: int) -> Optional[Tuple[int, str]]:
        return self._listener

    def sync_journal(self) -> None:
        self.synced = True


class FakeRunning:
    """A unit's running invocation, as the engine hands it to a gate."""

    unit = UNIT
    pids = [99, 100]

    def __init__(self, timeout: float = 60.0, listener: Optional[Tuple[int, str]] = (99, "python")) -> None:
        self.log: List[str] = []
        self.environ: Dict[str, str] = {}
        self.is_alive: Callable[[], bool] = lambda: True
        self.started_monotonic = time.monotonic()
        self.deadline = self.started_monotonic + timeout
        self.system = FakeSystem(listener)

    def journal(self, max_lines: int = 1000) -> List[str]:
        return list(self.log[-max_lines:])

    def alive(self) -> bool:
        return self.is_alive()

    def dying(self) -> bool:
        return not self.is_alive()


@pytest.fixture
def fakes():
    """This file: `fakes.facts()`, `fakes.FakeRunning()`."""
    return sys.modules[__name__]
