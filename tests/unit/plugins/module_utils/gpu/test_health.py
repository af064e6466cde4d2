# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a GPU, one finding at a time."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import health, model


@pytest.mark.parametrize(
    "path, value, reason",
    [
        ("ecc.volatile.uncorrected", 3, "3 uncorrectable memory errors since the driver was loaded (ECC, volatile)"),
        ("remapped_rows.failure", True, "remapping of memory rows has failed: the board needs replacing"),
        ("remapped_rows.pending", True, "remapping of memory rows is pending: reset the GPU"),
        ("retired_pages.pending", True, "retirement of memory pages is pending: reset the GPU"),
        ("repair.channel_pending", True, "a repair of the GPU is pending: reset the GPU"),
        ("repair.tpc_pending", True, "a repair of the GPU is pending: reset the GPU"),
        ("recovery_action", "drain_and_reset", "the driver asks for recovery: drain_and_reset"),
        ("clocks_event_reasons", ["hw_slowdown"], "the hardware holds the clocks down (hw_slowdown)"),
        (
            "clocks_event_reasons",
            ["gpu_idle", "hw_thermal_slowdown"],
            "the hardware holds the clocks down because of heat (hw_thermal_slowdown)",
        ),
        (
            "clocks_event_reasons",
            ["hw_power_brake_slowdown"],
            "the power supply holds the clocks down (hw_power_brake_slowdown)",
        ),
        (
            "fabric.state",
            "in_progress",
            "its NVLink fabric is not up (state in_progress): check the nvidia-fabricmanager service",
        ),
    ],
)
def test_bad(path, value, reason):
    device = model.blank(0, "unsupported")
    model.put(device, path, value)
    fit = path == "clocks_event_reasons"
    assert health.health(device) == {"ok": False, "fit": fit, "lost": False, "reasons": [reason]}


def test_a_slow_gpu_with_another_fault_is_not_fit():
    device = model.blank(0, "unsupported")
    model.put(device, "clocks_event_reasons", ["hw_slowdown"])
    model.put(device, "remapped_rows.pending", True)
    assert not health.health(device)["fit"]


@pytest.mark.parametrize(
    "path, value",
    [
        ("ecc.volatile.uncorrected", 0),
        ("ecc.volatile.corrected", 900),
        ("ecc.aggregate.uncorrected", 2),
        ("remapped_rows.uncorrected", 1),
        ("recovery_action", "none"),
        ("clocks_event_reasons", ["gpu_idle", "sw_power_cap", "sw_thermal_slowdown", "sync_boost"]),
        ("fabric.state", "completed"),
        ("index", 0),
    ],
)
def test_good(path, value):
    device = model.blank(0, "unsupported")
    model.put(device, path, value)
    assert health.health(device) == {"ok": True, "fit": True, "lost": False, "reasons": []}


def test_fabric_that_failed():
    device = model.blank(0, "unsupported")
    model.put(device, "fabric.state", "completed")
    model.put(device, "fabric.status", "success")
    assert health.health(device)["ok"]
    model.put(device, "fabric.status", "Unknown Error")
    assert health.health(device)["reasons"] == [
        "its NVLink fabric has failed (Unknown Error): check the nvidia-fabricmanager service"
    ]


def test_lost_comes_first():
    device = model.blank(0, "unsupported")
    model.put(device, "remapped_rows.pending", True)
    told = health.health(device, "GPU is lost")
    assert told["lost"] and not told["ok"]
    assert told["reasons"] == ["GPU is lost", "remapping of memory rows is pending: reset the GPU"]
