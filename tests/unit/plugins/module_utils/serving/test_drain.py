# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service leaves its load balancers before a stop and comes back once it is proven, whatever happens in between."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Fault, Outcome, Verdict
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import agent, drain
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.process import address_of
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed

UNIT = "vllm@chat.service"


class FakeAgent:
    """Answers ``?`` with what the gateways know; ``drained`` maps their names to seconds from now, None for never."""

    def __init__(self):
        self.drained, self.answer, self.asked, self.started = {}, None, {}, 0.0
        self.ready, self.reports = [], 0
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(16)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection = self.socket.accept()[0]
            except OSError:
                return
            with connection:
                connection.recv(100)
                known = {
                    name: None if after is None else time.monotonic() + after for name, after in self.drained.items()
                }
                asked = {name: time.monotonic() + after for name, after in self.asked.items()}
                ready = self.ready.pop(0) if len(self.ready) > 1 else (self.ready or [{}])[0]
                self.reports += 1
                told = {"services": {UNIT: {"said": "drain", "drained": known, "ready": ready}}, "gateways": asked}
                told = json.dumps(dict(told, started=self.started))
                connection.sendall((told if self.answer is None else self.answer).encode())


@pytest.fixture
def host(tmp_path, monkeypatch, fakes):
    """A host with an agent: ``host(*gateways)`` writes its configuration; ``host.run()`` drains."""
    told = FakeAgent()
    monkeypatch.setattr(agent, "MARKS", str(tmp_path / "marks"))
    monkeypatch.setattr(agent, "CONFIG", str(tmp_path / "agent.json"))
    monkeypatch.setattr(drain, "HEAR", 0.4)
    monkeypatch.setattr(drain, "_PAUSE", 0.01)

    class Host:
        agent, warnings, mark = told, [], tmp_path / "marks" / UNIT
        running = fakes.FakeRunning()
        peers: list = []

        def configure(self, *gateways, unit=UNIT, held=False):
            service = {"engine": "vllm", "address": "127.0.0.1", "port": 8000, "held": held}
            known = {"gw%d" % number: [address] for number, address in enumerate(gateways, 1)}
            config = {"port": told.port, "services": {unit: service}, "gateways": known}
            Path(agent.CONFIG).write_text(json.dumps(config))

        def run(self, endpoint=None, command=(), limit=0.3, port=0):
            return drain.drain(self.running, endpoint, port, command, limit, self.warnings.append)

        def said(self):
            return json.loads(self.mark.read_text()) if self.mark.exists() else None

        def leave(self, **said):
            self.mark.parent.mkdir(exist_ok=True)
            self.mark.write_text(json.dumps(said))

    made = Host()
    made.running.system.peers = lambda pid, port: made.peers.pop(0) if len(made.peers) > 1 else (made.peers or [[]])[0]
    yield made
    told.socket.close()


def test_gateways_are_told_and_requests_end_before_the_stop(host):
    host.configure("10.0.0.5", "10.0.0.6")
    host.agent.drained = {"gw1": 1.0, "gw2": 1.0}
    host.peers = [["10.0.0.5", "10.0.0.9"], ["10.0.0.6"], [], ["10.0.0.6"], [], ["10.0.0.9"], []]
    result = host.run(limit=30)
    assert (result["gateways"], result["silent"], result["cut"]) == (["gw1", "gw2"], [], "")
    assert host.said() == {"state": "drain"} and host.warnings == []
    assert len(host.peers) <= 2, "it had to see twice in a row that no gateway is connected"


@pytest.mark.parametrize("known", [{"gw1": 1.0}, {"gw1": 1.0, "gw2": None}, {"gw1": 1.0, "gw2": -3600.0}])
def test_a_gateway_that_does_not_ask_is_named_and_holds_nobody_up(host, known):
    host.configure("10.0.0.5", "10.0.0.6")
    host.agent.drained, host.agent.asked = known, {"gw2": -0.1}
    began = time.monotonic()
    result = host.run()
    assert (result["gateways"], result["silent"]) == (["gw1"], ["gw2"])
    assert "gw2 did not ask" in host.warnings[0] and time.monotonic() - began >= drain.HEAR


def test_a_gateway_that_has_not_asked_for_long_is_not_waited_for(host, monkeypatch):
    monkeypatch.setattr(drain, "HEAR", 300)
    host.configure("10.0.0.5", "10.0.0.6")
    host.agent.drained, host.agent.asked = {"gw1": 1.0}, {"gw1": 0.0, "gw2": -3600.0}
    assert host.run()["silent"] == ["gw2"] and len(host.warnings) == 1


def test_an_agent_that_has_just_started_does_not_know_who_asks(host):
    host.configure("10.0.0.5")
    host.agent.started = time.monotonic()
    began = time.monotonic()
    assert host.run()["silent"] == ["gw1"] and time.monotonic() - began >= drain.HEAR


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        "nothing",
        '{"services": ["ollama.service"]}',
        '{"services": {}}',
        '{"services": {"vllm@chat.service": 7}}',
    ],
)
def test_an_agent_that_says_nothing_usable(host, answer):
    host.configure("10.0.0.5")
    host.agent.answer = answer
    assert host.run()["silent"] == ["gw1"]


def test_an_answer_without_services_is_none(host):
    host.agent.answer = '{"services": ["vllm@chat.service"], "started": 1.0}'
    assert agent.ask(host.agent.port) == {}


def test_requests_that_do_not_end_are_cut_and_told(host):
    host.configure("10.0.0.5")
    host.agent.drained, host.peers = {"gw1": 1.0}, [["10.0.0.5", "10.0.0.5", "10.0.0.77"]]
    assert host.run()["cut"] == "2 connections from 10.0.0.5 are open"
    assert "2 connections from 10.0.0.5 are open after 0 s; they were cut (drain_timeout)" in host.warnings[0]


@pytest.mark.parametrize("given, counted", [(0, 8000), (11434, 11434)])
def test_connections_are_counted_where_the_process_listens_not_where_the_next_one_will(host, given, counted):
    host.configure("10.0.0.5")
    host.agent.drained = {"gw1": 1.0}
    host.running.system.peers = lambda pid, port: ["10.0.0.5"] if port == counted else []
    assert host.run(port=given)["cut"] == "1 connection from 10.0.0.5 is open"


def test_requests_of_a_service_that_is_no_longer_declared_are_waited_for(host, monkeypatch):
    monkeypatch.setattr(drain, "REFUSED", 0.3)
    host.configure("10.0.0.5", unit="other.service")
    host.agent.started = began = time.monotonic()
    host.running.system.peers = lambda pid, port: ["10.0.0.5"] if port == 11434 else []
    result = host.run(port=11434)
    assert (result["gateways"], result["cut"]) == ([], "1 connection from 10.0.0.5 is open")
    assert time.monotonic() - began >= drain.REFUSED, "its agent had just been started: not all gateways had asked it"
    assert host.said() is None and len(host.warnings) == 1


def test_an_engine_that_reports_no_request_is_idle_even_if_connections_stay_open(host, web):
    web.answers["/metrics"] = 200, "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
    host.configure("10.0.0.5")
    host.agent.drained, host.peers = {"gw1": 1.0}, [["10.0.0.5"]]
    assert host.run(Endpoint(web.url), limit=30)["cut"] == ""


def test_a_request_that_came_past_the_gateways_is_waited_for_too(host, web):
    web.answers["/metrics"] = 200, "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n"
    host.configure("10.0.0.5")
    host.agent.drained = {"gw1": 1.0}
    assert host.run(Endpoint(web.url))["cut"] == "it still has 1 request running and 0 waiting"


def test_a_host_without_gateways_has_no_mark(host):
    assert host.run() == {"seconds": 0.0, "gateways": [], "silent": [], "cut": ""}
    host.configure("10.0.0.5", unit="other.service")
    host.run()
    assert host.said() is None and host.warnings == []


def test_the_next_service_is_not_drained_before_the_gateways_send_requests_again(host, monkeypatch):
    monkeypatch.setattr(drain, "HEAR", 30)
    host.configure("10.0.0.5", "10.0.0.6")
    host.leave(state="drain")
    host.agent.ready = [{"gw1": 0, "gw2": 2}, {"gw1": 1, "gw2": 2}, {"gw1": 2, "gw2": 2}]
    drain.put_back(UNIT, [], host.warnings.append)
    assert host.agent.reports == 3 and not host.mark.exists()


def test_nobody_waits_for_the_return_of_a_service_that_is_held(host, monkeypatch):
    monkeypatch.setattr(drain, "HEAR", 30)
    host.configure("10.0.0.5", held=True)
    host.leave(state="drain")
    drain.put_back(UNIT, [], host.warnings.append)
    assert host.warnings == [] and not host.mark.exists()


def test_a_gateway_that_hears_nothing_is_named_and_holds_nobody_up_for_long(host):
    host.configure("10.0.0.5", "10.0.0.6", "10.0.0.7")
    host.leave(state="drain")
    host.agent.ready = [{"gw1": 0, "gw2": 2}]
    drain.put_back(UNIT, [], host.warnings.append)
    assert host.agent.reports > 1 and not host.mark.exists()
    (warning,) = host.warnings
    assert "is verified, but gw1 did not ask the agent of this host for 0 s" in warning


def test_what_a_former_run_has_found_is_kept_until_the_proof(host):
    host.configure("10.0.0.5")
    host.agent.drained = {"gw1": 1.0}
    host.leave(state="down", verdict="cpu_fallback")
    host.run()
    assert host.said() == {"state": "drain", "verdict": "cpu_fallback"}


@pytest.mark.parametrize("kind", ["symlink", "dangling", "pipe", "text"])
def test_what_lies_in_place_of_a_mark_is_replaced(host, tmp_path, kind):
    precious = tmp_path / "precious"
    precious.write_text('{"verdict": "ok"}')
    host.mark.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(host.mark)
    elif kind == "text":
        host.mark.write_text("[" * 100000)
    else:
        host.mark.symlink_to(precious if kind == "symlink" else tmp_path / "none")
    host.configure("10.0.0.5")
    host.agent.drained = {"gw1": 1.0}
    host.run()
    assert host.said() == {"state": "drain"} and not host.mark.is_symlink()
    assert precious.read_text() == '{"verdict": "ok"}' and not (tmp_path / "none").exists()


def test_a_file_in_place_of_the_folder_stops_the_change(host):
    Path(agent.MARKS).write_text("")
    host.configure("10.0.0.5")
    with pytest.raises(OSError):
        host.run()


# --- after a run

COMMAND_OUT, COMMAND_FAILS = "/bin/sh", "/bin/false"
OK, BAD = Verdict("ok"), Verdict("cpu_fallback", "it serves on the CPU")


@pytest.mark.parametrize(
    "before, outcome, asked, drained, after",
    [
        # the previous process is back, which an earlier run has proven
        ({"state": "drain"}, {"rolled_back": True, "restarted": True}, BAD, True, None),
        # it failed before the process was touched
        ({"state": "drain"}, {"rolled_back": True}, None, True, None),
        # it is unfit, and a restart did not help
        ({"state": "drain"}, {"restarted": True}, BAD, True, {"state": "down", "verdict": "cpu_fallback"}),
        (None, {}, BAD, False, {"state": "down", "verdict": "cpu_fallback"}),
        # it was unfit before this run, and is again what it was
        (
            {"state": "drain", "verdict": "wrong_gpu"},
            {"rolled_back": True, "restarted": True},
            BAD,
            True,
            {"state": "down", "verdict": "wrong_gpu"},
        ),
        # left by a killed run, and then: a refusal, a gate that finds it unfit
        ({"state": "drain"}, {}, None, False, {"state": "drain"}),
        ({"state": "drain"}, {"rolled_back": True}, BAD, False, {"state": "down", "verdict": "cpu_fallback"}),
        ({"state": "down", "verdict": "wrong_gpu"}, {}, None, False, {"state": "down", "verdict": "wrong_gpu"}),
        (
            {"state": "down", "verdict": "wrong_gpu"},
            {"rolled_back": True},
            BAD,
            False,
            {"state": "down", "verdict": "cpu_fallback"},
        ),
    ],
)
def test_a_mark_after_a_run_that_failed(host, before, outcome, asked, drained, after):
    host.configure("10.0.0.5")
    if before:
        host.leave(**before)
    assert drain.after_failure(UNIT, Outcome(**outcome), asked, drained, [], host.warnings.append) is None
    assert host.said() == after


def test_a_host_without_an_agent_gets_no_mark_when_it_is_unfit(host):
    assert drain.after_failure(UNIT, Outcome(), BAD, False, [], host.warnings.append) is None
    assert host.said() is None


def test_a_mark_is_something_to_do_until_it_is_gone(host):
    step = drain.MarkStep(UNIT)
    assert not step.needed() and not agent.marked(UNIT)
    host.leave(state="down", verdict="wrong_gpu")
    assert step.needed() and agent.marked(UNIT)
    assert step.diff() == {"before": "at the gateways: down wrong_gpu", "after": "at the gateways: ready"}
    step.apply()
    step.undo()
    assert host.said(), "only the proof puts it back"
    drain.put_back(UNIT, [], host.warnings.append)
    assert not agent.marked(UNIT)


def test_a_drain_killed_anywhere_leaves_a_mark_or_none(host, monkeypatch):
    """Kill points: each call that changes the disk, in the drain and in putting back."""
    host.configure("10.0.0.5")
    host.agent.drained = {"gw1": 1.0}

    class Killed(BaseException):
        pass

    def dies_at(number):
        left = [number]

        def dying(call):
            def made(*words, **more):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return call(*words, **more)

            return made

        with monkeypatch.context() as patch:
            for name in ("mkdir", "open", "rename", "unlink", "fchmod", "fsync"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                host.run()
                drain.put_back(UNIT, [], host.warnings.append)
            except Killed:
                return True
        return False

    points = 0
    while dies_at(points):
        points += 1
        assert host.said() in (None, {"state": "drain"}), "it is whole, or not there"
        if agent.marked(UNIT):
            assert drain.MarkStep(UNIT).needed()
        drain.put_back(UNIT, [], host.warnings.append)
        assert not agent.marked(UNIT)
    assert points > 5


# --- commands of the inventory


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "command"
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        return str(path)

    # folders of pytest are the user's own alone, as root's would be
    return write


def test_a_command_takes_it_out_and_another_puts_it_back(host, script, tmp_path):
    log = tmp_path / "log"
    command = script('echo "$1 $GPUFLEET_UNIT" >> %s\n' % log)
    host.run(command=[command, "out; rm -rf /"])
    assert host.said() == {"state": "drain", "command": True}
    drain.put_back(UNIT, [command, "in"], host.warnings.append)
    assert log.read_text().splitlines() == ["out; rm -rf / " + UNIT, "in " + UNIT] and host.said() is None
    drain.put_back(UNIT, [command, "in"], host.warnings.append)
    assert len(log.read_text().splitlines()) == 2, "nothing was taken out"


# the command of docs/rollout.md, where there is one
@pytest.mark.skipif(not os.path.exists("/usr/bin/curl"), reason="needs curl")
def test_a_load_balancer_with_a_web_interface_needs_no_program_of_its_own(host, web):
    post = ["/usr/bin/curl", "-fsS", "-X", "POST"]
    url = web.url + "/pools/chat/members/gpu1/"
    web.answers.update({"/pools/chat/members/gpu1/" + word: (200, {}) for word in ("disable", "enable")})
    host.run(command=[*post, url + "disable"])
    drain.put_back(UNIT, [*post, url + "enable"], host.warnings.append)
    assert [path.rpartition("/")[2] for path, _body in web.requests] == ["disable", "enable"]
    with pytest.raises(Fault, match="drain_command: /usr/bin/curl ended with status 22: .* 404.* Nothing was stopped"):
        host.run(command=[*post, url + "remove"])


def test_a_command_that_fails_stops_the_change(host, script):
    with pytest.raises(Fault, match="drain_command: .* ended with status 3: no such pool. Nothing was stopped"):
        host.run(command=[script("echo no such pool >&2; exit 3")])


def test_a_service_that_cannot_be_put_back_is_told_and_tried_again(host, script):
    host.leave(state="drain", command=True)
    with pytest.raises(
        Failed, match="is proven, but takes no requests yet: undrain_command: .* status 1. The next run"
    ):
        drain.put_back(UNIT, [script("exit 1")], host.warnings.append)
    assert agent.marked(UNIT)


def test_a_command_that_hangs_ends_with_all_that_it_has_started(host, script, monkeypatch, tmp_path):
    monkeypatch.setattr(drain, "COMMAND", 0.5)
    pid = tmp_path / "pid"
    command = script("sleep 60 & echo $! > %s; wait" % pid)
    assert "did not end within" in drain.run_command([command], UNIT)
    child = int(pid.read_text())
    until(lambda: not _runs(child))


def _runs(pid):
    try:
        return Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_command_that_is_not_there_or_not_roots(host, tmp_path):
    assert "cannot be run" in drain.run_command([str(tmp_path / "none")], UNIT)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "command").write_text("#!/bin/sh\n")
    assert "is not run as root" in drain.run_command([str(shared / "command")], UNIT)
    assert "is not an absolute path" in drain.run_command(["haproxy-drain"], UNIT)
    said = drain.run_command(["/bin/sh", str(shared / "command"), "out"], UNIT)
    assert said.startswith("/bin/sh is not run as root: %s may be written by" % shared)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(shared / "admin.sock"))
    words = ["/bin/sh", "-c", "test -S $0", str(shared / "admin.sock")]
    assert drain.run_command(words, UNIT) == "", "a socket is no code"


# --- connections


@pytest.mark.parametrize(
    "text, address",
    [
        ("0100007F", "127.0.0.1"),
        ("0500000A", "10.0.0.5"),
        ("0000000000000000FFFF00000500000A", "10.0.0.5"),
        ("B80D01200000000000000000 01000000".replace(" ", ""), "2001:db8::1"),
    ],
)
@pytest.mark.skipif(__import__("sys").byteorder != "little", reason="as little-endian hosts write it")
def test_addresses_of_the_kernel(text, address):
    assert address_of(text) == address


def test_who_is_connected_to_a_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        system = System()
        assert system.peers(os.getpid(), port) == []
        with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.7", 0)), server.accept()[0]:
            assert system.peers(os.getpid(), port) == ["127.0.0.7"]
        assert system.peers(1 << 30, port) == []
