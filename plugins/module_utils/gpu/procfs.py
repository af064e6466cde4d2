# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What procfs and sysfs say of GPUs and their driver, without NVML. Reads files only."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional

from .select import pci_bus_id

_NVIDIA = "0x10de"
_GPU_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers; audio functions and NVSwitches have others
_LIBRARY = "libnvidia-ml.so."
_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "lib64",
    "lib",
    "usr/local/nvidia/lib64",
    "usr/lib/wsl/lib",
)


def read_text(*parts: str) -> Optional[str]:
    """A small file's text without the white space around it; None when it cannot be read."""
    try:
        with open(os.path.join(*parts), encoding="utf-8", errors="replace") as source:
            return source.read().strip()
    except OSError:
        return None


def listing(*parts: str) -> List[str]:
    """A folder's names, sorted; none when it cannot be read."""
    try:
        return sorted(os.listdir(os.path.join(*parts)))
    except OSError:
        return []


def place(folder: str) -> Dict[str, Any]:
    """Where a PCI device sits: ``path`` below /sys/devices, ``numa_node`` (None for -1), ``cpu_affinity``."""
    path = os.path.realpath(folder).partition("/devices/")[2]
    node = read_text(folder, "numa_node")
    return {
        "path": path.split("/") if path.startswith("pci") else [],
        "numa_node": int(node) if node and node.isdigit() else None,
        "cpu_affinity": read_text(folder, "local_cpulist") or None,
    }


def pci_gpus(root: str = "/") -> List[Dict[str, Any]]:
    """NVIDIA's GPUs on the PCI bus, in its order, less those given away to virtual machines (vfio-pci).

    :returns: ``pci_bus_id``, ``pci_device_id`` (``10de:2335``), ``kernel_driver`` (``nvidia``, ``nouveau``, None) and
        the keys of place().
    """
    found = []
    folder = os.path.join(root, "sys/bus/pci/devices")
    for name in listing(folder):
        if read_text(folder, name, "vendor") != _NVIDIA:
            continue
        if not (read_text(folder, name, "class") or "").startswith(_GPU_CLASSES):
            continue
        bound = os.path.join(folder, name, "driver")
        driver = os.path.basename(os.path.realpath(bound)) if os.path.exists(bound) else None
        if driver == "vfio-pci":
            continue
        device = read_text(folder, name, "device")
        gpu = {
            "pci_bus_id": pci_bus_id(name),
            "pci_device_id": "10de:%s" % device[2:] if device else None,
            "kernel_driver": driver,
        }
        gpu.update(place(os.path.join(folder, name)))
        found.append(gpu)
    return found


def kernel_driver(root: str = "/") -> Dict[str, Any]:
    """The loaded kernel module: ``loaded``, ``version``, ``open_kernel_module`` (None when not loaded)."""
    text = read_text(root, "proc/driver/nvidia/version")
    if text is None:
        version = read_text(root, "sys/module/nvidia/version")
        return {"loaded": version is not None, "version": version, "open_kernel_module": None}
    line = text.splitlines()[0] if text else ""
    versions = [word for word in line.split() if word[:1].isdigit() and "." in word]
    return {
        "loaded": True,
        "version": versions[0] if versions else None,
        "open_kernel_module": "Open Kernel Module" in line,
    }


def kernel_gpus(root: str = "/") -> List[Dict[str, Any]]:
    """The GPUs that the kernel module holds, in the order of the PCI bus.

    :returns: ``pci_bus_id``, ``uuid``, ``name``, ``minor``, ``vbios_version``, ``gsp_firmware_version``; a value the
        driver does not know yet, shown as question marks before a GPU is first used, is None.
    """
    found = []
    folder = os.path.join(root, "proc/driver/nvidia/gpus")
    for name in listing(folder):
        lines = {}
        for line in (read_text(folder, name, "information") or "").splitlines():
            key, _sep, value = line.partition(":")
            lines[key.strip()] = None if "?" in value else value.strip() or None
        minor, vbios = lines.get("Device Minor"), lines.get("Video BIOS")
        found.append(
            {
                "pci_bus_id": pci_bus_id(name),
                "uuid": lines.get("GPU UUID"),
                "name": lines.get("Model"),
                "minor": int(minor) if minor and minor.isdigit() else None,
                "vbios_version": vbios.upper() if vbios else None,
                "gsp_firmware_version": None if lines.get("GPU Firmware") == "N/A" else lines.get("GPU Firmware"),
            }
        )
    return found


def library(root: str = "/") -> Dict[str, Any]:
    """NVML's library on disk: ``installed``, and ``version`` from its file name (None when the name carries none)."""
    installed, version = False, None
    for folder in _LIBRARY_FOLDERS:
        for name in listing(root, folder):
            if name.startswith(_LIBRARY):
                installed = True
                target = os.path.basename(os.path.realpath(os.path.join(root, folder, name)))
                number = target[len(_LIBRARY) :] if target.startswith(_LIBRARY) else ""
                if "." in number:
                    return {"installed": True, "version": number}
    return {"installed": installed, "version": version}
