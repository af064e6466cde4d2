# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape of a device, and the small conversions."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import model


def test_blank_device_has_every_leaf_with_its_reason():
    device = model.blank(2, "why not")
    assert device["index"] == 2
    assert device["ecc"] == {
        "enabled": None,
        "pending": None,
        "sram_threshold_exceeded": None,
        "volatile": {"corrected": None, "uncorrected": None},
        "aggregate": {"corrected": None, "uncorrected": None},
    }
    assert set(device["unavailable"]) == set(model.LEAVES) - {"index"}
    assert set(device["unavailable"].values()) == {"why not"}


def test_put_and_refuse():
    device = model.blank(0, "why not")
    model.put(device, "ecc.volatile.corrected", 0)
    model.refuse(device, "serial", "unsupported")
    assert device["ecc"]["volatile"]["corrected"] == 0
    assert model.known(device, "ecc.volatile.corrected") and not model.known(device, "serial")
    assert device["unavailable"]["serial"] == "unsupported"


def test_leaves_are_distinct_and_no_leaf_is_a_branch():
    assert len(set(model.LEAVES)) == len(model.LEAVES)
    branches = {leaf.rpartition(".")[0] for leaf in model.LEAVES}
    assert not branches.intersection(model.LEAVES)


@pytest.mark.parametrize(
    "words, expected",
    [
        ([0], ""),
        ([0xFFFFFFFF, 0], "0-31"),
        ([2**64 - 1, 0], "0-63"),
        ([2**64 - 1, 1], "0-64"),
        ([0b1011, 0b1], "0-1,3,64"),
        ([0x00FF00FF], "0-7,16-23"),
    ],
)
def test_cpu_list(words, expected):
    assert model.cpu_list(words) == expected


@pytest.mark.parametrize(
    "mask, names",
    [(0, []), (0x1, ["gpu_idle"]), (0x2C, ["sw_thermal_slowdown", "hw_slowdown", "sw_power_cap"]), (0x8000, [])],
)
def test_event_reasons(mask, names):
    assert sorted(model.event_reasons(mask)) == sorted(names)


def test_process_name_carries_no_options():
    assert model.process_name("/opt/bin/serve --api-key=secret --port 1") == "/opt/bin/serve"
    assert model.process_name("VLLM::Worker TP0") == "VLLM::Worker TP0"
