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
