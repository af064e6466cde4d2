# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as a real process, asked by a real HAProxy, by strangers and by nonsense."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import gateway_agent
from ansible_collections.gpufleet.inference.plugins.module_utils.programs.gateway_agent import Health, answer

START = (
    "import asyncio, importlib.util, json, sys\n"
    "spec = importlib.util.spec_from_file_location('agent', sys.argv[1])\n"
    "agent = importlib.util.module_from_spec(spec)\n"
    "spec.loader.exec_module(agent)\n"
    "agent.ROOT, agent.PROBE, agent.PATIENCE = int(sys.argv[4]), 0.5, 1.0\n"
    "asyncio.run(agent.serve(json.load(open(sys.argv[2])), sys.argv[3]))\n"
)


class Engine:
    """An engine's HTTP API: ``answers`` by path, as status and text; a function is called for them."""

    def __init__(self):
        self.answers, self.asked = {}, []
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                engine.asked.append(self.path)
                status, text = engine.answers.get(self.path, (404, ""))
                body = text().encode() if callable(text) else text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    pass

            def log_message(self, *_words):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def ollama(self):
        self.answers = {"/api/version": (200, '{"version":"0.13.0"}')}


class Agent:
    """A running agent."""

    def __init__(self, folder, port, services, gateways):
        self.port, self.marks = port, folder / "marks"
        self.marks.mkdir()
        config = folder / "agent.json"
        config.write_text(json.dumps({"port": port, "services": services, "gateways": gateways}))
        words = [sys.executable, "-I", "-c", START, gateway_agent.__file__, str(config)]
        self.process = subprocess.Popen([*words, str(self.marks), str(os.geteuid())], stderr=subprocess.PIPE)
        until(lambda: self.process.poll() is not None or self.ask("?"))

    def ask(self, line, end="\n", address="127.0.0.1"):
        """What it answers; empty where it closes the connection."""
        try:
            with socket.create_connection((address, self.port), timeout=5) as connection:
                connection.sendall((line + end).encode())
                parts = iter(lambda: connection.recv(65536), b"")
                return b"".join(parts).decode()
        except OSError:
            return ""

    def report(self):
        return json.loads(self.ask("?"))

    def mark(self, unit, **said):
        path = self.marks / unit
        path.with_suffix(".new").write_text(json.dumps(said))
        path.with_suffix(".new").rename(path)

    def memory(self):
        status = Path("/proc/%d/status" % self.process.pid).read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10


@pytest.fixture
def engine():
    found = Engine()
    yield found
    found.close()


@pytest.fixture
def start(tmp_path, free_port):
    running = []

    def make(services, gateways=None):
        given = {
            unit: dict({"engine": "ollama", "address": "127.0.0.1", "limit": 4}, **more)
            for unit, more in services.items()
        }
        running.append(Agent(tmp_path, free_port(), given, gateways or {"gw1": ["127.0.0.1"]}))
        return running[-1]

    yield make
    for agent in running:
        agent.process.kill()
        agent.process.communicate()


# --- what is answered

ELSEWHERE = {"gw1": ["192.0.2.1"]}


@pytest.mark.parametrize(
    "mark, health, line",
    [
        ({}, Health(), "up ready 100% maxconn:4"),
        ({}, Health(waiting=1), "up ready 50% maxconn:4"),
        ({}, Health(cache=0.25), "up ready 75% maxconn:4"),
        ({}, Health(cache=7.0, waiting=1e8), "up ready 5% maxconn:4"),
        ({}, Health("not_ready"), "down #not_ready"),
        ({"state": "drain", "verdict": "cpu_fallback"}, Health("not_ready"), "drain"),
        ({"state": "down", "verdict": "cpu_fallback"}, Health(), "down #cpu_fallback"),
        ({"state": "down", "verdict": "x\nup ready"}, Health(), "down #x_up_ready"),
        ({"state": "down"}, Health(), "down #none"),
    ],
)
def test_the_line(mark, health, line):
    assert answer(mark, health, 4, 1) == line


@pytest.mark.parametrize("limit, gateways, places", [(4, 0, 4), (4, 2, 2), (5, 2, 3), (1, 3, 1), (0, 2, None)])
def test_gateways_share_the_places_of_a_service(limit, gateways, places):
    line = answer({}, Health(), limit, gateways)
    assert line == "up ready 100%" + (" maxconn:%d" % places if places else "")


def test_an_unknown_service(start, engine):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}})
    assert agent.ask("ollama.service chat") == "up ready 100% maxconn:4\n"
    assert agent.ask("other.service chat") == "down #unknown_service\n"


def test_a_service_that_is_held_is_drained_without_a_mark(start, engine):
    places = {"a.service": {"port": engine.port, "held": True}, "b.service": {"port": engine.port, "held": False}}
    engine.ollama()
    agent = start(places, ELSEWHERE)
    assert agent.ask("a m") == "drain\n" and agent.ask("b m").startswith("up ready")
    agent.mark("a.service", state="down", verdict="cpu_fallback")
    assert agent.ask("a m") == "down #cpu_fallback\n", "it is not only its GPU"


def test_the_metrics_of_vllm(start, engine, fixture_text):
    text = fixture_text("vllm/metrics.txt").replace('usage_perc{engine="0",model_name="tiny"} 0.0', "usage_perc 0.4")
    engine.answers = {"/health": (200, ""), "/metrics": (200, text)}
    agent = start({"vllm@chat.service": {"port": engine.port, "engine": "vllm", "limit": 256}}, ELSEWHERE)
    assert agent.ask("vllm@chat.service m") == "up ready 60% maxconn:256\n"
    awake = next(line for line in text.splitlines() if 'sleep_state="awake"' in line)
    engine.answers["/metrics"] = (200, text.replace(awake, awake.replace(" 1.0", " 0.0")))
    until(lambda: agent.ask("vllm@chat.service m") == "down #asleep\n")
    engine.answers = {"/health": (401, ""), "/metrics": (401, "")}
    until(lambda: agent.ask("vllm@chat.service m") == "up ready 100% maxconn:256\n")
    engine.answers = {"/health": (503, "")}
    until(lambda: agent.ask("vllm@chat.service m") == "down #not_ready\n")


def test_the_metrics_of_llama_server(start, engine, fixture_text):
    engine.answers = {"/health": (200, ""), "/metrics": (200, "llamacpp:requests_deferred 3\n")}
    agent = start({"llama-server@a.service": {"port": engine.port, "engine": "llama_server"}}, ELSEWHERE)
    assert agent.ask("llama-server@a.service m") == "up ready 25% maxconn:4\n"
    engine.answers.update({"/metrics": (501, "")})
    until(lambda: agent.ask("llama-server@a.service m") == "up ready 100% maxconn:4\n")
    assert "llamacpp:requests_deferred" in fixture_text("llama_server/metrics.txt")


def test_a_service_that_is_not_there(start, free_port):
    agent = start({"ollama.service": {"port": free_port()}})
    assert agent.ask("ollama.service chat") == "down #not_ready\n"


def test_many_questions_are_few_for_the_service(start, engine):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}})
    began = time.monotonic()
    for _number in range(100):
        assert agent.ask("ollama.service chat").startswith("up")
    assert len(engine.asked) <= 2 * (2 + (time.monotonic() - began) / gateway_agent.FRESH)


# --- a service that means harm, or none


def test_a_service_that_hangs_is_down_after_a_few_looks_and_nobody_waits_for_it(start, engine):
    engine.ollama()
    agent, stopped = start({"ollama.service": {"port": engine.port}}), threading.Event()
    assert agent.ask("ollama.service chat").startswith("up")
    engine.answers["/api/version"] = (200, lambda: stopped.wait(30) and "" or "")
    until(lambda: agent.ask("ollama.service chat") == "down #stalled\n")
    engine.ollama()
    stopped.set()
    until(lambda: agent.ask("ollama.service chat").startswith("up"))


@pytest.mark.parametrize(
    "text",
    ["[" * 500000, '{"models": 7}', '{"models": [7]}', '{"models": [{"name": {}}]}', "\0" * 3000000, "nothing"],
    ids=["deep", "number", "numbers", "unhashable", "large", "text"],
)
def test_nonsense_of_a_service(start, engine, text):
    engine.ollama()
    engine.answers["/api/version"] = (200, text)
    agent = start({"ollama.service": {"port": engine.port}})
    for _number in range(3):
        assert agent.ask("ollama.service chat").startswith(("up", "down #not_ready"))
    assert agent.memory() < 96 << 20


def test_lines_that_should_take_for_ever(start, engine):
    engine.answers = {
        "/health": (200, ""),
        "/metrics": (200, "vllm:engine_sleep_state{" + 'sleep_state="awake"' * 50000),
    }
    agent = start({"vllm@a.service": {"port": engine.port, "engine": "vllm"}})
    assert agent.ask("vllm@a.service m").startswith("up ready 100%")


# --- who asks


def test_a_slow_asker_is_cut_off_and_holds_nobody_up(start, engine):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}})
    slow = [socket.create_connection(("127.0.0.1", agent.port)) for _number in range(gateway_agent.ASKERS - 1)]
    for connection in slow:
        connection.sendall(b"ollama.serv")
    assert agent.ask("ollama.service chat").startswith("up")
    for connection in slow:
        connection.settimeout(10)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(10) == b""
        connection.close()


@pytest.mark.parametrize(
    "line",
    ["", " ", "\0\0\0", "GET / HTTP/1.1\r\nHost: x", "ollama.service " + "x" * 600, "\xff\xfe", "../../etc/shadow x"],
)
def test_nonsense_of_an_asker(start, engine, line):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}})
    assert agent.ask(line) in ("", "down #unknown_service\n")
    assert agent.ask("x" * 100000, end="") == ""
    assert agent.ask("ollama.service chat").startswith("up")


def test_a_thousand_connections_at_once(start, engine):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}}, {"gw1": ["127.0.0.9"]})
    before = agent.memory()
    crowd = []
    for _number in range(1000):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", agent.port))
        crowd.append(connection)
    # the crowd has filled the places of its own address alone
    with socket.create_connection(("127.0.0.1", agent.port), timeout=10, source_address=("127.0.0.9", 0)) as gateway:
        gateway.sendall(b"ollama.service chat\n")
        assert gateway.recv(100).startswith(b"up ready")
    assert agent.memory() - before < 32 << 20
    for connection in crowd:
        connection.close()
    until(lambda: agent.ask("ollama.service chat").startswith("up"))


def test_a_user_of_the_host_cannot_keep_the_gateways_from_asking(start, engine):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}}, {"gw1": ["127.0.0.9"]})
    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (400, 400))  # it accepts up to 256 at once
    with contextlib.ExitStack() as crowd:
        for number in range(8 * gateway_agent.ASKERS):
            source = "127.1.0.%d" % (1 + number % 50), 0
            crowd.enter_context(socket.create_connection(("127.0.0.1", agent.port), source_address=source))
        with socket.create_connection(("127.0.0.1", agent.port), timeout=10, source_address=("127.0.0.9", 0)) as one:
            one.sendall(b"ollama.service chat\n")
            assert one.recv(100).startswith(b"up ready")


def own_address():
    """An address of this machine other than loopback; None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return probe.getsockname()[0]


@pytest.mark.skipif(own_address() is None, reason="this machine has only loopback")
def test_a_stranger_is_not_answered(start, engine):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}})
    assert agent.ask("ollama.service chat", address=own_address()) == ""
    assert agent.ask("?", address=own_address()) == ""


@pytest.mark.skipif(own_address() is None, reason="this machine has only loopback")
def test_a_gateway_is_not_told_of_the_others(start, engine):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}}, {"gw1": [own_address()]})
    assert agent.ask("ollama.service chat", address=own_address()).startswith("up")
    assert agent.ask("?", address=own_address()) == ""
    assert agent.report()["gateways"]["gw1"] is not None


@pytest.mark.parametrize("given", ["::ffff:10.0.0.5", "10.0.0.5", "10.0.0.5%eth0"])
def test_one_spelling_of_an_address(given):
    assert gateway_agent.plain(given) == "10.0.0.5"


# --- marks


def test_a_mark_counts_at_once_and_who_has_heard_of_it_is_noted(start, engine):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}}, {"gw1": ["127.0.0.1"], "gw2": ["127.0.0.2"]})
    agent.ask("ollama.service chat")
    assert agent.report()["services"]["ollama.service"]["drained"] == {"gw1": None}
    agent.ask("ollama.service code")
    marked = time.monotonic()
    agent.mark("ollama.service", state="drain")
    assert agent.ask("ollama.service chat") == "drain\n"
    assert agent.report()["services"]["ollama.service"]["drained"] == {"gw1": None}, "it has a second pool"
    assert agent.ask("ollama.service code") == "drain\n"
    heard = agent.report()["services"]["ollama.service"]["drained"]
    assert list(heard) == ["gw1"] and marked <= heard["gw1"] <= time.monotonic()
    (agent.marks / "ollama.service").unlink()
    assert agent.ask("ollama.service chat").startswith("up")


def test_what_lies_in_place_of_a_mark(start, engine, tmp_path):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}})
    mark, drain = agent.marks / "ollama.service", tmp_path / "drain"
    drain.write_text('{"state": "drain"}')

    def said():
        found = agent.ask("ollama.service chat")
        mark.rmdir() if mark.is_dir() and not mark.is_symlink() else mark.unlink()
        return found

    mark.symlink_to(drain)
    assert said().startswith("up"), "a link is not followed"
    os.mkfifo(mark)
    assert said().startswith("up"), "a pipe is not waited for"
    mark.mkdir()
    assert said().startswith("up")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(mark))
    assert said().startswith("up")
    mark.write_text("[")
    assert said() == "drain\n", "root has written something: nothing is sent there until it is known what"
    mark.write_text("7")
    assert said() == "drain\n"
    if os.geteuid() == 0:
        mark.write_text('{"state": "drain"}')
        os.chown(mark, 65534, 65534)
        assert said().startswith("up"), "it is not root's"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
def test_a_mark_that_cannot_be_opened_may_be_a_drain(monkeypatch, tmp_path, number):
    assert gateway_agent.read_mark(str(tmp_path), "ollama.service") == {}

    def fails(*_words):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(gateway_agent.os, "open", fails)
    assert gateway_agent.read_mark(str(tmp_path), "ollama.service") == {"state": "drain"}


# --- a real HAProxy


class Haproxy:
    """A gateway; each server is asked for by ``UNIT MODEL``."""

    def __init__(self, folder, agent, engine_port, servers, source="127.0.0.1"):
        self.socket = folder / ("admin-%s" % source)
        lines = [
            "global",
            "  stats socket %s level admin" % self.socket,
            "defaults",
            "  mode http",
            "  timeout connect 2s",
            "  timeout client 30s",
            "  timeout server 30s",
            "backend chat",
            "  balance leastconn",
            "  option http-server-close",
        ]
        lines += [
            '  server %s 127.0.0.1:%d weight 100 source %s check inter 200ms agent-check agent-port %d agent-inter 100ms agent-send "%s\\n"'
            % (name, engine_port, source, agent.port, line)
            for name, line in servers.items()
        ]
        config = folder / ("haproxy-%s.cfg" % source)
        config.write_text("\n".join(lines) + "\n")
        self.process = subprocess.Popen([shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", str(config)])
        until(lambda: self.socket.exists())

    def command(self, line):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket))
            connection.sendall(line.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def stat(self, name):
        rows = csv.DictReader(self.command("show stat").lstrip("# ").splitlines())
        return next(row for row in rows if row["svname"] == name)

    def sees(self, name, **expected):
        """Wait until it has a server so."""
        try:
            until(lambda: all(self.stat(name)[key] == value for key, value in expected.items()))
        except AssertionError:
            found = self.stat(name)
            raise AssertionError("%s: %s" % (name, {key: found[key] for key in expected})) from None


HAPROXY = shutil.which("haproxy") or os.path.exists("/usr/sbin/haproxy")


@pytest.fixture
def gateway(tmp_path):
    running = []

    def make(*words, **more):
        running.append(Haproxy(tmp_path, *words, **more))
        return running[-1]

    yield make
    for one in running:
        one.process.kill()
        one.process.wait()


@pytest.mark.skipif(not HAPROXY, reason="HAProxy is not installed")
def test_what_an_operator_of_the_gateway_declares_stays(start, engine, gateway):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}})
    haproxy = gateway(agent, engine.port, {"gpu1.ollama": "ollama.service chat"})
    haproxy.sees("gpu1.ollama", status="UP", slim="4")
    until(lambda: agent.report()["services"]["ollama.service"]["said"].startswith("up 100%"))
    haproxy.command("set server chat/gpu1.ollama state drain")
    for mark in ({"state": "down", "verdict": "x"}, None):
        if mark:
            agent.mark("ollama.service", **mark)
            until(lambda: haproxy.stat("gpu1.ollama")["last_agt"].endswith("(x)"))
        else:
            (agent.marks / "ollama.service").unlink()
            until(lambda: haproxy.stat("gpu1.ollama")["last_agt"] == "via agent : up")
    assert haproxy.stat("gpu1.ollama")["status"].startswith("DRAIN")
    agent.mark("ollama.service", state="drain")
    until(lambda: agent.report()["services"]["ollama.service"]["drained"]["gw1"])
    (agent.marks / "ollama.service").unlink()
    haproxy.sees("gpu1.ollama", status="UP")


@pytest.mark.skipif(not HAPROXY, reason="HAProxy is not installed")
def test_haproxy_does_as_it_is_told(start, engine, gateway):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port}})
    haproxy = gateway(agent, engine.port, {"gpu1.ollama": "ollama.service chat"})
    haproxy.sees("gpu1.ollama", status="UP", weight="100", slim="4")
    agent.mark("ollama.service", state="drain")
    haproxy.sees("gpu1.ollama", status="DRAIN (agent)")
    began = time.monotonic()
    until(lambda: (agent.report()["services"]["ollama.service"]["drained"]["gw1"] or 0) > began)
    agent.mark("ollama.service", state="down", verdict="cpu_fallback")
    haproxy.sees("gpu1.ollama", status="DOWN (agent)", last_agt="via agent : down (cpu_fallback)")
    (agent.marks / "ollama.service").unlink()
    haproxy.sees("gpu1.ollama", status="UP", weight="100", slim="4")
    engine.close()
    haproxy.sees("gpu1.ollama", status="DOWN (agent)")


@pytest.mark.skipif(not HAPROXY, reason="HAProxy is not installed")
def test_two_gateways_share_the_places(start, engine, gateway):
    engine.ollama()
    agent = start({"ollama.service": {"port": engine.port, "limit": 5}}, {"a": ["127.0.0.2"], "b": ["127.0.0.3"]})
    first = gateway(agent, engine.port, {"gpu1.ollama": "ollama.service chat"}, source="127.0.0.2")
    first.sees("gpu1.ollama", slim="5")
    second = gateway(agent, engine.port, {"gpu1.ollama": "ollama.service chat"}, source="127.0.0.3")
    first.sees("gpu1.ollama", slim="3")
    second.sees("gpu1.ollama", slim="3")
    agent.mark("ollama.service", state="drain")
    until(lambda: all(agent.report()["services"]["ollama.service"]["drained"].get(name) for name in "ab"))
