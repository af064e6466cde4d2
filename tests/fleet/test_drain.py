# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A setting is changed under load: two real Ollama servers, a real HAProxy in front of them, clients that stream."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "lab/ollama"))

import faults  # noqa: E402
import hostsetup  # noqa: E402
from load import Load, fault_of_stream  # noqa: E402

HAPROXY = shutil.which("haproxy") or "/usr/sbin/haproxy"
PORT = 18480
UNITS = {"ollama@a": 11441, "ollama@b": 11442}
MARKS = "ls /run/gpufleet-agent 2>/dev/null || :"
ASK = json.dumps({"model": "tiny", "prompt": "hello", "options": {"num_predict": 10}})
CONFIG = """
global
  stats socket %(socket)s level admin
defaults
  mode http
  option redispatch
  option http-server-close
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout queue 30s
frontend clients
  bind 127.0.0.1:%(port)d
  default_backend tiny
backend tiny
  balance leastconn
  default-server check inter 2s downinter 500ms fall 3 rise 1
"""
SERVER = '  server %s %s:%d weight 100 agent-check agent-port 8405 agent-inter 1s agent-send "%s tiny\\n"\n'


class Host:
    """A lab host with two instances and an agent, and a gateway on this machine."""

    def __init__(self, lab: Any, name: str) -> None:
        self.lab, self.name = lab, name
        self.address = hostsetup.sh(name, "hostname -I").split()[0]
        self.gateway = hostsetup.sh(name, "ip route show default").split()[2]

    def bring(self, check: bool = False, **options: Any) -> Dict[str, Any]:
        instances = [
            {"name": unit[-1], "host": "%s:%d" % (self.address, port), "visible_devices": [number]}
            for number, (unit, port) in enumerate(UNITS.items())
        ]
        given = {"instances": instances, "clients": [self.gateway], "num_parallel": 4, "drain_timeout": 60}
        return self.lab.module(self.name, "ollama_service", {**given, **options}, check=check)

    def says(self, unit: str) -> str:
        """What the agent answers about a service."""
        program = (
            'import socket; s = socket.create_connection(("127.0.0.1", 8405)); s.sendall(b"%s x\\n"); '
            "print(s.recv(99).decode())"
        )
        return hostsetup.sh(self.name, "timeout 5 python3 -c '%s'" % (program % unit)).strip()

    def agent(self, *gateways: str, check: bool = False, **more: Any) -> Dict[str, Any]:
        services = [
            {
                "unit": unit,
                "engine": "ollama",
                "address": self.address,
                "port": port,
                "max_concurrent": 4,
                "visible_devices": [number],
            }
            for number, (unit, port) in enumerate(UNITS.items())
        ]
        given = {"gateways": list(gateways), "services": services, **more}
        return self.lab.module(self.name, "gateway_agent", given, check=check)


@pytest.fixture(scope="module")
def host(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    name = lab.reset("gpu1")
    hostsetup.uninstall(name)
    hostsetup.install(name)
    hostsetup.add_models(name, "tiny")
    hostsetup.sh(name, "systemctl disable --quiet --now ollama")
    faults.worker(name, "slow-token:0.1")
    made = Host(lab, name)
    done = made.bring()
    assert not done["failed"], done["msg"]
    done = made.agent(made.gateway)
    assert not done["failed"], done["msg"]
    folder = tmp_path_factory.mktemp("haproxy")
    text = CONFIG % {"socket": folder / "admin", "port": PORT}
    text += "".join(SERVER % (unit.replace("@", "-"), made.address, port, unit) for unit, port in UNITS.items())
    (folder / "haproxy.cfg").write_text(text)
    process = subprocess.Popen([HAPROXY, "-db", "-f", str(folder / "haproxy.cfg")])
    until = time.monotonic() + 60
    while ask():  # it listens, and both servers have answered its checks
        assert process.poll() is None and time.monotonic() < until, "see %s" % folder
    yield made
    process.kill()
    process.wait()
    gone = [{"name": unit[-1], "state": "absent"} for unit in UNITS]
    assert not lab.module(name, "ollama_service", {"instances": gone})["failed"]
    assert not lab.module(name, "gateway_agent", {"state": "absent"})["failed"]
    assert not lab.module(name, "gateway_agent", {"state": "absent"})["changed"]
    left = "ls /etc/gpufleet/gateway* 2>/dev/null || :; systemctl list-unit-files --no-legend 'gpufleet*' || :"
    assert hostsetup.sh(name, left) == ""
    faults.clear(name)
    hostsetup.uninstall(name)


def ask(_number: int = 0) -> str:
    """Send one request; if it fails, pause as a person would, and say what went wrong."""
    fault = fault_of_request()
    if fault:
        time.sleep(0.1)
    return fault


def fault_of_request() -> str:
    """What went wrong with one request, if anything did."""
    return fault_of_stream("127.0.0.1", PORT, ASK)


def test_a_changed_setting_fails_no_request_and_cuts_none(host: Host) -> None:
    with Load(ask, 6) as answers:
        done = host.bring(keep_alive="11m")
    assert not done["failed"] and done["changed"], done["msg"]
    print("with drain: %s" % Counter(answers))
    for unit in UNITS:
        result = done["instances"][unit + ".service"]
        assert result["restarted"], result
        assert (result["drain"]["gateways"], result["drain"]["silent"]) == ([host.gateway], [])
        assert result["drain"]["cut"] == ""
    assert not any(answers)
    assert hostsetup.sh(host.name, MARKS) == ""
    assert not host.bring(keep_alive="11m")["changed"]


def test_without_a_drain_requests_fail(host: Host) -> None:
    with Load(ask, 6) as answers:
        done = host.bring(keep_alive="12m", drain_timeout=0)
    assert not done["failed"], done["msg"]
    print("without drain: %s" % Counter(answers))
    assert any(answers[12:]), "else the test above proves nothing"


def test_a_run_that_was_killed_leaves_no_service_drained(host: Host) -> None:
    hostsetup.sh(host.name, """echo '{"state": "drain"}' >/run/gpufleet-agent/ollama@a.service""")
    seen = host.bring(check=True, keep_alive="12m")
    assert seen["changed"] and hostsetup.sh(host.name, MARKS).split() == ["ollama@a.service"]
    done = host.bring(keep_alive="12m")
    assert done["changed"] and not done["instances"]["ollama@a.service"]["restarted"], done["msg"]
    assert hostsetup.sh(host.name, MARKS) == "" and not host.bring(keep_alive="12m")["changed"]


def test_a_service_whose_gate_fails_gets_no_requests_until_it_passes(host: Host) -> None:
    assert host.says("ollama@a").startswith("up ready")
    hostsetup.sh(
        host.name, """echo '{"state": "down", "verdict": "cpu_fallback"}' >/run/gpufleet-agent/ollama@a.service"""
    )
    assert host.says("ollama@a") == "down #cpu_fallback"
    assert not host.bring(keep_alive="12m")["failed"]
    assert host.says("ollama@a").startswith("up ready")


def test_nobody_but_the_gateway_and_the_host_reaches_a_service(host: Host) -> None:
    reach = "timeout 2 curl -fs -o /dev/null --interface %s http://%s:11441/api/version && echo reached || echo no"
    assert hostsetup.sh(host.name, reach % (host.address, host.address)).strip() == "reached"
    assert hostsetup.sh(host.name, reach % ("127.0.0.3", host.address)).strip() == "no"
    done = host.bring(keep_alive="12m", instances=[{"name": "a", "host": "0.0.0.0:11441"}])
    assert done["failed"] and "expected one IPv4 address of this host" in done["msg"]


def test_the_agent_runs_without_rights(host: Host) -> None:
    assert not host.agent(host.gateway, check=True)["changed"]
    assert not host.agent(host.gateway)["changed"]
    look = (
        "systemctl show -p MainPID --value gpufleet-agent; systemctl show -p StartLimitIntervalUSec gpufleet-agent; "
        "systemd-analyze security --no-pager gpufleet-agent | tail -1"
    )
    pid, limit, exposure = hostsetup.sh(host.name, look).splitlines()
    assert limit == "StartLimitIntervalUSec=0", "it comes back however long its port is taken"
    assert " 1.1 " in exposure, "as docs/drain.md says"
    status = hostsetup.sh(host.name, "cat /proc/%s/status" % pid)
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in found["Uid"].split() and int(found["CapEff"], 16) == 0 and found["NoNewPrivs"] == "1"
    assert int(found["VmRSS"].split()[0]) < 64 << 10


def test_a_service_on_a_gpu_that_must_not_be_used_gets_no_requests_until_it_is_repaired(host: Host) -> None:
    """It names its GPU, so no run moves it. The other service has its own GPU, and gets all requests."""
    held = {"on_unhealthy": "drain"}
    assert not host.agent(host.gateway, check=True, **held)["changed"]
    host.lab.state(host.name, None, "ecc-uncorrectable:1")
    try:
        assert not host.agent(host.gateway, check=True)["changed"], "nobody asked for it"
        assert host.agent(host.gateway, check=True, **held)["changed"]
        done = host.agent(host.gateway, **held)
        assert (done["changed"], done["held"]) == (True, ["ollama@b.service"]), done["msg"]
        assert not host.agent(host.gateway, **held)["changed"]
        assert (host.says("ollama@a")[:8], host.says("ollama@b")) == ("up ready", "drain")
        before = {unit: hostsetup.sh(host.name, "systemctl show -p MainPID %s" % unit) for unit in UNITS}
        assert not any(ask() for _number in range(4))
    finally:
        host.lab.state(host.name)
    done = host.agent(host.gateway, **held)
    assert (done["changed"], done["held"]) == (True, []) and host.says("ollama@b").startswith("up ready")
    assert {unit: hostsetup.sh(host.name, "systemctl show -p MainPID %s" % unit) for unit in UNITS} == before
