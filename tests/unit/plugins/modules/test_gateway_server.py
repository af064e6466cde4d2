# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host is taken out of a real HAProxy's pools, waited for, and put back."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import haproxy, runtime, server
from ansible_collections.gpufleet.inference.plugins.modules import gateway_server

HAPROXY = shutil.which("haproxy") or "/usr/sbin/haproxy"
CONFIG = """
global
  stats socket %(folder)s/admin level admin
defaults
  mode http
  option http-server-close
  timeout connect 2s
  timeout client 60s
  timeout server 60s
frontend clients
  bind 127.0.0.1:%(front)d
  default_backend chat
backend chat
  server gpu1:ollama:11434 127.0.0.1:%(engine)d weight 100 agent-check agent-port %(agent)d agent-inter 100ms
  server gpu1.rack_2:ollama:11434 127.0.0.1:1 weight 1 disabled
backend code
  server gpu1:vllm_chat-123456:8000 127.0.0.1:1
  server gpu2:ollama:11434 127.0.0.1:1
"""
pytestmark = pytest.mark.skipif(not Path(HAPROXY).exists(), reason="HAProxy is not installed")


class Gateway:
    """A real HAProxy; its only engine answers a request when it is told to."""

    def __init__(self, folder, free_port):
        self.front, self.answers, self.saved, self.told = free_port(), threading.Event(), 0, 0
        engine, agent = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
        ports = {"front": self.front, "engine": engine.getsockname()[1], "agent": agent.getsockname()[1]}
        (folder / "cfg").write_text(CONFIG % dict(ports, folder=folder))
        self.socket, self.open = str(folder / "admin"), [engine, agent]
        threading.Thread(target=self.serve, args=(engine, self.answer), daemon=True).start()
        threading.Thread(target=self.serve, args=(agent, self.tell), daemon=True).start()
        self.process = subprocess.Popen([HAPROXY, "-db", "-f", str(folder / "cfg")], stderr=subprocess.DEVNULL)
        until(lambda: Path(self.socket).exists() or self.process.poll() is not None)
        assert self.process.poll() is None

    @staticmethod
    def serve(listener, work):
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=Gateway.attend, args=(connection, work), daemon=True).start()

    @staticmethod
    def attend(connection, work):
        with connection, contextlib.suppress(ConnectionError):  # HAProxy does not wait for long
            work(connection)

    def answer(self, connection):
        connection.recv(4096)
        self.answers.wait(60)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def tell(self, connection):
        self.told += 1
        connection.sendall(b"up ready 100%\n")

    def ask(self, command, path=""):
        return ASK(command, self.socket)

    def request(self):
        """A request that is running; its connection."""
        connection = socket.create_connection(("127.0.0.1", self.front), timeout=60)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: any((row["svname"], row["scur"]) == ("gpu1:ollama:11434", "1") for row in runtime.servers()))
        return connection

    def states(self):
        return {"%s/%s" % (one.pool, one.name): one.state for one in server.servers()}

    def save(self):
        self.saved += 1


ASK = runtime.ask


@pytest.fixture
def gateway(tmp_path, free_port, monkeypatch):
    made = Gateway(tmp_path, free_port)
    monkeypatch.setattr(runtime, "ask", made.ask)
    monkeypatch.setattr(runtime, "save_state", made.save)
    monkeypatch.setattr(server, "_old_workers", list)
    yield made
    made.answers.set()
    made.process.kill()
    made.process.wait()
    for one in made.open:
        one.close()


@pytest.fixture
def bring(run_module):
    return lambda check=False, **options: run_module(
        gateway_server.main, dict({"host": "gpu1"}, **options), check=check
    )


OURS = {"chat/gpu1:ollama:11434", "code/gpu1:vllm_chat-123456:8000"}


@pytest.mark.parametrize("state", ["drained", "maintenance"])
def test_a_host_leaves_all_pools_and_comes_back(gateway, bring, state):
    before = gateway.states()
    planned = bring(check=True, state=state)
    assert planned["changed"] and gateway.states() == before and gateway.saved == 0
    done = bring(state=state)
    assert done["changed"] and done["msg"] == "gpu1: %s in 2 pools" % state
    assert {name for name, now in gateway.states().items() if now != before[name]} == OURS
    assert gateway.saved == 1 and "chat/gpu1:ollama:11434: %s" % state in done["diff"]["after"]
    told = gateway.told
    assert not bring(state=state)["changed"] and gateway.told <= told + 1, "its agent has no say meanwhile"
    assert bring()["changed"] and gateway.states() == before
    assert not bring()["changed"]


def test_a_host_takes_no_server_of_another_whose_name_begins_alike():
    hosts = ["gpu1", "gpu1.rack_2", "gpu1.example", "gpu1:ollama", "2001:db8::1", "2001"]
    rows = [{"host": host, "unit": "ollama.service", "port": 11434} for host in hosts]
    there = [server.Server("chat", haproxy.server(row), "ready", False) for row in rows]
    for one, host in zip(there, hosts):
        assert server.find(there, host, "") == server.find(there, host, "ollama") == [one]


def test_a_unit_alone(gateway, bring):
    done = bring(state="drained", unit="ollama.service")
    assert done["servers"] == {"chat/gpu1:ollama:11434": "ready"} and done["msg"] == "gpu1: drained in 1 pool"
    assert gateway.states()["code/gpu1:vllm_chat-123456:8000"] == "ready"


def test_running_requests_are_waited_for(gateway, bring):
    with gateway.request() as client:
        result = bring(state="drained", timeout=1)
        assert result["failed"] and result["changed"]
        assert result["running"] == ["1 request running and 0 waiting in chat/gpu1:ollama:11434"]
        assert "it stays out of the pools" in result["msg"] and gateway.states()["chat/gpu1:ollama:11434"] == "drained"
        threading.Timer(0.5, gateway.answers.set).start()
        done = bring(state="drained", timeout=60)
        assert not done["failed"] and not done["changed"] and done["running"] == []
        assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_nobody_is_waited_for_with_timeout_0(gateway, bring):
    with gateway.request():
        assert not bring(state="drained", timeout=0)["failed"]


@pytest.mark.parametrize("given", [{"host": "gpu3"}, {"unit": "vllm@other"}, {"host": "gpu"}])
def test_a_host_that_it_does_not_know(gateway, bring, given):
    result = bring(state="drained", **given)
    assert result["failed"] and "this gateway has no server of gpu" in result["msg"]
    assert "gpu1:ollama" in result["msg"] and not result["changed"]


def test_a_host_without_a_gateway(bring, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "ask", lambda command, path="": ASK(command, str(tmp_path / "none")))
    result = bring(state="drained")
    assert result["failed"] and "HAProxy does not answer at" in result["msg"]


def test_old_workers_are_asked_for_their_requests(monkeypatch):
    said = {
        "show proc": "#<PID> <type> <reloads> <uptime> <version>\n1 master 1 0d 2.6\n# workers\n30 worker 0 0d 2.6\n"
        "# old workers\n20 worker 1 0d 2.6\n# programs\n",
        "@!20 show stat -1 4 -1": "# pxname,svname,qcur,scur\nchat,gpu1:ollama,1,2\n",
    }
    monkeypatch.setattr(runtime, "ask", lambda command, path="": said[command])
    monkeypatch.setattr(runtime, "servers", lambda: [{"pxname": "chat", "svname": "gpu1:ollama", "scur": "0"}])
    names = {("chat", "gpu1:ollama")}
    assert server._running(names) == ["2 requests running and 1 waiting in chat/gpu1:ollama"]
