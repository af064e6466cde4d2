# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated GPUs on a lab host: nodes, procfs, sysfs, the library and nvidia-smi agree, in every state."""

from __future__ import annotations

from typing import Any, Iterator

import pytest


@pytest.fixture(scope="module")
def gpus(lab: Any) -> Iterator[str]:
    """A host whose GPUs these tests switch."""
    yield lab.hosts[1 % len(lab.hosts)]
    lab.state(lab.hosts[1 % len(lab.hosts)])


def counts(lab: Any, host: str) -> dict:
    """How many GPUs each place on the host shows."""
    script = (
        "ls /dev/nvidia[0-9]* 2>/dev/null | wc -l; ls /proc/driver/nvidia/gpus 2>/dev/null | wc -l;"
        "cat /sys/bus/pci/devices/*/vendor 2>/dev/null | grep -c 0x10de; nvidia-smi -L 2>/dev/null | grep -c '^GPU'; :"
    )
    return dict(zip(("nodes", "procfs", "sysfs", "nvml"), map(int, lab.sh(host, script).split()), strict=True))


@pytest.mark.parametrize(
    ("state", "faults", "expected"),
    [
        ("rtx4090x4", [], (4, 4, 4, 4)),
        ("h200x2", [], (2, 2, 2, 2)),
        ("hgx-h100x8", [], (8, 8, 8, 8)),
        ("a100x2-mig", [], (2, 2, 2, 2)),
        ("h200x4", ["driver-not-loaded"], (0, 0, 4, 0)),
        ("h200x4", ["driver-mismatch"], (4, 4, 4, 0)),
        ("h200x4", ["library-missing"], (4, 4, 4, 0)),
        ("h200x4", ["gpu-lost:1"], (4, 4, 4, 0)),
        ("none", [], (0, 0, 0, 0)),
        ("h200x4", [], (4, 4, 4, 4)),
    ],
)
def test_every_place_shows_the_state(lab: Any, gpus: str, state: str, faults: list, expected: tuple) -> None:
    lab.state(gpus, state, *faults)
    assert tuple(counts(lab, gpus).values()) == expected


def test_a_unit_sees_the_gpus_it_may_open(lab: Any, gpus: str) -> None:
    """As recorded on real GPUs: renumbered from 0, UUIDs true."""
    lab.state(gpus, "h200x4")
    allowed = " ".join("-p DeviceAllow='/dev/nvidia%s rw'" % name for name in ("ctl", "2", "3"))
    seen = lab.sh(gpus, "systemd-run --quiet --pipe --wait -p DevicePolicy=closed %s nvidia-smi -L" % allowed)
    assert seen.splitlines() == [
        "GPU %d: NVIDIA H200 (UUID: GPU-%08d-0000-4000-8000-%012d)" % (index, index + 3, index + 3) for index in (0, 1)
    ]


def test_what_the_driver_logged_is_reported(lab: Any, gpus: str) -> None:
    """The lines have the form of real ones; a lab host has no /dev/kmsg of its own."""

    def said() -> str:
        run = lab.ansible("ansible", gpus, "--become", "-m", "gpufleet.inference.gpu_facts")
        assert run.rc == 0, run.output
        return " ".join(run.output.split())

    lab.state(gpus, "h200x4")
    assert "WARNING" not in said()
    place = lab.sh(gpus, "nvidia-smi --query-gpu=pci.bus_id -i 2 --format=csv,noheader").strip()[4:-2].lower()
    line = "4,2,1000,-;NVRM: Xid (PCI:%s): 119, pid=7, name=x, Timeout after 45s of waiting for RPC response" % place
    lab.sh(gpus, "echo '%s' >/dev/kmsg" % line)
    try:
        assert "GPU 2: xid_119: Xid 119, the GPU's system processor did not answer: once, " in said()
        assert " ago. What to do: reset the GPU" in said()
    finally:
        lab.sh(gpus, "rm /dev/kmsg")


def test_rdma_devices_come_and_go_and_the_network_stays(lab: Any, gpus: str) -> None:
    lab.state(gpus, "hgx-h100x8")
    assert lab.sh(gpus, "cat /sys/class/infiniband/*/ports/1/link_layer").split() == ["InfiniBand"] * 8 + ["Ethernet"]
    lab.state(gpus, "h200x4")
    assert "eth0" in lab.sh(gpus, "test ! -e /sys/class/infiniband; ls /sys/class/net").split()
