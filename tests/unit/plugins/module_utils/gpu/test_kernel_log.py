# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Xid errors out of the kernel's log, in the form that the kernel documents for /dev/kmsg."""

from __future__ import annotations

import os
import time

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import kernel_log

LOG = """\
6,1024,1500000,-;NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.159.04
 SUBSYSTEM=pci
4,2048,%(first)d,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=4242, name=python3, channel 0x00000008, intr 00000000
4,2049,%(second)d,-,caller=T12;NVRM: Xid (PCI:0000:3b:00): 31, pid=4243, name=x, MMU Fault
4,2050,%(third)d,-;NVRM: Xid (PCI:0000:86:00.0): 79, GPU has fallen off the bus.
3,2051,%(third)d,-;NVRM: Xid of nothing (PCI:0000:86:00): 48, no
6,2052,%(third)d,-;user: NVRM: Xid (PCI:0000:86:00): 48, said by a program
"""


def test_they_are_counted_by_gpu_and_code_the_latest_first(host):
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    ages = {"first": 7200, "second": 3600, "third": 60}
    host.write("dev/kmsg", LOG % {name: max(0, now - age) * 1e6 for name, age in ages.items()})
    last, earlier = kernel_log.read(str(host.root))
    assert (last["pci_bus_id"], last["code"], last["count"]) == ("0000:86:00.0", 79, 1)
    assert (earlier["pci_bus_id"], earlier["code"], earlier["count"]) == ("0000:3b:00.0", 31, 2)
    assert last["age_seconds"] == pytest.approx(60, abs=5)


@pytest.mark.parametrize("content", ["", "rubbish\n", "6,1,2,-;NVRM: Xid (PCI:x): y, z\n"])
def test_a_log_without_any(host, content):
    host.write("dev/kmsg", content)
    assert kernel_log.read(str(host.root)) == []


def test_no_log(host):
    assert kernel_log.read(str(host.root)) == []
    host.write("dev/other", LOG)
    (host.root / "dev/kmsg").symlink_to(host.root / "dev/other")
    assert kernel_log.read(str(host.root)) == [], "no link is followed"
    (host.root / "dev/kmsg").unlink()
    os.mkfifo(host.root / "dev/kmsg")
    assert kernel_log.read(str(host.root)) == [], "no pipe is waited for"


def test_the_kernels_own_device():
    """Whatever this machine lets us read of it: it ends, and breaks nothing."""
    assert all(set(xid) == {"pci_bus_id", "code", "count", "age_seconds"} for xid in kernel_log.read())
