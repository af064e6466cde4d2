# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which GPUs a wish means: good ones in a table, bad ones with their messages."""

from __future__ import annotations

import re

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import health, model, select
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

GIB = 1024**3


def gpu(index, name="NVIDIA H200", total=140, free=140, lost=None, **leaves):
    device = model.blank(index, "unsupported")
    values = {
        "uuid": "GPU-%08d-0000-4000-8000-%012d" % (index + 1, index + 1),
        "name": name,
        "pci_bus_id": "0000:00:%02x.0" % (6 + index),
        "memory.total_bytes": total * GIB,
        "memory.free_bytes": free * GIB,
        "mig.enabled": False,
    }
    values.update({path.replace("__", "."): value for path, value in leaves.items()})
    for path, value in values.items():
        if value is not None:
            model.put(device, path, value)
    device["health"] = health.health(device, lost)
    return device


SICK = {"remapped_rows__pending": True}
SLOW = {"clocks_event_reasons": ["hw_thermal_slowdown"]}
FOUR = [gpu(0), gpu(1), gpu(2), gpu(3)]
MIXED = [
    gpu(0, name="NVIDIA GeForce RTX 4090", total=24, free=20, display_active=True),
    gpu(1, name="NVIDIA GeForce RTX 4090", total=24, free=24),
    gpu(2, name="NVIDIA RTX 6000 Ada Generation", total=48, free=2),
    gpu(3, name="NVIDIA RTX 6000 Ada Generation", total=48, free=48, **SICK),
]
UUID = "GPU-%08d-0000-4000-8000-%012d"


def indexes(devices):
    return [device["index"] for device in devices]


@pytest.mark.parametrize(
    "devices, wanted, expected",
    [
        pytest.param(FOUR, "all", [0, 1, 2, 3], id="all"),
        pytest.param(MIXED, "all", [0, 1, 2], id="all that are healthy"),
        pytest.param([gpu(0, lost="GPU is lost"), gpu(1)], "all", [1], id="all that answer"),
        pytest.param([gpu(0), gpu(1, **SLOW)], "all", [0, 1], id="all, one of them slow"),
        pytest.param([gpu(0), gpu(1, **SLOW)], {}, [0, 1], id="a policy, one of them slow"),
        pytest.param([gpu(0), gpu(1, **SLOW, **SICK)], "all", [0], id="slow and sick"),
        pytest.param(FOUR, [2, 0], [2, 0], id="the order of a list is kept"),
        pytest.param(FOUR, ["3", 1], [3, 1], id="an index as text, as templates give it"),
        pytest.param(FOUR, [UUID % (2, 2)], [1], id="a UUID"),
        pytest.param(FOUR, ["0000:00:08.0"], [2], id="a PCI bus id as sysfs writes it"),
        pytest.param(FOUR, ["00000000:00:09.0"], [3], id="a PCI bus id as NVML writes it"),
        pytest.param(FOUR, ["00:06.0"], [0], id="a PCI bus id without domain"),
        pytest.param(FOUR, (1,), [1], id="a tuple"),
        pytest.param(MIXED, [3], [3], id="a person's own choice is obeyed though health is in doubt"),
        pytest.param(MIXED, {}, [0, 1, 2], id="the empty policy: all healthy ones"),
        pytest.param(MIXED, {"healthy": False}, [0, 1, 2, 3], id="health does not matter"),
        pytest.param(MIXED, {"count": 2}, [0, 1], id="the first two"),
        pytest.param(MIXED, {"count": None, "model": None}, [0, 1, 2], id="rules that are not set"),
        pytest.param(MIXED, {"min_memory_gib": 40}, [2], id="memory"),
        pytest.param(MIXED, {"min_memory_gib": 24}, [0, 1, 2], id="memory, exactly enough"),
        pytest.param(MIXED, {"min_free_memory_gib": 22.5}, [1], id="free memory"),
        pytest.param(MIXED, {"model": "rtx 40"}, [0, 1], id="model, case ignored"),
        pytest.param(MIXED, {"model": "^NVIDIA RTX (6000|8000)"}, [2], id="model as a regular expression"),
        pytest.param(MIXED, {"exclude_display": True}, [1, 2], id="no display"),
        pytest.param([gpu(0, mig__enabled=True), gpu(1)], {}, [1], id="a policy passes over MIG"),
        pytest.param([gpu(0, lost="GPU is lost"), gpu(1)], {"healthy": False}, [1], id="a lost GPU never fits"),
    ],
)
def test_selects(devices, wanted, expected):
    assert indexes(select.select(devices, wanted)) == expected


FOUR_NAMED = ", ".join(
    "%d (NVIDIA H200, GPU-%08d-0000-4000-8000-%012d, 0000:00:%02x.0)" % (i, i + 1, i + 1, 6 + i) for i in range(4)
)
LABEL_0, LABEL_1 = FOUR_NAMED.split("), ")[0] + ")", FOUR_NAMED.split("), ")[1] + ")"


@pytest.mark.parametrize(
    "devices, wanted, message",
    [
        pytest.param(
            [], "all", "This host has no GPU to choose from; see count and fault in the facts of gpu_facts", id="no GPU"
        ),
        pytest.param(FOUR, [0, 9], "There is no GPU 9 on this host; there are 0, 1, 2, 3", id="unknown index"),
        pytest.param(
            FOUR,
            ["GPU-dead"],
            "There is no GPU GPU-dead on this host; there are %s" % ", ".join(UUID % (i, i) for i in (1, 2, 3, 4)),
            id="unknown UUID",
        ),
        pytest.param(FOUR, [-1], "There is no GPU -1 on this host; there are 0, 1, 2, 3", id="below zero"),
        pytest.param(FOUR, [True], "There is no GPU True on this host; there are 0, 1, 2, 3", id="a truth value"),
        pytest.param(FOUR, [None], "There is no GPU None on this host; there are 0, 1, 2, 3", id="nothing"),
        pytest.param(FOUR, [], "The list of wanted GPUs is empty; name at least one of 0, 1, 2, 3", id="empty list"),
        pytest.param(
            FOUR,
            [0, "0000:00:06.0"],
            "GPU %s is named twice in the list of wanted GPUs; name each once" % LABEL_0,
            id="one GPU under two names",
        ),
        pytest.param(
            FOUR,
            "0,1",
            "GPUs are wanted as '0,1'; expected 'all', a list of indexes, UUIDs or PCI bus ids, or a policy of count, "
            "min_memory_gib, min_free_memory_gib, model, healthy, exclude_display",
            id="some other text",
        ),
        pytest.param(
            [gpu(0, lost="GPU is lost"), gpu(1, **SICK)],
            "all",
            "no GPU of this host is healthy: GPU %s: GPU is lost | GPU %s: remapping of memory rows is pending: reset "
            "the GPU; repair one, or name what to use anyway" % (LABEL_0, LABEL_1),
            id="all, but none is healthy",
        ),
        pytest.param(
            [gpu(0, lost="GPU is lost"), gpu(1)],
            [0],
            "GPU %s is wanted but does not answer: GPU is lost" % LABEL_0,
            id="a lost GPU in a list",
        ),
        pytest.param(
            [gpu(0, mig__enabled=True)],
            "all",
            "GPU %s is cut into MIG instances and cannot be used as a whole; disable MIG on it "
            "(nvidia-smi -i 0 -mig 0) or leave it out" % LABEL_0,
            id="MIG",
        ),
        pytest.param(
            FOUR,
            {"min_mem": 3, "cuont": 1},
            "The GPU policy has unknown keys: cuont, min_mem; known are count, min_memory_gib, min_free_memory_gib, "
            "model, healthy, exclude_display",
            id="unknown keys",
        ),
        pytest.param(
            FOUR,
            {"model": "(H200"},
            "The GPU policy's model is '(H200'; expected a regular expression for the name of the GPU "
            "(missing ), unterminated subpattern at position 0)",
            id="a broken regular expression",
        ),
        pytest.param(
            FOUR, {"count": 0}, "The GPU policy's count is 0; expected a whole number, at least 1", id="count of none"
        ),
        pytest.param(
            FOUR,
            {"count": 5},
            "The GPU policy wants 5 GPUs but 4 of 4 GPUs fit it; left out: none",
            id="more than there are",
        ),
        pytest.param(
            [gpu(0, total=24, free=24), gpu(1, **SICK)],
            {"min_memory_gib": 80},
            "The GPU policy wants at least one GPU but 0 of 2 GPUs fit it; left out: GPU 0: 24.0 GiB of memory, "
            "less than 80 | GPU 1: remapping of memory rows is pending: reset the GPU",
            id="nothing fits, and why",
        ),
        pytest.param(
            [gpu(0, display_active=True), gpu(1, name="Tesla T4"), gpu(2, mig__enabled=True)],
            {"exclude_display": True, "model": "H200"},
            "The GPU policy wants at least one GPU but 0 of 3 GPUs fit it; left out: GPU 0: it drives a display | "
            "GPU 1: its name does not match 'H200' | GPU 2: cut into MIG instances",
            id="one reason for each",
        ),
        pytest.param(
            [gpu(0, memory__total_bytes=None, free=1)],
            {"min_free_memory_gib": 4},
            "The GPU policy wants at least one GPU but 0 of 1 GPUs fit it; left out: GPU 0: 1.0 GiB of free "
            "memory, less than 4",
            id="too little is free",
        ),
    ],
)
def test_refuses(devices, wanted, message):
    with pytest.raises(Refused) as error:
        select.select(devices, wanted)
    assert str(error.value) == message


def test_memory_that_is_not_known_does_not_fit():
    device = gpu(0)
    device["memory"]["total_bytes"] = None
    with pytest.raises(Refused, match="its memory is not known"):
        select.select([device], {"min_memory_gib": 1})


@pytest.mark.parametrize(
    "devices, wanted, expected",
    [
        pytest.param(FOUR, "all", "0,1,2,3", id="cards of one model: indexes"),
        pytest.param(FOUR, [1, 0], "1,0", id="in the order of the list"),
        pytest.param(FOUR, [UUID % (1, 1), 1], ",".join((UUID % (1, 1), UUID % (2, 2))), id="one UUID makes all UUIDs"),
        pytest.param(FOUR, ["0000:00:08.0"], "2", id="a PCI bus id is no UUID"),
        pytest.param(MIXED, [0, 2], ",".join((UUID % (1, 1), UUID % (3, 3))), id="different models: UUIDs"),
        pytest.param([gpu(0, lost="gone"), gpu(1)], [1], UUID % (2, 2), id="CUDA does not count a lost GPU"),
        pytest.param([gpu(0, mig__enabled=True), gpu(1)], [1], UUID % (2, 2), id="nor a cut one as NVML does"),
    ],
)
def test_visible_devices(devices, wanted, expected):
    assert select.visible_devices(select.select(devices, wanted), devices, wanted) == expected


def test_visible_devices_without_the_wish():
    assert select.visible_devices(FOUR[2:], FOUR) == "2,3"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("00000000:00:06.0", "0000:00:06.0"),
        ("0000:3B:00.0", "0000:3b:00.0"),
        ("3b:00.0", "0000:3b:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("FFFFFFFF:FF:FF.0", "ffffffff:ff:ff.0"),
        ("GPU-x:y:z", "gpu-x:y:z"),
    ],
)
def test_pci_bus_id(text, expected):
    assert select.pci_bus_id(text) == expected


def test_label_leaves_out_what_is_unknown():
    assert select.label(model.blank(3, "lost")) == "3"


def test_what_the_service_itself_holds_counts_as_free():
    wanted = {"min_free_memory_gib": 4, "count": 2}
    before = select.select([gpu(0), gpu(1), gpu(2)], wanted)
    serving = [gpu(0, free=1), gpu(1, free=1), gpu(2)]  # the service has loaded its models on the GPUs it was given
    own = {device["uuid"]: 139 * GIB for device in serving[:2]}
    assert [device["index"] for device in select.select(serving, wanted, own)] == [device["index"] for device in before]
    with pytest.raises(Refused, match="wants 2 GPUs but 1 of 3"):
        select.select(serving, wanted)


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ({"count": "2"}, [0, 1]),
        ({"min_memory_gib": "100"}, [0, 1, 2]),
        ({"healthy": "no"}, [0, 1, 2, 3]),
        ({"healthy": "False", "count": "3"}, [0, 1, 2]),
        ({"exclude_display": "off", "healthy": "1"}, [0, 1, 2]),
        ({"exclude_display": "yes"}, [1, 2]),
    ],
)
def test_a_policy_out_of_texts_is_read_as_it_says(policy, chosen):
    """As -e, INI inventories and Jinja give it."""
    devices = [gpu(0, display_active=True), gpu(1), gpu(2), gpu(3, **SICK)]
    assert indexes(select.select(devices, policy)) == chosen


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("count", "two", "'two'; expected a whole number, at least 1"),
        ("count", True, "True; expected a whole number, at least 1"),
        ("count", 1.5, "1.5; expected a whole number, at least 1"),
        ("count", [2], "[2]; expected a whole number, at least 1"),
        ("min_memory_gib", "40GiB", "'40GiB'; expected a number of GiB, without a unit"),
        ("min_memory_gib", "nan", "'nan'; expected a number of GiB, without a unit"),
        ("min_free_memory_gib", -1, "-1; expected a number of GiB, without a unit"),
        ("model", ["H200"], "['H200']; expected a regular expression for the name of the GPU"),
        ("healthy", "maybe", "'maybe'; expected true or false"),
        ("exclude_display", {}, "{}; expected true or false"),
    ],
)
def test_a_policy_of_another_type_is_refused_in_one_sentence(key, value, expected):
    with pytest.raises(Refused, match="^" + re.escape("The GPU policy's %s is %s" % (key, expected)) + "$"):
        select.select([gpu(0)], {key: value})


def test_the_name_of_a_gpu_may_be_a_number():
    devices = [gpu(0, name="NVIDIA GeForce RTX 4090"), gpu(1, name="Tesla T4")]
    assert indexes(select.select(devices, {"model": 4090})) == [0]
