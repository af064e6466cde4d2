# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts as torchrun_facts tells of them, and a fake sysfs with RDMA devices."""

from __future__ import annotations

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[3] / "fixtures" / "torchrun"


def interface(name, *addresses, up=True, speed=None, mtu=1500):
    found = [{"address": one.partition("/")[0], "prefix": int(one.partition("/")[2])} for one in addresses]
    return {"name": name, "up": up, "loopback": name == "lo", "mtu": mtu, "speed_mbps": speed, "addresses": found}


LOOPBACK = interface("lo", "127.0.0.1/8", "::1/128")


@pytest.fixture
def node():
    """`node("gpu1", interface(...), ...)` is a host's facts."""

    def make(
        hostname, *interfaces, names=None, gpus=0, nvlink=False, rdma=(), torch="2.13.0", nccl="2.29.7", busy=None
    ):
        first = interfaces[0]["addresses"][0]["address"] if interfaces else "127.0.0.1"
        return {
            "hostname": hostname,
            "interfaces": [LOOPBACK, *interfaces],
            "own_names": {hostname: [first] if names is None else names},
            "venv": "/opt/torch",
            "torch": {"version": torch, "cuda": "13.0", "nccl": nccl} if torch else None,
            "torch_missing": None if torch else "its Python has no package torch",
            "gpus": {"count": gpus, "fault": None, "nvlink": nvlink},
            "rdma": list(rdma),
            "listener": {"token": "t-" + hostname, "port": 40000, "busy": busy or {}},
        }

    return make


@pytest.fixture(name="interface")
def interface_fixture():
    return interface


@pytest.fixture
def reach():
    """`reach(facts, no=[(from, address, kind, why)])` is what all hosts found when they tried each other."""

    def make(facts, no=(), offset=0.0):
        refused = {(one, address, kind): why for one, address, kind, why in no}

        def tried(one, address):
            found = {"clock_offset_s": offset}
            for kind in ("data", "rendezvous"):
                why = refused.get((one, address, kind), "")
                found[kind] = {"ok": not why, "why": why}
            return found

        def addresses(host):
            return [
                given["address"]
                for card in facts[host]["interfaces"]
                if not card["loopback"]
                for given in card["addresses"]
            ]

        return {
            one: {
                other: {address: tried(one, address) for address in addresses(other)} for other in facts if other != one
            }
            for one in facts
        }

    return make


@pytest.fixture
def sysfs(tmp_path):
    """`sysfs.device("mlx5_0", [port, ...])` puts an RDMA device into a fake sysfs below `sysfs.root`."""

    class Sysfs:
        root = tmp_path

        def device(self, name, *ports):
            folder = tmp_path / "sys/class/infiniband" / name
            for number, (state, link, layer, rate, *gids) in enumerate(ports, 1):
                port = folder / "ports" / str(number)
                port.mkdir(parents=True)
                for leaf, text in (("state", state), ("phys_state", link), ("link_layer", layer), ("rate", rate)):
                    (port / leaf).write_text(text + "\n")
                for index, (kind, gid) in enumerate(gids):
                    (port / "gids").mkdir(exist_ok=True)
                    (port / "gid_attrs/types").mkdir(parents=True, exist_ok=True)
                    (port / "gids" / str(index)).write_text(gid + "\n")
                    (port / "gid_attrs/types" / str(index)).write_text(kind + "\n")
            (folder / "node_type").write_text("1: CA\n")

    return Sysfs()


@pytest.fixture
def log():
    """`log("nvlink-2")` is the text of a recorded log."""
    return lambda name: (FIXTURES / (name + ".log")).read_text(encoding="utf-8")


@pytest.fixture
def params():
    """`params(**more)` are the module's parameters with their defaults."""
    from ansible_collections.gpufleet.inference.plugins.modules import torchrun_job

    def make(**more):
        found = {name: option.get("default") for name, option in torchrun_job.argument_spec().items()}
        return {**found, "name": "train", "script": "/srv/train.py", **more}

    return make
