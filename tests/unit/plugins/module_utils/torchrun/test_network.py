# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of a host, the listener, and who answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.processes import unit_of
from ansible_collections.gpufleet.inference.plugins.module_utils.programs import peer_listener
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import network
from ansible_collections.gpufleet.inference.plugins.modules import torchrun_facts

COMM, UNIT = Path("/proc/self/comm").read_text(encoding="utf-8").strip(), unit_of(os.getpid())
OURSELVES = "%s, process %d%s" % (COMM, os.getpid(), " of %s" % UNIT if UNIT else "")
ADDRESSES = [
    {"ifname": "lo", "flags": ["LOOPBACK", "UP", "LOWER_UP"], "mtu": 65536,
     "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8}]},
    {"ifname": "eth0", "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"], "mtu": 9000, "addr_info": [
        {"family": "inet", "local": "10.1.0.1", "prefixlen": 24},
        {"family": "inet6", "local": "2001:db8::1", "prefixlen": 64, "tentative": True}]},
    {"ifname": "eth1", "flags": ["NO-CARRIER", "BROADCAST", "UP"], "mtu": 1500, "addr_info": []},
    {},
]  # fmt: skip


@pytest.fixture
def run(monkeypatch):
    """Answers of commands by their first word; the commands are in `run.seen`."""

    class Run:
        seen, answers = [], {}

        def __call__(self, command):
            self.seen.append(command)
            code, out = self.answers.get(command[0], (0, ""))
            return subprocess.CompletedProcess(command, code, out, "words on stderr")

    fake = Run()
    fake.seen, fake.answers = [], {}
    monkeypatch.setattr(network, "_run", fake)
    return fake


def test_interfaces(run, tmp_path):
    run.answers["ip"] = (0, json.dumps(ADDRESSES))
    for name, text in (("eth0", "25000\n"), ("eth1", "-1\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "speed").write_text(text)
    lo, eth0, eth1 = network.interfaces(str(tmp_path))
    assert (lo["loopback"], lo["speed_mbps"]) == (True, None)
    assert eth0 == {
        "name": "eth0", "up": True, "loopback": False, "mtu": 9000, "speed_mbps": 25000,
        "addresses": [{"address": "10.1.0.1", "prefix": 24}],
    }  # fmt: skip
    assert (eth1["up"], eth1["speed_mbps"]) == (False, None)


def test_interfaces_that_are_not_told(run):
    run.answers["ip"] = (255, "")
    with pytest.raises(Failed, match="ip -json address show: exit 255: words on stderr"):
        network.interfaces()


def test_own_names():
    assert network.own_names("localhost")["localhost"][0] in ("127.0.0.1", "::1")
    assert network.own_names("no-such-name.invalid") == {"no-such-name.invalid": []}


def test_torch_by_its_files(tmp_path):
    venv = str(tmp_path)
    assert network.torch(venv) == (None, "there is no %s/bin/python" % venv)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    assert network.torch(venv) == (None, "its Python has no package torch")
    packages = tmp_path / "lib/python3.11/site-packages"
    (packages / "torch").mkdir(parents=True)
    text = "__version__ = '2.13.0+cu130'\ndebug = False\ncuda: Optional[str] = '13.0'\n"
    (packages / "torch/version.py").write_text(text)
    assert network.torch(venv)[0] == {
        "version": "2.13.0+cu130",
        "cuda": "13.0",
        "nccl": None,
        "conda": False,
        "compat": "",
    }
    (packages / "nvidia_nccl_cu13-2.29.7.dist-info").mkdir()
    assert network.torch(venv)[0]["nccl"] == "2.29.7"
    (packages / "torch/version.py").write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    assert network.torch(venv)[0]["cuda"] is None
    (tmp_path / "cuda-compat").symlink_to("/usr/local/cuda-13.0/compat")
    assert network.torch(venv)[0]["compat"] == venv + "/cuda-compat"


@pytest.mark.parametrize(
    "package, nccl", [("nccl-2.27.7.1-h49580af_0", "2.27.7"), ("ncclient-0.6.19-pyhd8ed1ab_0", None)]
)
def test_torch_of_a_conda_environment(tmp_path, package, nccl):
    """As conda lays it out: lib/python3.1 is a link to lib/python3.12, and each package has a record."""
    venv = tmp_path / "envs/train"
    for folder in ("bin", "conda-meta", "lib/python3.12/site-packages/torch"):
        (venv / folder).mkdir(parents=True)
    (venv / "lib/python3.1").symlink_to("python3.12")
    (venv / "bin/python3.12").symlink_to(sys.executable)
    (venv / "bin/python").symlink_to("python3.12")
    (venv / "lib/python3.12/site-packages/torch/version.py").write_text("__version__ = '2.7.1'\ncuda: str = '12.9'\n")
    for name in (package, "pytorch-2.7.1-cuda129_mkl_py312_h2c1a4b1_303"):
        (venv / "conda-meta" / (name + ".json")).write_text("{}")
    assert network.torch(str(venv)) == (
        {"version": "2.7.1", "cuda": "12.9", "nccl": nccl, "conda": True, "compat": ""},
        None,
    )


def test_an_environment_by_its_name():
    assert network.torch("train")[1].startswith(
        "expected the absolute path of an environment; those of conda are listed"
    )


def asked(**more):
    """The module's parameters."""
    found = {name: option.get("default") for name, option in torchrun_facts.argument_spec().items()}
    return dict(found, listen=0, **more)


def test_facts(run, monkeypatch):
    run.answers["ip"] = (0, json.dumps(ADDRESSES))
    devices = [{"index": i, "uuid": "GPU-%d" % i, "processes": None, "health": {}} for i in range(2)]
    gpu = {"count": 2, "devices": devices, "fault": None, "topology": [["X", "NV18"], ["NV18", "X"]], "rdma": []}
    found = network.facts(asked(), lambda: gpu, print)
    told = [{"index": i, "uuid": "GPU-%d" % i, "processes": None} for i in range(2)]
    assert found["gpus"] == {"count": 2, "fault": None, "nvlink": True, "devices": told}
    assert (found["torch"], found["listener"], found["hostname"]) == (None, None, socket.gethostname())
    gpu = {"count": 0, "devices": [], "fault": {"text": "driver hangs"}, "topology": [[None]], "rdma": []}
    found = network.facts(asked(venv="/none"), lambda: gpu, print)
    assert found["gpus"] == {"count": 0, "fault": "driver hangs", "nvlink": False, "devices": []}
    assert found["torch_missing"] == "there is no /none/bin/python"


@contextmanager
def listening(token, *ports):
    thread = threading.Thread(target=peer_listener.main, args=(token, 60, list(ports)), daemon=True)
    thread.start()
    yield
    # ends by itself


def probe_port(port, token):
    """The first answer that is no refusal: the listener's thread may not have begun."""
    until = time.monotonic() + 30
    while True:
        answer = network.probe_port("127.0.0.1", port, token, 10.0)
        if answer["ok"] or "refused" not in answer["why"] or time.monotonic() > until:
            return answer
        time.sleep(0.01)


def test_the_listener_says_who_it_is_and_what_time_it_has(free_port):
    port = free_port()
    with listening("t1", port):
        answer = probe_port(port, "t1")
        assert answer["ok"] and abs(answer["clock_offset_s"]) < 5
        assert network.probe_port("127.0.0.1", port, "t2", 10.0) == {
            "ok": False,
            "why": "another program answers there",
        }
        assert network.probe_port("127.0.0.1", port, None, 10.0) == {"ok": True, "why": ""}


def test_reach(free_port):
    port, closed = free_port(), free_port()
    with listening("t1", port):
        probe_port(port, "t1")
        peer = {"addresses": ["127.0.0.1"], "token": "t1", "port": port, "rendezvous": closed, "busy": {}}
        found = network.reach({"b": peer, "c": dict(peer, addresses=[])}, 10.0)
    assert found["b"]["127.0.0.1"]["data"] == {"ok": True, "why": ""}
    assert found["b"]["127.0.0.1"]["rendezvous"] == {"ok": False, "why": "connection refused"}
    assert "clock_offset_s" in found["b"]["127.0.0.1"] and found["c"] == {}
    assert network.reach({}, 1.0) == {}


def test_a_rendezvous_that_the_job_itself_holds_need_not_know_us(free_port):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(5)
        port = held.getsockname()[1]
        peer = {
            "addresses": ["127.0.0.1"],
            "token": "t1",
            "port": free_port(),
            "rendezvous": port,
            "busy": {str(port): "x"},
        }
        assert network.reach({"b": peer}, 10.0)["b"]["127.0.0.1"]["rendezvous"]["ok"] is True


def test_silence_ends():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        answer = network.probe_port("127.0.0.1", silent.getsockname()[1], "t", 0.05)
    assert answer == {"ok": False, "why": "no answer within 0.05 s"}


def test_the_listener_is_a_transient_unit(run, monkeypatch, free_port):
    monkeypatch.setattr(network, "probe_port", lambda *words: {"ok": True})
    port = free_port()
    found = network.listen(port, 30)
    assert run.seen[0] == ["systemctl", "stop", network.LISTENER]
    command = run.seen[-1]
    assert command[:2] == ["systemd-run", "--quiet"] and "--property=RuntimeMaxSec=35" in command
    assert "def main(token, seconds, ports)" in command[command.index("-c") + 1]
    assert command[-4:] == [found["token"], "30", str(found["port"]), str(port)]
    assert found["busy"] == {}


@pytest.fixture
def starting(run):
    """`starting(words)`: systemd says that a job's unit has been started so, and has not yet bound its port."""

    def start(*words):
        unit = "MainPID=%d\nExecStart={ path=/opt/torch/bin/python ; argv[]=/opt/torch/bin/python %s ; pid=1 }\n"
        stopped = "MainPID=0\nExecStart={ path=/bin/x ; argv[]=/bin/x ; pid=0 }\n"
        run.answers["systemctl"] = (0, stopped + "\n" + unit % (999999, " ".join(words)))

    return start


HOLDS = (["--master-port=%d", "--node-rank=0"], ["--rdzv-endpoint=10.1.0.1:%d", "--rdzv-conf=a=1,is_host=true"])


@pytest.mark.parametrize("words", HOLDS)
def test_a_job_that_is_about_to_hold_the_port_gets_it(run, starting, monkeypatch, words, free_port):
    """Its torchrun binds the port seconds after its start: a second run in between must not be in its way."""
    monkeypatch.setattr(network, "probe_port", lambda *asked: {"ok": True})
    port = free_port()
    starting(*[word % port if "%d" in word else word for word in words])
    with socket.socket() as held:

        def bind(_seconds):
            if held.getsockname()[1] != port:
                held.bind(("0.0.0.0", port))
                held.listen(5)

        monkeypatch.setattr(network.time, "sleep", bind)
        found = network.listen(port, 30)
    assert found["busy"] == {str(port): OURSELVES}


def test_a_job_that_never_takes_its_port_is_named(run, starting, monkeypatch, free_port):
    monkeypatch.setattr(network, "JOB_LIMIT", 0.0)
    port = free_port()
    starting("--master-port=%d" % port, "--node-rank=0")
    with pytest.raises(Failed, match="process 999999 should listen on port %d" % port):
        network.listen(port, 30)


@pytest.mark.parametrize("words", [["--master-port=%d", "--node-rank=1"], ["--master-port=1%d", "--node-rank=0"]])
def test_other_hosts_and_other_jobs_are_not_waited_for(run, starting, monkeypatch, words, free_port):
    monkeypatch.setattr(network, "probe_port", lambda *asked: {"ok": True})
    port = free_port()
    starting(*[word % port if "%d" in word else word for word in words])
    assert network.listen(port, 30)["busy"] == {}


def test_a_port_in_use_is_told_and_not_taken(run, monkeypatch):
    monkeypatch.setattr(network, "probe_port", lambda *words: {"ok": True})
    with socket.socket() as held:
        held.bind(("0.0.0.0", 0))
        held.listen(5)
        port = held.getsockname()[1]
        found = network.listen(port, 30)
    assert found["busy"] == {str(port): OURSELVES}
    assert run.seen[-1][-1] == str(found["port"])


def test_a_listener_that_does_not_start(run, free_port):
    run.answers["systemd-run"] = (1, "")
    with pytest.raises(Failed, match="systemd-run: exit 1: words on stderr"):
        network.listen(free_port(), 30)


def test_who_holds_a_port_may_be_hidden(monkeypatch):
    assert network.holder(1) == "an unknown process"
    monkeypatch.setattr(System, "listener", lambda self, port: (0, "unknown"))
    assert network.holder(1) == "an unknown process"


def test_a_missing_program_is_named():
    with pytest.raises(Failed, match="there is no no-such-program on this host"):
        network._run(["no-such-program"])
