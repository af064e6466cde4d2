# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The estimate, held to where a real server put models on four real H200s."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import gguf, sizing

TESTS = Path(__file__).resolve().parents[4]
RECORDED = json.loads((TESTS / "unit/fixtures/ollama/placement-h200x4.json").read_text())
MIB, GIB = 1 << 20, 1 << 30
FREE = 142528  # MiB of an idle H200, as NVML says

_spec = importlib.util.spec_from_file_location("lab_models", TESTS / "lab/ollama/models.py")
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)


class Sparse(io.BytesIO):
    """A file of zeroes behind its header: sized as it says, without taking the memory."""

    def __init__(self, head: bytes, size: int) -> None:
        super().__init__(head)
        self.whole = len(head) + size

    def seek(self, position: int, whence: int = 0) -> int:
        return self.whole if whence == 2 else super().seek(position, whence)


def header(name: str) -> gguf.Header:
    return gguf.read(Sparse(*models.header(name, models.MODELS[name])))


def recorded_loads() -> List[Any]:
    """(row, model, free MiB of the GPUs in use, their indexes, MiB held there) of each load on GPUs."""
    found = []
    for row in RECORDED:
        held_before = [0] * 4
        visible = row["environment"].get("CUDA_VISIBLE_DEVICES", "0,1,2,3")
        usable = {"visible-index-too-high": [0], "two-by-uuid": [2, 3]}.get(row["name"])
        if usable is None and visible.replace(",", "").replace(" ", "").isdigit():
            usable = [int(index) for index in visible.split(",")]
        for step in row["steps"]:
            request, gained = step["request"], [now - before for now, before in zip(step["held_mib"], held_before)]
            before, held_before = held_before, step["held_mib"]
            if not isinstance(request, dict) or "prompt" in request or "keep_alive" in request or not sum(gained):
                continue
            base = row.get("others_leave_mib", FREE)
            free = [base - before[index] for index in usable]
            label = "%s-%s" % (row["name"], request["model"])
            found.append(pytest.param(row, request["model"], free, usable, gained, step["ps"], id=label))
    return found


@pytest.mark.parametrize("row, model, free, usable, held, ps", recorded_loads())
def test_as_recorded_on_h200s(
    row: Dict[str, Any], model: str, free: List[int], usable: List[int], held: List[int], ps: Dict[str, Any]
) -> None:
    spread = row["environment"].get("OLLAMA_SCHED_SPREAD") == "1"
    found = sizing.estimate(header(model), [mib * MIB for mib in free], [4096], sizing.Serving(spread=spread))
    assert found.fits
    mine = [0] * 4
    for share in found.shares:
        mine[usable[share.gpu]] = share.held // MIB
    assert mine == pytest.approx(held, rel=0.05)
    assert found.buffers == pytest.approx(ps[model]["size_vram"], rel=0.05)


def test_the_recordings_hold_what_is_claimed_of_them() -> None:
    rows = recorded_loads()
    assert {row.values[1] for row in rows} == {"m70b", "m32b", "m8b"}
    assert {sum(held > 0 for held in row.values[4]) for row in rows} == {1, 2, 4}


def test_too_large_for_all_gpus() -> None:
    found = sizing.estimate(header("m70b"), [8 * GIB] * 4, [4096])
    assert not found.fits
    assert found.spread
    assert found.missing > 3 * GIB


def test_what_leaves_no_room_was_an_error_on_h200s() -> None:
    """others_leave_mib 613: cudaMalloc failed."""
    assert not sizing.estimate(header("m8b"), [613 * MIB] * 4, [4096]).fits


def test_eighty_percent_of_one_gpu() -> None:
    model = header("m8b")
    predicted = model.file_bytes + sum(sizing.cache_bytes(model, 4096))
    just, short = int(predicted / 0.8) + 1, int(predicted / 0.8) - 1
    assert not sizing.estimate(model, [just, just], [4096]).spread
    assert sizing.estimate(model, [short, short], [4096]).spread
    assert sizing.estimate(model, [just, just], [4096], sizing.Serving(spread=True)).spread
    assert [share.gpu for share in sizing.estimate(model, [just, just + 1], [4096]).shares] == [1]
    assert [share.gpu for share in sizing.estimate(model, [just, just], [4096]).shares] == [0]


def test_the_cache_by_context_parallel_and_type() -> None:
    model = header("m8b")
    assert sum(sizing.cache_bytes(model, 32768)) == 4 * GIB
    assert sum(sizing.cache_bytes(model, 8192, parallel=4)) == 4 * GIB
    assert sum(sizing.cache_bytes(model, 32768, cache_type="q8_0")) == 4 * GIB * 17 // 32
    assert sum(sizing.cache_bytes(header("m70b"), 32768)) == 10 * GIB


def test_recurrent_layers_keep_no_cache() -> None:
    model = header("m8b")._replace(kv_heads=(8, 0) * 16)
    assert sum(sizing.cache_bytes(model, 32768)) == 2 * GIB


def test_an_automatic_context_falls_until_it_fits() -> None:
    assert sizing.automatic_contexts(560 * GIB, 131072) == [131072, 32768, 4096]
    assert sizing.automatic_contexts(24 * GIB, 131072) == [32768, 4096]
    assert sizing.automatic_contexts(16 * GIB, 0) == [4096]
    assert sizing.automatic_contexts(560 * GIB, 2048) == [2048]
    model, contexts = header("m8b"), sizing.automatic_contexts(48 * GIB, 131072)
    assert sizing.estimate(model, [12 * GIB], contexts).context == 32768
    assert sizing.estimate(model, [8 * GIB], contexts).context == 4096
    worst = sizing.estimate(model, [4 * GIB], contexts)
    assert (worst.context, worst.fits) == (4096, False)


def test_a_large_vocabulary_counts_where_the_output_is() -> None:
    plain = header("m8b")
    large = plain._replace(vocabulary=262144)
    one, other = (
        sizing.estimate(model, [140 * GIB] * 2, [4096], sizing.Serving(spread=True)) for model in (plain, large)
    )
    assert one.shares[0].compute == other.shares[0].compute
    assert other.shares[1].compute > one.shares[1].compute + 300 * MIB


def test_described_for_a_result() -> None:
    found = sizing.describe(sizing.estimate(header("m8b"), [GIB, 140 * GIB], [4096]), ["a", "b"])
    assert [gpu["index"] for gpu in found["gpus"]] == ["b"]
    assert found["fits"] is True
    assert found["held_bytes"] > found["buffer_bytes"] > found["cache_bytes"] == GIB // 2
    assert found["gpus"][0]["layers"] == 33


@pytest.mark.parametrize(
    "context, parallel, free, flash, batch",
    [
        (4096, 1, 24, True, 512),
        (4096, 2, 24, True, 1024),  # it is the sum of all sequences that counts
        (8192, 1, 24, True, 1024),
        (8192, 1, 24, False, 512),
        (65536, 1, 24, True, 2048),
        (8192, 1, 1.8, True, 512),  # 5.1 of 7.2 GiB: 0.66 of it is too little room besides
    ],
)
def test_a_long_context_is_computed_in_larger_batches(
    context: int, parallel: int, free: float, flash: bool, batch: int
) -> None:
    """As server 0.32.15 chooses; the compute buffer of a GPU grows with it."""
    found = sizing.estimate(
        header("m8b"), [int(free * GIB)] * 4, [context], sizing.Serving(parallel, True, flash_attention=flash)
    )
    row, mask = batch * 4, context * parallel * batch * 2
    assert found.shares[0].compute == 3 * (14336 + 4096) * row + mask + 4 * 4096 * row + 3 * mask
