# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Room on the GPUs before a start: who uses it, what is waited for, what is refused."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.placement import memory
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

GIB = 1 << 30
UNIT = "vllm@a.service"
OTHER = {"pid": 7, "name": "python3", "unit": "ollama.service", "used_bytes": 60 * GIB}


def device(free, total=100, processes=(), index=0):
    return {
        "index": index,
        "uuid": "GPU-%d" % index,
        "name": "NVIDIA H200",
        "pci_bus_id": "0000:00:0%d.0" % index,
        "memory": {"total_bytes": total * GIB, "free_bytes": free * GIB},
        "processes": list(processes),
    }


def own(used):
    return dict(OTHER, unit=UNIT, used_bytes=used * GIB)


def test_memory_of_others_is_refused_with_its_holders():
    with pytest.raises(Refused) as caught:
        memory.check_free(device(40, processes=[OTHER]), 0, 92 * GIB, UNIT, "gpu_memory_utilization")
    said = str(caught.value)
    assert "has 40.0 GiB of 100.0 GiB free, but 92.0 GiB of it is to be taken" in said
    assert "PID 7 (python3, ollama.service) holds 60.0 GiB on GPU 0; set gpu_memory_utilization to 0.40 at most" in said


@pytest.mark.parametrize(("free", "used", "wanted", "fits"), [(8, 92, 92, True), (92, 0, 92, True), (8, 20, 92, False)])
def test_own_memory_counts_as_free(free, used, wanted, fits):
    if fits:
        return memory.check_free(device(free), used * GIB, wanted * GIB, UNIT, "share")
    with pytest.raises(Refused, match="besides what vllm@a.service uses"):
        memory.check_free(device(free), used * GIB, wanted * GIB, UNIT, "share")


def test_a_gpu_of_which_nothing_is_known_is_not_refused():
    unknown = dict(device(1), memory={"total_bytes": None, "free_bytes": None})
    memory.check_free(unknown, 0, 92 * GIB, UNIT, "share")


def test_weights_that_are_larger_than_what_is_free_are_refused():
    devices = [device(40, processes=[OTHER]), device(30, processes=[own(20)], index=1)]
    memory.check_weights(devices, [UNIT], 90 * GIB, "choose")
    with pytest.raises(Refused) as caught:
        memory.check_weights(devices, [UNIT], 91 * GIB, "choose more GPUs")
    said = str(caught.value)
    assert "the weights take 91.0 GiB, but GPUs 0, 1 have 90.0 GiB free" in said
    assert "PID 7 (python3, ollama.service) holds 60.0 GiB on GPU 0" in said and said.endswith("; choose more GPUs")
    memory.check_weights(devices, [UNIT, "ollama.service"], 150 * GIB, "choose")
    memory.check_weights([], [UNIT], 91 * GIB, "choose")


def wait(devices, *looks, leaving=()):
    left = list(looks)

    def gather():
        assert left, "looked at more often than expected"
        return {"devices": left.pop(0)}

    memory.await_room(devices, UNIT, 0.9, "share", gather, leaving)
    return left


def test_memory_of_units_that_leave_counts_as_free():
    assert wait([device(40, processes=[OTHER])], leaving=["ollama.service"]) == []
    with pytest.raises(Refused, match="ollama.service"):
        wait([device(40, processes=[OTHER])], leaving=["other.service"])


def test_own_memory_counts_on_its_own_gpu_alone():
    with pytest.raises(Refused, match="GPU 1 "):
        wait([device(5, processes=[own(95)]), device(40, processes=[OTHER], index=1)])


@pytest.mark.parametrize("processes", [[dict(OTHER, unit=None)], []], ids=["in no unit", "in no list"])
def test_a_process_that_is_ending_is_waited_for(processes):
    full = [device(40, processes=processes)]
    assert wait(full, full, [device(100)]) == []


def test_a_process_that_does_not_end_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "_ENDING", 0.0)
    with pytest.raises(Refused, match=r"PID 7 \(python3\) holds"):
        wait([device(40, processes=[dict(OTHER, unit=None)])])


@pytest.mark.parametrize(
    ("process", "said"),
    [
        (OTHER, "PID 7 (python3, ollama.service) holds 60.0 GiB on GPU 0"),
        ({"pid": 8, "name": None, "unit": None, "used_bytes": None}, "PID 8 (unknown) holds some memory on GPU 0"),
        (own(3), ""),
    ],
)
def test_who_uses_memory(process, said):
    assert memory.holders([device(40, processes=[process]), dict(device(1, index=1), processes=None)], UNIT) == said
