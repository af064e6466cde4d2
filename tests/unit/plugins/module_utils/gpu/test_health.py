# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a GPU, one finding at a time."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import faults, health, model


@pytest.mark.parametrize(
    "path, value, reason",
    [
        ("ecc.volatile.uncorrected", 3, "3 uncorrectable memory errors since the driver was loaded (ECC, volatile)"),
        ("remapped_rows.failure", True, "remapping of memory rows has failed: have the board replaced"),
        ("remapped_rows.pending", True, "remapping of memory rows is pending: reset the GPU"),
        ("retired_pages.pending", True, "retirement of memory pages is pending: reset the GPU"),
        ("repair.channel_pending", True, "a repair of the GPU is pending: reset the GPU"),
        ("repair.tpc_pending", True, "a repair of the GPU is pending: reset the GPU"),
        (
            "ecc.sram_threshold_exceeded",
            True,
            "the memory on its chip had too many uncorrectable errors (SRAM threshold): have the board replaced",
        ),
        ("unrepairable_memory", True, "its memory cannot be repaired any more: have the board replaced"),
        (
            "fabric.problems",
            ["route_unhealthy", "no_partition"],
            "its NVLink fabric is unhealthy (route_unhealthy, no_partition): check the nvidia-fabricmanager service "
            "and the NVSwitches",
        ),
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


def test_a_fabric_that_is_only_degraded_is_fit():
    device = model.blank(0, "unsupported")
    model.put(device, "fabric.problems", ["degraded_bandwidth"])
    told = health.health(device)
    assert not told["ok"] and told["fit"] and "has less bandwidth (degraded_bandwidth)" in told["reasons"][0]


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
        ("fabric.problems", []),
        ("ecc.sram_threshold_exceeded", False),
        ("unrepairable_memory", False),
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


def findings(devices, xids):
    return health.findings([dict(device, health=health.health(device)) for device in devices], xids)


@pytest.mark.parametrize("count, expected, found", [(8, 8, 0), (9, 8, 0), (3, 0, 0), (7, 8, 1), (0, 8, 1)])
def test_a_gpu_that_is_not_on_the_bus_is_a_finding(count, expected, found):
    told = health.missing(count, expected)
    assert [one["check"] for one in told] == ["gpu_missing"] * found
    assert all(one["gpu"] is None and one["effect"] == "unfit" for one in told)
    assert all(one["text"].startswith("%d of 8 GPUs are missing" % (expected - count)) for one in told)


def test_a_gpu_that_does_not_answer_is_a_finding():
    device = model.blank(3, "unsupported")
    device["health"] = health.health(device, "GPU is lost")
    assert health.findings([device], [], [(3, faults.fault(faults.GPU_LOST, "GPU is lost"))]) == [
        {
            "gpu": 3,
            "check": "gpu_lost",
            "effect": "unfit",
            "action": "look",
            "text": "GPU is lost",
            "line": "GPU 3: gpu_lost: GPU is lost",
            "remedy": faults.fault(faults.GPU_LOST, "")["remedy"],
        }
    ]


def twins(count=4, **leaves):
    """GPUs of one host that are alike."""
    found = []
    for index in range(count):
        device = model.blank(index, "unsupported")
        model.put(device, "name", "NVIDIA H200")
        model.put(device, "pci_bus_id", "0000:%02x:00.0" % (16 + index))
        for path, value in leaves.items():
            model.put(device, path.replace("__", "."), value)
        found.append(device)
    return found


@pytest.mark.parametrize(
    "check, path, value, text",
    [
        ("pcie_narrow", "pcie.width", 8, "its PCI Express link uses 8 of 16 lanes"),
        ("spare_rows_low", "remapped_rows.spare_banks.low", 2, "(banks: 2 low, 0 without any)"),
        ("spare_rows_low", "remapped_rows.spare_banks.none", 1, "(banks: 0 low, 1 without any)"),
        ("hot", "temperature.margin_celsius", 3, "it is 3 °C below the temperature at which it slows down"),
        ("unlike_twins", "vbios_version", "96.01", "its VBIOS: 96.01; of 3 others: 96.00"),
        ("unlike_twins", "nvlink.active_count", 17, "its NVLinks that are up: 17; of 3 others: 18"),
        ("unlike_twins", "ecc.enabled", False, "its ECC: False; of 3 others: True"),
    ],
)
def test_notes(check, path, value, text):
    """Each of them leads to its finding and to no other, and keeps no GPU from working."""
    alike = {"vbios_version": "96.00", "nvlink__active_count": 18, "ecc__enabled": True}
    devices = twins(pcie__width=16, pcie__max_width=16, temperature__margin_celsius=40, **alike)
    assert findings(devices, []) == []
    model.put(devices[2], path, value)
    (found,) = findings(devices, [])
    assert (found["gpu"], found["check"], found["effect"]) == (2, check, "note")
    assert text in found["line"] and not found["text"].endswith(found["remedy"])
    assert health.health(devices[2])["ok"]


def test_what_is_against_a_gpu_is_a_finding_too():
    (device,) = twins(1)
    model.put(device, "remapped_rows.pending", True)
    assert findings([device], []) == [
        {
            "gpu": 0,
            "check": "remap_pending",
            "effect": "unfit",
            "action": "reset",
            "text": "remapping of memory rows is pending",
            "line": "GPU 0: remap_pending: remapping of memory rows is pending: reset the GPU",
            "remedy": "reset the GPU",
        }
    ]


def test_no_twin_is_odd_where_they_are_half_and_half():
    devices = twins(vbios_version="96.00")
    for device in devices[:2]:
        model.put(device, "vbios_version", "96.01")
    assert findings(devices, []) == []


def test_other_models_are_no_twins():
    devices = twins(vbios_version="96.00")
    model.put(devices[3], "name", "NVIDIA L4")
    model.put(devices[3], "vbios_version", "95.04")
    assert findings(devices, []) == []


def test_xids():
    devices = twins(2)
    xids = [
        {"pci_bus_id": "0000:11:00.0", "code": 119, "count": 1, "age_seconds": 840},
        {"pci_bus_id": "0000:10:00.0", "code": 31, "count": 3, "age_seconds": 90},
        {"pci_bus_id": "0000:99:00.0", "code": 79, "count": 1, "age_seconds": 400000},
        {"pci_bus_id": "0000:10:00.0", "code": 999, "count": 1, "age_seconds": 7300},
    ]
    assert [(found["gpu"], found["check"], found["action"], found["text"]) for found in findings(devices, xids)] == [
        (1, "xid_119", "reset", "Xid 119, the GPU's system processor did not answer: once, 14 min ago"),
        (0, "xid_31", "restart", "Xid 31, memory page fault of a program: 3 times, the last 90 s ago"),
        (
            *(None, "xid_79", "reboot"),
            "Xid 79, the GPU has fallen off the bus: once, 4 days ago (at 0000:99:00.0, where there is no GPU now)",
        ),
        (0, "xid_999", "look", "Xid 999, see NVIDIA's list of Xid errors: once, 2 h ago"),
    ]


def test_each_check_has_a_name_and_an_action_of_its_own_kind():
    names = [check.name for check in health.CHECKS]
    assert len(names) == len(set(names))
    assert {check.action for check in health.CHECKS} <= set(health.ACTIONS) - {"restart"}
    assert {action for action, _meaning in health.XIDS.values()} <= set(health.ACTIONS) - {"replace"}


@pytest.mark.parametrize("count, found", [(1, []), (2, ["acs_on", "acs_on"])])
def test_a_gpu_that_is_alone_reaches_no_other(count, found):
    devices = [model.blank(index, "unsupported") for index in range(count)]
    for device in devices:
        model.put(device, "pcie.acs_redirects", ["0000:00:01.0"])
    assert [one["check"] for one in findings(devices, [])] == found
