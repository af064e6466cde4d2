# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Distances in nvidia-smi's words."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import topology


def gpu(index, active=None):
    return {"index": index, "pci_bus_id": "0000:0%d:00.0" % index, "nvlink": {"active_count": active}}


def pairs(count, **states):
    return {(low, high): dict(states) for low in range(count) for high in range(low + 1, count)}


def test_links_that_end_at_a_switch_serve_every_pair():
    ends = {index: {"0000:8%d:00.0" % switch: 6 for switch in range(3)} for index in range(4)}
    devices = [gpu(index, 18) for index in range(4)]
    matrix = topology.from_nvml(devices, pairs(4, level=50, nvlink=0), ends)
    assert matrix == [["X" if one == other else "NV18" for other in range(4)] for one in range(4)]


def test_links_that_a_hypervisor_hides_serve_every_pair():
    devices = [gpu(0, 18), gpu(1, 12)]
    ends = {0: {"ffffffff:ff:ff.0": 18}, 1: {"ffffffff:ff:ff.0": 12}}
    assert topology.from_nvml(devices, pairs(2, level=30, nvlink=0), ends) == [["X", "NV12"], ["NV12", "X"]]


def test_links_that_do_not_reach_the_other():
    """Both have links whose ends are hidden, but NVLink between the two is refused."""
    devices = [gpu(0, 18), gpu(1, 18)]
    ends = {0: {"ffffffff:ff:ff.0": 18}, 1: {"ffffffff:ff:ff.0": 18}}
    assert topology.from_nvml(devices, pairs(2, level=30, nvlink=5), ends) == [["X", "PHB"], ["PHB", "X"]]


def test_bridges_link_only_the_cards_they_join():
    devices = [gpu(index, 4) for index in range(4)]
    ends = {0: {"0000:01:00.0": 4}, 1: {"0000:00:00.0": 4}, 2: {"0000:03:00.0": 4}, 3: {"0000:02:00.0": 4}}
    # NVLink's status is good for linked pairs only, but even were it good for all, the ends decide
    for nvlink in (0, 5, None):
        matrix = topology.from_nvml(devices, pairs(4, level=40, nvlink=nvlink), ends)
        assert matrix == [
            ["X", "NV4", "NODE", "NODE"],
            ["NV4", "X", "NODE", "NODE"],
            ["NODE", "NODE", "X", "NV4"],
            ["NODE", "NODE", "NV4", "X"],
        ]


@pytest.mark.parametrize(
    "level, word",
    [(0, "PIX"), (10, "PIX"), (20, "PXB"), (30, "PHB"), (40, "NODE"), (50, "SYS"), (None, None), (99, None)],
)
def test_levels(level, word):
    assert topology.from_nvml([gpu(0), gpu(1)], pairs(2, level=level, nvlink=5), {}) == [["X", word], [word, "X"]]


def test_a_gpu_that_does_not_answer_has_no_distances():
    assert topology.from_nvml([gpu(0), gpu(1)], {}, {}) == [["X", None], [None, "X"]]


def test_peer_to_peer():
    assert topology.peer_to_peer([gpu(0), gpu(1), gpu(2)], {(0, 1): {"read": 0}, (0, 2): {"read": 1}}) == [
        ["X", "OK", "CNS"],
        ["OK", "X", None],
        ["CNS", None, "X"],
    ]


def place(path, numa=0):
    return {"path": path.split(), "numa_node": numa}


SWITCH = "pci0000:17 0000:17:01.0 0000:18:00.0 "


@pytest.mark.parametrize(
    "one, other, word",
    [
        pytest.param(
            place(SWITCH + "0000:19:00.0 0000:1a:00.0"),
            place(SWITCH + "0000:19:04.0 0000:1b:00.0"),
            "PIX",
            id="one switch",
        ),
        pytest.param(place(SWITCH + "0000:19:00.0"), place(SWITCH + "0000:19:00.1"), "PIX", id="two functions"),
        pytest.param(
            place(SWITCH + "0000:19:00.0 0000:20:00.0 0000:21:00.0 0000:22:00.0"),
            place(SWITCH + "0000:19:04.0 0000:30:00.0 0000:31:00.0 0000:32:00.0"),
            "PXB",
            id="switches below a switch",
        ),
        pytest.param(
            place(SWITCH + "0000:19:00.0 0000:20:00.0 0000:21:00.0"),
            place(SWITCH + "0000:19:04.0"),
            "PXB",
            id="one bridge more on one side",
        ),
        pytest.param(
            place(SWITCH + "0000:19:00.0 0000:1a:00.0"),
            place("pci0000:17 0000:17:02.0 0000:1f:00.0"),
            "PHB",
            id="one root",
        ),
        pytest.param(place("pci0000:00 0000:00:06.0"), place("pci0000:00 0000:00:07.0"), "PHB", id="virtual machine"),
        pytest.param(place("pci0000:17 a"), place("pci0000:3a b"), "NODE", id="other root, same node"),
        pytest.param(
            place("pci0000:17 a", None), place("pci0000:3a b", None), "NODE", id="nodes unknown: there is one"
        ),
        pytest.param(place("pci0000:17 a", 0), place("pci0000:97 b", 1), "SYS", id="other node"),
        pytest.param(place("pci0000:17 a"), None, None, id="no place"),
        pytest.param(place("pci0000:17 a"), {"path": [], "numa_node": None}, None, id="not on PCI"),
    ],
)
def test_distance(one, other, word):
    assert topology.distance(one, other) == word
    assert topology.distance(other, one) == word


def test_from_sysfs():
    places = [place("pci0000:17 a"), place("pci0000:3a b"), None]
    assert topology.from_sysfs(places) == [["X", "NODE", None], ["NODE", "X", None], [None, None, "X"]]
