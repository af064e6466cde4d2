# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's own word on GPUs, in made-up trees."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import procfs


def test_empty_host(host):
    root = str(host.root)
    assert procfs.pci_gpus(root) == []
    assert procfs.kernel_driver(root) == {"loaded": False, "version": None, "open_kernel_module": None}
    assert procfs.kernel_gpus(root) == []
    assert procfs.library(root) == {"installed": False, "version": None}


def test_recorded_host(host):
    host.h200s(2)
    root = str(host.root)
    assert procfs.pci_gpus(root)[1] == {
        "pci_bus_id": "0000:00:07.0",
        "pci_device_id": "10de:2335",
        "kernel_driver": "nvidia",
        "uncorrectable_errors": None,
        "acs_redirects": None,
        "path": ["pci0000:00", "0000:00:07.0"],
        "numa_node": None,
        "cpu_affinity": "0-31",
    }
    assert procfs.kernel_driver(root) == {"loaded": True, "version": "580.159.04", "open_kernel_module": True}
    assert procfs.kernel_gpus(root)[0] == {
        "pci_bus_id": "0000:00:06.0",
        "uuid": "GPU-00000001-0000-4000-8000-000000000001",
        "name": "NVIDIA H200",
        "minor": 0,
        "vbios_version": "96.00.CF.00.0C",
        "gsp_firmware_version": "580.159.04",
    }
    assert procfs.library(root) == {"installed": True, "version": "580.159.04"}


def test_only_gpus_of_this_host_count(host):
    host.pci("pci0000:00/0000:00:02.0", vendor="0x8086", kind="0x030000", driver="i915")
    host.pci("pci0000:00/0000:00:06.0", kind="0x040300", driver="snd_hda_intel")
    host.pci("pci0000:00/0000:00:07.0", kind="0x068000", driver="nvidia")
    host.pci("pci0000:00/0000:00:08.0", driver="vfio-pci")
    host.pci("pci0000:00/0000:00:09.0", kind="0x030000", driver="nouveau", numa=1)
    host.pci("pci0000:00/0000:00:0a.0", driver=None)
    (host.root / "sys/devices/pci0000:00/0000:00:0a.0/device").unlink()
    found = procfs.pci_gpus(str(host.root))
    assert [(gpu["pci_bus_id"], gpu["kernel_driver"], gpu["numa_node"]) for gpu in found] == [
        ("0000:00:09.0", "nouveau", 1),
        ("0000:00:0a.0", None, None),
    ]
    assert found[1]["pci_device_id"] is None


def test_proprietary_module(host):
    host.kernel("535.183.01", "x86_64 Kernel Module")
    told = procfs.kernel_driver(str(host.root))
    assert told == {"loaded": True, "version": "535.183.01", "open_kernel_module": False}


@pytest.mark.parametrize("text", ["", "NVRM version: something new\n"])
def test_version_that_is_no_version(host, text):
    host.write("proc/driver/nvidia/version", text)
    assert procfs.kernel_driver(str(host.root)) == {"loaded": True, "version": None, "open_kernel_module": False}


def test_module_known_to_sysfs_only(host):
    host.write("sys/module/nvidia/version", "570.1\n")
    assert procfs.kernel_driver(str(host.root)) == {"loaded": True, "version": "570.1", "open_kernel_module": None}


def test_gpu_that_was_never_used(host):
    host.write(
        "proc/driver/nvidia/gpus/0000:3b:00.0/information",
        "Model: \t\t Unknown\nGPU UUID: \t GPU-????????-????-????-????-????????????\nVideo BIOS: \t ??.??.??.??.??\n"
        "Device Minor: \t 3\nGPU Firmware: \t N/A\n",
    )
    assert procfs.kernel_gpus(str(host.root)) == [
        {
            "pci_bus_id": "0000:3b:00.0",
            "uuid": None,
            "name": "Unknown",
            "minor": 3,
            "vbios_version": None,
            "gsp_firmware_version": None,
        }
    ]
    (host.root / "proc/driver/nvidia/gpus/0000:3b:00.0/information").unlink()
    assert procfs.kernel_gpus(str(host.root))[0]["minor"] is None


def test_library_without_version_in_its_name(host):
    host.library("1")
    assert procfs.library(str(host.root)) == {"installed": True, "version": None}


@pytest.mark.parametrize(
    ("fatal", "nonfatal", "found"),
    [
        ("DLP 1\nTOTAL_ERR_FATAL 1\n", "Undefined 0\nTOTAL_ERR_NONFATAL 3\n", 4),
        ("TOTAL_ERR_FATAL 0\n", None, 0),
        ("odd\n", "TOTAL_ERR_NONFATAL many\n", None),
        (None, None, None),
    ],
)
def test_errors_of_a_link(tmp_path, fatal, nonfatal, found):
    for name, text in (("fatal", fatal), ("nonfatal", nonfatal)):
        if text is not None:
            (tmp_path / ("aer_dev_" + name)).write_text(text)
    assert procfs.uncorrectable_errors(str(tmp_path)) == found


def capabilities(*rows):
    """An extended configuration space: id, and the word at 6 of each capability."""
    space = bytearray(4096)
    for number, (name, control) in enumerate(rows):
        place, after = 0x100 + 0x40 * number, 0x140 + 0x40 * number if number + 1 < len(rows) else 0
        space[place : place + 4] = (name | 1 << 16 | after << 20).to_bytes(4, "little")
        space[place + 6 : place + 8] = control.to_bytes(2, "little")
    return bytes(space)


@pytest.mark.parametrize(
    ("space", "redirects"),
    [
        (capabilities((1, 0), (0x0D, 0x1D)), True),
        (capabilities((0x0D, 0x08), (1, 0)), True),
        (capabilities((1, 0xFF), (0x0D, 0x11)), False),
        (capabilities((1, 0xFF)), False),
        (bytes(256), False),
        (b"\x01\x00\x01\x10" * 1024, False),
        (None, False),
    ],
    ids=["on", "completions", "blocked alone", "none", "not readable as a user", "a circle", "no file"],
)
def test_bridges_that_redirect(tmp_path, space, redirects):
    bridge = tmp_path / "pci0000:00/0000:00:01.0"
    (bridge / "0000:01:00.0").mkdir(parents=True)
    if space is not None:
        (bridge / "config").write_bytes(space)
    assert procfs.acs_redirects(str(bridge / "0000:01:00.0")) == (["0000:00:01.0"] if redirects else [])
