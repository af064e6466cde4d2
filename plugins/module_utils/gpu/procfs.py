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
_ACS = 0x0D  # the extended capability
_REDIRECT = 0x0C  # of requests and of completions, in its control register
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


def uncorrectable_errors(folder: str) -> Optional[int]:
    """Errors of a PCI Express link that the kernel has counted since boot (AER); None where it counts none."""
    texts = [read_text(folder, "aer_dev_" + kind) for kind in ("fatal", "nonfatal")]
    counts = [line.split() for text in texts for line in (text or "").splitlines() if line.startswith("TOTAL_ERR")]
    numbers = [int(words[1]) for words in counts if len(words) == 2 and words[1].isdigit()]
    return sum(numbers) if numbers else None


def acs_redirects(folder: str) -> List[str]:
    """The bridges above a PCI device that send what it sends to another device through the CPU (ACS).

    Only root can read this, and reading takes long: the values come from the bridges themselves.
    """
    found, place = [], os.path.dirname(os.path.realpath(folder))
    while os.path.basename(place).count(":") == 2:
        if _redirects(os.path.join(place, "config")):
            found.append(os.path.basename(place))
        place = os.path.dirname(place)
    return found


def _redirects(config: str) -> bool:
    """Whether a bridge redirects requests or completions, by its extended configuration space."""
    try:
        with open(config, "rb", buffering=0) as space:
            place, seen = 0x100, 0
            while 0x100 <= place < 0x1000 and seen < 96:
                space.seek(place)
                header = int.from_bytes(space.read(4), "little")
                if header & 0xFFFF == _ACS:
                    space.seek(place + 6)
                    return bool(int.from_bytes(space.read(2), "little") & _REDIRECT)
                place, seen = header >> 20, seen + 1
    except OSError:
        pass
    return False


def pci_gpus(root: str = "/", thorough: bool = False) -> List[Dict[str, Any]]:
    """NVIDIA's GPUs on the PCI bus, in its order, less those given away to virtual machines (vfio-pci).

    :param thorough: whether to read what takes long, too.
    :returns: ``pci_bus_id``, ``pci_device_id`` (``10de:2335``), ``kernel_driver`` (``nvidia``, ``nouveau``, None),
        ``uncorrectable_errors``, ``acs_redirects`` (None if not thorough) and the keys of place().
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
            "uncorrectable_errors": uncorrectable_errors(os.path.join(folder, name)),
            "acs_redirects": acs_redirects(os.path.join(folder, name)) if thorough else None,
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
