# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers as they come, reloads under load, servers that come and go: a real HAProxy with the generated configuration."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from engines import Agent, Engine
from gateways import ALICE, BOB, ENGINE_KEY, LAST, Gateway, asked, exchange, row
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Running
from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import haproxy, runtime, service
from ansible_collections.gpufleet.inference.plugins.module_utils.programs import gateway_state
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.addresses import host_port
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed


def one_server(gateway: Gateway, engines: List[Engine], **more: Any) -> Engine:
    """Let the model chat have one server."""
    gateway.pools["chat"] = [row(engines[0], "vllm@chat", key=ENGINE_KEY, **more)]
    gateway.reload()
    return engines[0]


# --- streams


def test_an_event_is_passed_on_before_the_next_one_exists(gateway: Gateway, engines: List[Engine]) -> None:
    engine = one_server(gateway, engines)
    engine.stepwise = True
    answer = asked(gateway, pieces=5)
    assert answer.getheader("Content-Type") == "text/event-stream"
    for number in range(5):
        engine.step.release()
        assert b'"piece": %d' % number in answer.readline() + answer.readline()
    assert answer.read() == b""


def test_an_engine_notices_that_the_client_is_gone(gateway: Gateway, engines: List[Engine]) -> None:
    engine = one_server(gateway, engines)
    engine.stepwise = True
    answer = asked(gateway, pieces=1000)
    engine.step.release()
    assert answer.readline()
    answer.close()
    until(lambda: engine.step.release() or engine.cut.is_set())


def test_a_request_whose_client_left_the_queue_never_runs(gateway: Gateway, engines: List[Engine]) -> None:
    engine = one_server(gateway, engines, max_concurrent=1)
    engine.go.clear()
    first = threading.Thread(target=gateway.chat, kwargs={"wait": True})
    first.start()
    assert engine.arrived.acquire(timeout=60)
    body = json.dumps({"model": "chat", "left": True})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as waiting:
        waiting.sendall((head % (ALICE, len(body)) + body).encode())
        until(lambda: queued(gateway))
    until(lambda: queued(gateway) == 0)
    engine.go.set()
    first.join()
    assert gateway.chat().status == 200
    assert not any(request["body"].get("left") for request in engine.seen)


def queued(gateway: Gateway) -> int:
    """Requests that wait for the model chat."""
    backends = runtime.rows(runtime.ask("show stat -1 2 -1", gateway.socket))
    return next(int(found["qcur"]) for found in backends if found["pxname"] == "chat")


def test_a_long_answer_outlasts_the_time_that_a_client_has(gateway: Gateway, engines: List[Engine]) -> None:
    gateway.options["client_timeout"] = 1
    engine = one_server(gateway, engines)
    engine.go.clear()
    threading.Timer(2.5, engine.go.set).start()
    assert gateway.chat(wait=True).status == 200


# --- what waits, what is sent again


def test_a_full_server_a_full_queue_and_a_deadline(gateway: Gateway, engines: List[Engine]) -> None:
    gateway.options.update(queue_length=1, queue_timeout=1)
    engine = one_server(gateway, engines, max_concurrent=1)
    engine.go.clear()
    first = threading.Thread(target=gateway.chat, kwargs={"wait": True})
    first.start()
    assert engine.arrived.acquire(timeout=60)
    late: List[Any] = []
    second = threading.Thread(target=lambda: late.append(gateway.chat()))
    second.start()
    until(lambda: queued(gateway) == 1)
    third = gateway.chat()
    assert (third.status, third.code) == (429, "queue_full") and third.headers["retry-after"] == "5"
    second.join()
    assert (late[0].status, late[0].code) == (503, "unavailable") and late[0].headers["retry-after"] == "5"
    engine.go.set()
    first.join()


def test_only_what_no_engine_has_seen_is_sent_again(gateway: Gateway, engines: List[Engine]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = dict(row(engines[1], "vllm@gone", key=ENGINE_KEY), port=nobody.getsockname()[1])
        gateway.pools["chat"] = [gone, row(engines[0], "vllm@chat", key=ENGINE_KEY)]
        gateway.reload()
        assert {gateway.chat().status for _ in range(8)} == {200}, "a connection that is refused goes elsewhere"
    one_server(gateway, engines)
    engines[0].seen.clear()
    answer = gateway.chat(drop=True)
    assert (answer.status, answer.code) == (502, "bad_gateway")
    assert len(engines[0].seen) == 1


def test_no_request_to_a_server_that_is_not_healthy(gateway: Gateway, engines: List[Engine]) -> None:
    engines[0].health = 503
    until(lambda: any(state.startswith("DOWN") for state in gateway.states().values()))
    assert {gateway.chat().json["engine"] for _ in range(8)} == {"gpu2"}
    engines[1].health = 503
    until(lambda: gateway.chat().status == 503)
    engines[0].health = engines[1].health = 200
    until(lambda: set(gateway.states().values()) == {"UP"})


@pytest.mark.parametrize("health", [401, 403])
def test_an_engine_that_asks_for_its_key_on_every_path_is_up(
    gateway: Gateway, engines: List[Engine], health: int
) -> None:
    engines[0].health = health
    one_server(gateway, engines)
    until(lambda: gateway.states()["chat/" + haproxy.server(gateway.pools["chat"][0])] == "UP")
    assert gateway.chat().json["engine"] == "gpu1"


def gate_of(gateway: Gateway) -> Any:
    """The proof of what the gateway runs: whether it was changed → the verdict."""
    none: Any = None
    running = Running("haproxy.service", 1, "i", {}, 0.0, 0.0, "/", none, none)
    digest = runtime.info(gateway.socket)["description"]
    return partial(service.Gate(gateway.options, gateway.pools, digest, gateway.place), running)


def test_a_name_that_does_not_resolve_stops_nothing_else(
    gateway: Gateway, engines: List[Engine], agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = dict(row(engines[1], "vllm@gone", key=ENGINE_KEY), address="gone.invalid")
    gateway.pools["chat"] = [gone, row(engines[0], "vllm@chat", key=ENGINE_KEY)]
    gateway.reload()
    gateway.kill()
    gateway.start()
    until(lambda: gateway.chat().status == 200)
    assert {gateway.chat().json["engine"] for _ in range(4)} == {"gpu1"}
    gate = gate_of(gateway)
    verdict = gate(False)
    assert verdict.ok and verdict.evidence["unresolved"] == ["gone.invalid"]
    monkeypatch.setattr(service, "resolves", lambda name: True)
    verdict = gate(False)
    assert (verdict.name, verdict.remedy) == ("unresolved", "reload") and "gone.invalid" in verdict.message
    assert gate(True).ok, "right after a reload, another one mends nothing"


def test_chats_with_one_beginning_go_to_one_server(gateway: Gateway, engines: List[Engine]) -> None:
    gateway.options["affinity"] = ["chat"]
    gateway.reload()
    until(lambda: set(gateway.states().values()) == {"UP"})
    places = set()

    def turn(system: Any, text: str) -> str:
        """Where a turn goes once the one before is over for the gateway, too: a busy server would be passed over."""
        until(lambda: all(found["scur"] == "0" for found in runtime.servers(gateway.socket)))
        return str(gateway.chat(messages=[system, {"role": "user", "content": text}]).json["engine"])

    for number in range(12):
        system = {"role": "system", "content": "You are number %d" % number}
        turns = [turn(system, text) for text in "abc"]
        assert len(set(turns)) == 1
        places.update(turns)
    assert places == {"gpu1", "gpu2"}


def test_each_model_of_several_has_a_home(gateway: Gateway, engines: List[Engine]) -> None:
    """An Ollama whose memory does not hold all of its models then loads each of them once."""
    names = ["m%d" % number for number in range(3)]
    served = [row(engine, "ollama", engine="ollama", api="both", max_concurrent=1) for engine in engines]
    gateway.pools.update(dict.fromkeys(names, served))
    gateway.reload()
    until(lambda: set(gateway.states().values()) == {"UP"})

    def turn(name: str) -> str:
        until(lambda: all(found["scur"] == "0" for found in runtime.servers(gateway.socket)))
        return str(gateway.chat(name).json["engine"])

    homes = {name: {turn(name) for _ in range(4)} for name in names}
    assert sorted(min(found) for found in homes.values()) == ["gpu1", "gpu2", "gpu3"], homes
    assert all(len(found) == 1 for found in homes.values()), homes
    home = next(engine for engine in engines if engine.name in homes["m0"])
    home.go.clear()
    first = threading.Thread(target=gateway.chat, args=("m0",), kwargs={"wait": True})
    first.start()
    until(lambda: any(found["scur"] == "1" for found in runtime.servers(gateway.socket)))
    assert gateway.chat("m0").json["engine"] != home.name, "its one place is taken"
    home.go.set()
    first.join()
    home.health = 503
    until(lambda: any(state.startswith("DOWN") for state in gateway.states().values()))
    until(lambda: turn("m0") != home.name)
    home.health = 200
    until(lambda: set(gateway.states().values()) == {"UP"})


# --- reloads


def test_twenty_reloads_under_load_fail_no_request(gateway: Gateway, engines: List[Engine]) -> None:
    ended = threading.Event()
    statuses: Counter = Counter()

    def client(number: int) -> None:
        while not ended.is_set():
            try:
                answer = (
                    gateway.chat(pieces=40) if number % 2 else gateway.ask(path="/api/chat", body={"model": "tiny"})
                )
                whole = number % 2 == 0 or answer.text.count("data: ") == 40
                statuses[answer.status if whole else "cut"] += 1
            except Exception as error:
                statuses[repr(error)] += 1
            ended.wait(0.02)  # the machine has other work, too

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    try:
        for _ in range(20):
            gateway.reload()
    finally:
        ended.set()
        for thread in clients:
            thread.join()
    assert set(statuses) == {200} and statuses[200] > 4


def test_a_stream_outlives_the_reload_and_the_removal_of_its_server(gateway: Gateway, engines: List[Engine]) -> None:
    engine = one_server(gateway, engines)
    engine.stepwise = True
    answer = asked(gateway, pieces=3)
    engine.step.release()
    assert b'"piece": 0' in answer.readline()
    gateway.pools["chat"] = [row(engines[1], "vllm@chat", key=ENGINE_KEY)]
    gateway.reload()
    engine.step.release(2)
    assert b'"piece": 2' in answer.read()
    assert gateway.chat().json["engine"] == "gpu2"


def test_the_state_of_servers_survives(gateway: Gateway, engines: List[Engine]) -> None:
    name = "chat/" + haproxy.server(gateway.pools["chat"][0])
    assert runtime.ask("set server %s state drain" % name, gateway.socket) == ""
    for _ in range(3):
        gateway.reload()
        assert gateway.states()[name] == "DRAIN"
        assert {gateway.chat().json["engine"] for _ in range(4)} == {"gpu2"}
    gateway.kill()
    gateway.start()
    assert gateway.states()[name] == "DRAIN"
    runtime.ask("set server %s state maint" % name, gateway.socket)
    runtime.save_state(gateway.socket, gateway.place.state)
    gateway.kill()
    gateway.start()
    assert gateway.states()[name] == "MAINT"
    assert runtime.ask("set server %s state ready" % name, gateway.socket) == ""
    until(lambda: set(gateway.states().values()) == {"UP"})


@pytest.fixture
def agent(gateway: Gateway) -> Iterator[Agent]:
    """The agent of all servers of the gateway."""
    found = Agent()
    gateway.options["agent_port"] = found.port
    gateway.reload()
    until(lambda: set(gateway.states().values()) == {"UP"})
    yield found
    found.shutdown()
    found.server_close()


def test_a_drain_that_is_over_does_not_come_back_with_a_new_process(gateway: Gateway, agent: Agent) -> None:
    """The agent says ready only a few times after a drain: nothing else would end one that the saved state brings back."""
    agent.say("drain")
    until(lambda: set(gateway.states().values()) == {"DRAIN (agent)"})
    gateway.reload()
    assert set(gateway.states().values()) == {"DRAIN (agent)"}, "the new process does not wait for its first question"
    agent.say("up ready 100%")
    until(lambda: set(gateway.states().values()) == {"UP"})
    agent.say("up 100%")
    gateway.kill()
    gateway.start()
    until(lambda: set(gateway.states().values()) == {"UP"})
    assert gateway.chat().status == 200


def test_a_host_that_is_out_stays_out_whatever_its_agent_says(gateway: Gateway, agent: Agent) -> None:
    name = "chat/" + haproxy.server(gateway.pools["chat"][0])
    for command in ("disable agent %s" % name, "set server %s state drain" % name):  # as gateway_server does it
        assert runtime.ask(command, gateway.socket) == ""
    runtime.save_state(gateway.socket, gateway.place.state)
    gateway.kill()
    gateway.start()
    agent.say("up ready 100%")
    assert gateway.states()[name].startswith("DRAIN")
    assert {gateway.chat().json["engine"] for _ in range(4)} == {"gpu2"}
    for command in ("enable agent %s" % name, "set server %s state ready" % name):
        assert runtime.ask(command, gateway.socket) == ""
    until(lambda: set(gateway.states().values()) == {"UP"})


@contextmanager
def impostor(folder: Path, answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A socket at which somebody else answers one command."""
    path = str(folder / "sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def serve() -> None:
            with listening.accept()[0] as connection:
                connection.recv(1 << 16)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join()


def test_what_is_not_a_state_replaces_none(gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "servers"
    file.write_text("before")

    def refuse(connection: socket.socket) -> None:
        connection.sendall(b"Permission denied\n")

    with impostor(tmp_path, refuse) as path, pytest.raises(Failed, match="'Permission denied', expected version 1"):
        runtime.save_state(path, str(file))
    assert file.read_text() == "before"
    runtime.save_state(gateway.socket, str(file))
    assert file.read_text().startswith("1\n# ") and file.stat().st_mode & 0o777 == 0o600


def test_an_answer_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_state, "LIMIT", 0.3)
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        while not ended.wait(0.05):
            connection.sendall(b"x")

    with impostor(tmp_path, drip) as path:
        with pytest.raises(runtime.RuntimeFault, match="does not answer at"):
            runtime.ask("show info", path)
        ended.set()


def test_a_server_that_moves_is_found_where_it_is_declared(gateway: Gateway, engines: List[Engine]) -> None:
    """The saved state of a server of the same name holds its previous address and port."""
    one_server(gateway, engines)
    assert gateway.chat().json["engine"] == "gpu1"
    moved = dict(row(engines[0], "vllm@chat", key=ENGINE_KEY), port=engines[1].port)
    gateway.pools["chat"] = [moved]
    gateway.reload()
    assert gateway.chat().json["engine"] == "gpu2"


# --- slow and many clients


def test_slow_clients_hold_nothing_for_long(gateway: Gateway, engines: List[Engine]) -> None:
    gateway.options["client_timeout"] = 1
    gateway.reload()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n" % ALICE.encode()
    for raw in (head, head + b"Content-Length: 999\r\n\r\n{", head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
        answer = exchange(gateway, raw, last=b"")
        assert answer.split(b" ", 2)[1] in (b"408", b"411"), answer
    assert not any(engine.seen for engine in engines)


@pytest.mark.parametrize("port", ["port", "redirect_port"])
def test_idle_connections_are_held_as_declared(gateway: Gateway, free_port: Callable[[], int], port: str) -> None:
    gateway.options.update(address_connections=300, redirect_port=free_port())
    gateway.reload()
    place = ("127.0.0.1", gateway.options[port])
    idle = [socket.create_connection(place) for _ in range(290)]
    assert gateway.chat().status == 200
    while answers(gateway):
        assert len(idle) < 900, "some may be held by the worker of before the reload, which counts its own"
        idle.append(socket.create_connection(place))
    for connection in idle:
        connection.close()
    until(lambda: answers(gateway))


def test_a_network_of_ipv6_counts_as_one_address(gateway: Gateway) -> None:
    gateway.options["host"] = "::1"
    gateway.reload()
    connection = http.client.HTTPConnection("::1", gateway.port, timeout=60)
    connection.request("GET", "/v1/models", headers={"Authorization": "Bearer " + ALICE})
    assert connection.getresponse().status == 200
    assert " key=:: " in runtime.ask("show table %s" % haproxy.ADDRESSES, gateway.socket)
    connection.close()
    assert gate_of(gateway)(False).ok
    gateway.options["host"] = "::"
    gateway.reload()
    assert gateway.chat().status == 200, "over IPv4, too"
    assert " key=::ffff:127.0.0.1 " in runtime.ask("show table %s" % haproxy.ADDRESSES, gateway.socket)


def answers(gateway: Gateway) -> bool:
    try:
        return gateway.chat().status == 200
    except (OSError, http.client.HTTPException):
        return False


# --- TLS and HTTP/2


def curl(gateway: Gateway, path: str, *words: str, port: int = 0) -> str:
    """``STATUS VERSION LOCATION``."""
    command = ["curl", "-sk", "-o", "/dev/null", "--path-as-is", "-w", "%{http_code} %{http_version} %{redirect_url}"]
    scheme, port = ("http", port) if port else ("https", gateway.port)
    url = "%s://%s%s" % (scheme, host_port(gateway.options["host"], port), path)
    return subprocess.run(
        [*command, *words, url], stdin=subprocess.DEVNULL, capture_output=True, text=True
    ).stdout.strip()


def test_tls_and_http2(tls: Gateway, engines: List[Engine]) -> None:
    key = ["-H", "Authorization: Bearer " + BOB]
    chat = ["-d", '{"model":"chat"}', *key]
    assert curl(tls, "/v1/chat/completions", "--http2", *chat) == "200 2"
    assert curl(tls, "/v1/chat/completions", "--http1.1", *chat) == "200 1.1"
    assert curl(tls, "/v1/chat/completions", "--tls-max", "1.1", *chat).startswith("000")
    assert curl(tls, "/v1/chat/completions", "--http2", "-d", '{"model":"tiny"}', *key) == "403 2"
    for path in ("/api/pull", "/v1/chat/completions/../../../api/pull", "/api%2fpull"):
        assert curl(tls, path, "--http2", *chat) == "404 2"
    moved = curl(tls, "/v1/models?x", port=tls.options["redirect_port"])
    assert moved == "308 1.1 https://127.0.0.1:%d/v1/models" % tls.port
    assert exchange(tls, LAST, last=b"").startswith(b"HTTP/1.1 400") or not exchange(tls, LAST, last=b"")


def test_a_redirect_on_an_address_of_ipv6(tls: Gateway) -> None:
    tls.options["host"] = "::1"
    tls.reload()
    assert curl(tls, "/health") == "200 2"
    moved = curl(tls, "/v1/models?x", port=tls.options["redirect_port"])
    assert moved == "308 1.1 https://[::1]:%d/v1/models" % tls.port
