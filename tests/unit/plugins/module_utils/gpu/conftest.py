# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recordings, a pynvml that plays them, and host trees in a temporary folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[3] / "fixtures" / "gpu"

INFORMATION = """Model: \t\t NVIDIA H200
IRQ:   \t\t 41
GPU UUID: \t {uuid}
Video BIOS: \t 96.00.cf.00.0c
Bus Type: \t PCIe
DMA Size: \t 52 bits
DMA Mask: \t 0xfffffffffffff
Bus Location: \t {bus_id}
Device Minor: \t {minor}
GPU Firmware: \t 580.159.04
GPU Excluded:\t No
"""


@pytest.fixture
def recording():
    """`recording("h200x4")` is what NVML said on a real host, as data that a test may change."""
    return lambda name: json.loads((FIXTURES / ("%s-nvml.json" % name)).read_text(encoding="utf-8"))


@pytest.fixture
def recorded_xml():
    """`recorded_xml("h200x4")` is what `nvidia-smi -q -x` said there."""
    return lambda name: (FIXTURES / ("%s-nvidia-smi-q.xml" % name)).read_text(encoding="utf-8")


@pytest.fixture
def play(tmp_path, monkeypatch):
    """`play(state)` makes a state what the fake binding says; gives the folder from which it is imported."""

    def choose(state):
        (tmp_path / "nvml.json").write_text(json.dumps(state), encoding="utf-8")
        monkeypatch.setenv("GPUFLEET_FAKE_NVML", str(tmp_path / "nvml.json"))
        return str(FIXTURES / "fake")

    return choose


@pytest.fixture
def binding(play):
    """`binding(state)` is the fake binding itself, for use in this process."""

    def load(state):
        spec = importlib.util.spec_from_file_location("pynvml", "%s/pynvml.py" % play(state))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


class Host:
    """A tree of procfs and sysfs under a folder."""

    def __init__(self, root):
        self.root = root

    def write(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def pci(self, path, vendor="0x10de", kind="0x030200", device="0x2335", numa=-1, cpus="0-31", driver="nvidia"):
        """A PCI device; `path` goes from the root complex to the device: "pci0000:00/0000:00:06.0"."""
        real = "sys/devices/%s" % path
        bus_id = path.rpartition("/")[2]
        for name, text in (
            ("vendor", vendor),
            ("class", kind),
            ("device", device),
            ("numa_node", str(numa)),
            ("local_cpulist", cpus),
        ):
            self.write("%s/%s" % (real, name), text + "\n")
        if driver:
            (self.root / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
            self._link("%s/driver" % real, "sys/bus/pci/drivers/%s" % driver)
        self._link("sys/bus/pci/devices/%s" % bus_id, real)
        return real

    def _link(self, path, target):
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.root / target)

    def kernel(self, version="580.159.04", flavour="Open Kernel Module for x86_64"):
        self.write(
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX %s  %s  Release Build  (builder@host)\nGCC version:  gcc 12.2.0\n"
            % (flavour, version),
        )

    def kernel_gpu(self, bus_id, minor, uuid):
        text = INFORMATION.format(bus_id=bus_id, minor=minor, uuid=uuid)
        self.write("proc/driver/nvidia/gpus/%s/information" % bus_id, text)

    def library(self, version):
        self.write("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.%s" % version, "")
        if version != "1":
            self._link(
                "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "usr/lib/x86_64-linux-gnu/libnvidia-ml.so." + version
            )

    def h200s(self, count):
        """A host like the recorded ones: GPUs straight on the root complex of a virtual machine, driver loaded."""
        self.kernel()
        self.library("580.159.04")
        for minor in range(count):
            bus_id = "0000:00:%02x.0" % (6 + minor)
            self.pci("pci0000:00/" + bus_id, cpus="0-63" if count == 4 else "0-31")
            self.kernel_gpu(bus_id, minor, "GPU-%08d-0000-4000-8000-%012d" % (minor + 1, minor + 1))
        return self

    def rdma(self, name, hardware=None, netdevs=(), **files):
        """An RDMA device; `files` are texts by path below it, with "__" for "/"."""
        base = "sys/class/infiniband/%s" % name
        for path, text in files.items():
            self.write("%s/%s" % (base, path.replace("__", "/")), text + "\n")
        if hardware:
            for netdev in netdevs:
                (self.root / hardware / "net" / netdev).mkdir(parents=True)
            self._link("%s/device" % base, hardware)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path / "host")
