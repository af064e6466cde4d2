# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a spread counts as uneven, over every recorded placement and what was seen next to a foreign process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.placement import spread

TESTS = Path(__file__).resolve().parents[4]
RECORDED = json.loads((TESTS / "unit/fixtures/ollama/placement-h200x4.json").read_text())
MIB = 1 << 20
TOTAL, IDLE = 143771, 616  # MiB of an H200, and what its driver takes of it


def gpu(index: int, own: int, foreign: int = 0, total: int = TOTAL, **holder: Any) -> Dict[str, Any]:
    """A GPU of the facts; MiB held by ollama.service and by a foreign process."""
    processes = [{"pid": 100, "name": "llama-server", "unit": "ollama.service", "used_bytes": own * MIB}]
    if foreign:
        other = {"pid": 4711, "name": "python3", "unit": "train.service", "used_bytes": foreign * MIB}
        processes.append(dict(other, **holder))
    memory = {"total_bytes": total * MIB, "free_bytes": (total - IDLE - own - foreign) * MIB}
    return {"index": index, "uuid": "GPU-%d" % index, "memory": memory, "processes": processes}


def recorded() -> List[Any]:
    """Every step of the recordings with a model on two GPUs or more: (MiB held on each, MiB others hold of each)."""
    return [
        pytest.param(held, TOTAL - IDLE - row.get("others_leave_mib", TOTAL - IDLE), id="%s-%d" % (row["name"], number))
        for row in RECORDED
        for number, step in enumerate(row["steps"])
        for held in [[mib for mib in step["held_mib"] if mib]]
        if len(held) > 1
    ]


@pytest.mark.parametrize("held, foreign", recorded())
def test_recorded_placements_are_even(held: Sequence[int], foreign: int) -> None:
    """Unless they are two models, one on each GPU, with nobody else there."""
    assert not spread.uneven([gpu(index, mib, foreign) for index, mib in enumerate(held)], "ollama.service")


def test_the_recordings_have_spread_models() -> None:
    assert len(recorded()) > 8


@pytest.mark.parametrize(
    "held", [(17677, 17151, 17458, 16332), (11934, 11408, 11408, 10890), (2062, 1916, 1916, 1774), (900, 600, 600, 600)]
)
def test_a_last_gpu_with_fewer_layers_is_even(held: Sequence[int]) -> None:
    assert not spread.uneven([gpu(index, mib) for index, mib in enumerate(held)], "ollama.service")


def test_layers_that_cannot_be_divided_are_nobodys_fault() -> None:
    assert not spread.uneven([gpu(0, 40000), gpu(1, 20000), gpu(2, 600)], "ollama.service")
    # somebody holds memory, but not of the GPU that got little
    assert not spread.uneven([gpu(0, 40000, foreign=60000), gpu(1, 20000), gpu(2, 600)], "ollama.service")


def test_a_desktop_makes_no_spread_uneven() -> None:
    cards = [gpu(0, 8000, foreign=1500, total=24564), gpu(1, 9000, total=24564)]
    assert not spread.uneven(cards, "ollama.service")


def test_gpus_of_different_sizes_are_filled_in_proportion() -> None:
    assert not spread.uneven([gpu(0, 40000, total=81559), gpu(1, 11500, total=24564)], "ollama.service")


def test_others_on_one_gpu_as_seen_on_two_h200s() -> None:
    found = spread.uneven([gpu(0, 42000), gpu(1, 6400, foreign=120000)], "ollama.service")
    assert [one["held_bytes"] // MIB for one in found] == [42000, 6400]
    assert found[1]["holders"] == [
        {"pid": 4711, "name": "python3", "unit": "train.service", "used_bytes": 120000 * MIB}
    ]
    assert not found[0]["holders"]
    text = spread.describe(found)
    assert "42000 MiB on GPU 0, 6400 MiB on GPU 1" in text
    assert "; others hold 120616 MiB of GPU 1 (process 4711 python3 of train.service 120000 MiB)" in text


def test_two_holders_the_larger_first_and_no_unit() -> None:
    device = gpu(1, 6400, foreign=120000, unit=None, name=None)
    device["processes"].insert(0, {"pid": 9, "name": "jupyter", "unit": "user@1000.service", "used_bytes": 200 * MIB})
    text = spread.describe(spread.uneven([gpu(0, 42000), device], "ollama.service"))
    assert "(process 4711 120000 MiB, process 9 jupyter of user@1000.service 200 MiB)" in text


def test_foreign_memory_without_a_process() -> None:
    device = gpu(1, 6400, foreign=120000)
    device["processes"] = device["processes"][:1]  # as in a container, which sees no process of others
    text = spread.describe(spread.uneven([gpu(0, 42000), device], "ollama.service"))
    assert "; others hold 120616 MiB of GPU 1 (the driver names no process for it)" in text


def test_the_name_of_a_process_stays_on_one_line() -> None:
    device = gpu(1, 6400, foreign=120000, name="a\n\x1b[32mok\u2028b")
    text = spread.describe(spread.uneven([gpu(0, 42000), device], "ollama.service"))
    assert "process 4711 a ok?b of train.service" in text


def test_memory_that_is_not_known_proves_nothing() -> None:
    device = gpu(1, 6400, foreign=120000)
    device["memory"]["free_bytes"] = None
    assert not spread.uneven([gpu(0, 42000), device], "ollama.service")
