# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts as torchrun_facts tells of them, and a fake sysfs with RDMA devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import command, job, plan

UNIT = "torchrun@train.service"
FIXTURES = Path(__file__).parents[3] / "fixtures" / "torchrun"


def interface(name, *addresses, up=True, speed=None, mtu=1500):
    found = [{"address": one.partition("/")[0], "prefix": int(one.partition("/")[2])} for one in addresses]
    return {"name": name, "up": up, "loopback": name == "lo", "mtu": mtu, "speed_mbps": speed, "addresses": found}


def gpu(index, *processes):
    return {"index": index, "uuid": "GPU-%d" % index, "processes": list(processes)}


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
            "torch": {"version": torch, "cuda": "13.0", "nccl": nccl, "conda": False, "compat": ""} if torch else None,
            "code": None,
            "torch_missing": None if torch else "its Python has no package torch",
            "gpus": {"count": gpus, "fault": None, "nvlink": nvlink, "devices": [gpu(i) for i in range(gpus)]},
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


# --- a systemd in memory


class FakeProcess:
    def __init__(self, system):
        self.system = system

    def ended_within(self, limit):
        """The job ends while it is waited for, unless it hangs."""
        self.system.waited.append(limit)
        if limit > job.SETTLE and self.system.ends is not None and self.system.up:
            self.system.end(*self.system.ends)
        return not self.system.up


class FakeSystem(System):
    """One unit; a start reads the environment file that was written, as systemd does."""

    def __init__(self, root):
        super().__init__(str(root))
        self.up, self.environment, self.invocation = False, {}, ""
        self.calls, self.waited, self.lines = [], [], []
        self.dies, self.ends = None, ("success", "exited", "0")
        self.forbidden = False
        self.processes = {}
        self.buried = 0  # looks at a main process that has ended before systemd knows it
        self.late = []  # states that systemd gives first: it has not seen the exec yet, nor the end

    def path(self, name):
        return Path(self.root + name)

    def end(self, result, code, status):
        self.up = False
        mark = self.environment.get(command.MARK)
        self.path("/var/lib/gpufleet/torchrun/train/ended").write_text(
            "%s %s %s %s %s\n" % (mark, result, code, status, self.invocation)
        )

    def show(self, unit):
        state = "active" if self.up else "inactive"
        there = "loaded" if self.path("/etc/systemd/system/" + UNIT).exists() else "not-found"
        pid = "7" if self.up else "0"
        found = {"ActiveState": state, "LoadState": there, "MainPID": pid, "InvocationID": self.invocation}
        return dict(found, **(self.late.pop(0) if self.invocation and self.late else {}))

    def environ(self, pid):
        if pid == 7 and self.buried:
            self.buried -= 1
            if not self.buried:
                self.end(*self.ends)
            return None
        return self.processes.get(pid, self.environment)

    def pids(self, control_group):
        return [7, *self.processes]

    def process(self, pid):
        return FakeProcess(self)

    def journal(self, unit, invocation, lines):
        return self.lines

    def sync_journal(self):
        pass

    def names(self, directory):
        return ["eth0", "lo"] if directory == "/sys/class/net" else super().names(directory)

    def _write(self, call):
        assert not self.forbidden, call
        self.calls.append(call)

    def reload(self):
        self._write("reload")

    def reset_failed(self, unit):
        pass

    def stop(self, unit, limit):
        self._write("stop %s" % unit)
        if unit == UNIT:
            self.up = False

    def start(self, unit, limit):
        self._write("start")
        files = [self.path("/etc/gpufleet/torchrun/train." + kind) for kind in ("env", "secrets")]
        lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
        self.environment = dict(line.replace('"', "").split("=", 1) for line in lines if not line.startswith("#"))
        self.up, self.invocation = True, "i%d" % len(self.calls)
        if self.dies:
            self.end(*self.dies)


@pytest.fixture
def system(tmp_path):
    fake = FakeSystem(tmp_path / "root")
    for path, mode in (("/opt/torch/bin/python", 0o755), ("/srv/train.py", 0o644)):
        fake.path(path).parent.mkdir(parents=True)
        fake.path(path).write_text("")
        fake.path(path).chmod(mode)
    return fake


@pytest.fixture
def bring(system, params, node, interface):
    """`bring(state, check=False, options of the plan, gpus and code of each host, own options, **params)` on host a."""

    def hosts(gpus=0, code=None):
        code = code and {"path": "/srv/train.py", "folder": "/srv", "files": {}, **code}
        cards = {n: interface("eth0", "10.1.0.%d/24" % i) for i, n in enumerate("ab", 1)}
        return {n: dict(node(n, card, gpus=gpus), code=code) for n, card in cards.items()}

    def run(state="started", check=False, warnings=None, options=None, gpus=0, code=None, own=None, **more):
        if state in ("joined", "finished") and not system.up:  # neither of them starts it
            run(check=check, options=options, gpus=gpus, code=code, own=own, **more)
        made = (
            None if state in ("stopped", "absent") else dict(plan.make(hosts(gpus, code), **(options or {})), host="a")
        )
        system.forbidden = check
        warn = (warnings if warnings is not None else []).append
        return job.converge(params(state=state, plan=made, options=own or {}, **more), check, warn, system)

    def bare(state, gpus=0, **more):
        made = dict(plan.make(hosts(gpus)), host="a")
        return job.converge(params(state=state, plan=made, **more), False, print, system)

    def part(**more):
        return job._Running(params(plan=dict(plan.make(hosts()), host="a"), **more), False, print, system)

    run.bare = bare  # a wait without a start before it
    run.part, run.system = part, system
    return run
