# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's module: what the agent reads, the unit in which it runs, what is refused."""

from __future__ import annotations

import json
import socket
import sys

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Outcome
from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import agent
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts
from ansible_collections.gpufleet.inference.plugins.module_utils.placement import claims
from ansible_collections.gpufleet.inference.plugins.modules import gateway_agent

CHAT = {"unit": "vllm@chat", "engine": "vllm", "address": "192.0.2.21", "port": 8000, "max_concurrent": 256}
CODE = {"unit": "ollama.service", "engine": "ollama", "port": 11434}


@pytest.fixture
def bring(run_module, monkeypatch):
    """`bring(**options)` runs the module; `bring.asked` is what the convergence was given."""

    def converge(change, *, check_mode, system, **more):
        run.asked = dict(more, change=change, check_mode=check_mode)
        return Outcome(changed=True)

    def run(check=False, **options):
        return run_module(gateway_agent.main, options, check=check)

    class Unit:
        root = ""
        load_state = "loaded"
        stub = None

        config = b"{}"

        def read(self, path):
            found = {
                "/etc/systemd/system/gpufleet-agent.service": self.stub,
                "/etc/gpufleet/gateway-agent.json": self.config,
            }
            return found.get(path)

        def show(self, unit):
            return {"LoadState": self.load_state}

    run.unit = Unit()
    monkeypatch.setattr(agent.convergence, "converge", converge)
    monkeypatch.setattr(agent, "System", lambda: run.unit)
    return run


def test_what_it_reads_and_who_may_reach_it(bring):
    result = bring(services=[CHAT, CODE], gateways=["192.0.2.10", "::ffff:192.0.2.11"])
    assert result["msg"] == "gpufleet-agent.service: 2 services, 2 gateways, port 8405"
    change = bring.asked["change"]
    config = change.files["/etc/gpufleet/gateway-agent.json"]
    assert '"vllm@chat.service"' in config and '"limit": 256' in config and '"192.0.2.11"' in config
    assert change.files["/etc/gpufleet/gateway_agent.py"].startswith("# Copyright: (c) The gpufleet developers")
    assert change.settings["Unit"] == {"StartLimitIntervalSec": ["0"]}, "it comes back however long its port is taken"
    service = change.settings["Service"]
    assert service["IPAddressDeny"] == ["any"]
    assert service["IPAddressAllow"] == ["localhost 127.0.0.1 192.0.2.10 192.0.2.11 192.0.2.21"]
    assert service["DynamicUser"] == ["yes"] and service["ProtectSystem"] == ["strict"]
    assert change.enabled and change.started


def test_a_service_whose_gpu_must_not_be_used_is_held(bring, monkeypatch):
    sick = {"index": 0, "uuid": "GPU-1", "pci_bus_id": "0000:01:00.0", "health": {"fit": False, "ok": False}}
    asked = []
    monkeypatch.setattr(facts, "first_look", lambda timeout: asked.append(timeout) or {"devices": [sick]})
    monkeypatch.setattr(claims, "held", lambda system: [claims.Claim("vllm@chat.service", {"GPU-1": None})])
    services = [dict(CHAT, visible_devices=[0]), CODE]
    assert bring(services=services)["held"] == [] and not asked, "nobody asked for it"
    result = bring(services=services, on_unhealthy="drain", facts_timeout=3)
    assert result["held"] == ["vllm@chat.service"] and asked == [3.0]
    assert result["msg"].endswith("; left out, as a GPU of theirs must not be used: vllm@chat.service")
    config = json.loads(bring.asked["change"].files["/etc/gpufleet/gateway-agent.json"])
    assert {unit: service["held"] for unit, service in config["services"].items()} == {
        "vllm@chat.service": True,
        "ollama.service": False,
    }


def test_one_service_and_one_gateway(bring):
    result = bring(services=[CODE], gateways=["192.0.2.10"], port=8500)
    assert result["msg"] == "gpufleet-agent.service: 1 service, 1 gateway, port 8500"


def test_a_check_and_a_module_may_have_their_python_by_different_names(bring, monkeypatch, tmp_path):
    bring()
    command = bring.asked["change"].settings["Service"]["ExecStart"]
    link = tmp_path / "python3"
    link.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(link))
    bring()
    assert bring.asked["change"].settings["Service"]["ExecStart"] == command


def test_a_gateway_of_this_host_may_ask_from_its_loopback_address(bring):
    bring(gateways=["192.0.2.10", "192.0.2.21"], local_gateway="192.0.2.21")
    config = json.loads(bring.asked["change"].files["/etc/gpufleet/gateway-agent.json"])
    assert config["gateways"] == {"192.0.2.10": ["192.0.2.10"], "192.0.2.21": ["127.0.0.1", "192.0.2.21", "::1"]}


def test_a_name_is_resolved_on_the_host(bring, monkeypatch):
    def resolve(name, *_words, **_more):
        assert name == "gw1.example.com"
        return [(socket.AF_INET, 1, 6, "", ("192.0.2.10", 0)), (socket.AF_INET6, 1, 6, "", ("2001:db8::1", 0, 0, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    bring(gateways=["gw1.example.com"])
    config = bring.asked["change"].files["/etc/gpufleet/gateway-agent.json"]
    assert '"192.0.2.10",\n   "2001:db8::1"' in config


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"services": [CODE, dict(CODE, unit="ollama")]}, "services: ollama.service is named twice"),
        ({"gateways": ["no.such.host.invalid"]}, "cannot resolve no.such.host.invalid"),
        ({"gateways": ["192.0.2.10"], "local_gateway": "192.0.2.1"}, "not one of the gateways (192.0.2.10)"),
        ({"on_unhealthy": "drian"}, "must be one of: exclude, drain, fail"),
        ({"services": [dict(CODE, engine="tgi")]}, "must be one of: ollama, vllm, llama_server"),
    ],
)
def test_what_is_refused(bring, given, words):
    result = bring(**given)
    assert result["failed"] and words in result["msg"]


def test_it_goes_with_its_files(bring):
    files = {"/etc/gpufleet/gateway_agent.py": None, "/etc/gpufleet/gateway-agent.json": None}
    result = bring(state="absent")
    change = bring.asked["change"]
    assert (change.files, change.started, change.enabled) == (files, False, False)
    assert result["msg"] == "gpufleet-agent.service: stopped and removed"
    bring.unit.stub = agent._TEXT.encode()
    removed = "remove /etc/systemd/system/gpufleet-agent.service"
    assert removed in bring(state="absent", check=True)["planned"]
    bring.unit.stub = b"[Service]\n# an administrator's\n"
    assert removed not in bring(state="absent", check=True)["planned"]
    bring.unit.load_state = "not-found"
    bring(state="absent", check=True)
    assert bring.asked["change"].state == "absent" and bring.asked["check_mode"]
    bring.asked = None
    bring.unit.config = bring.unit.stub = None
    result = bring(state="absent")
    assert not result["changed"] and result["msg"].endswith("not there") and bring.asked is None


@pytest.mark.parametrize(
    ("found", "listener", "verdict"),
    [
        ({"services": {"ollama.service": {}}}, (99, "python3"), "ok"),
        ({"services": {"other.service": {}}}, (99, "python3"), "not_ready"),
        ({"services": {}}, (99, "python3"), "not_ready"),
        ({}, (99, "python3"), "not_ready"),
        ({}, None, "not_ready"),
        ({}, (7, "nc"), "port_taken"),
        ({"services": {"ollama.service": {}}}, (7, "nc"), "port_taken"),
        ({"services": {"ollama.service": {}}}, (0, "unknown"), "not_ready"),
    ],
)
def test_its_proof(monkeypatch, fakes_running, found, listener, verdict):
    monkeypatch.setattr(agent.agent, "ask", lambda port: found)
    config = agent.configuration(
        {
            "services": [dict(CODE, address="::1", tls=False, max_concurrent=0)],
            "gateways": [],
            "local_gateway": "",
            "port": 8405,
        }
    )
    assert agent._gate(config)(fakes_running(listener), False).name == verdict
    if not found:
        assert agent._gate(dict(config, services={}))(fakes_running(listener), False).name == verdict


@pytest.fixture
def fakes_running():
    class Running:
        pids, deadline = [99], 0.0

        def __init__(self, listener):
            self.system = type("System", (), {"listener": lambda self, port: listener})()

        def alive(self):
            return True

    return Running
