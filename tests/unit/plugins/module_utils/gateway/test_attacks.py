# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hostile clients send: HTTP/2 that is not allowed, floods, and clients that are slow on purpose."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from typing import List

import http2
import pytest
from engines import Engine
from gateways import ALICE, BOB, ENGINE_KEY, Gateway, row, status_of
from http2 import END_HEADERS, END_STREAM, fields, frame, request
from test_real_haproxy import BODY, CLOSED, HEAD, OPEN, PULL, SPELLINGS
from waiting import until

KEY = (b"authorization", b"Bearer " + ALICE.encode())
LENGTH = (b"content-length", b"16")
PATH = OPEN.encode()
ASKED = request(b"POST", PATH, KEY)
SMUGGLED = {
    "a coding": ((*ASKED, (b"transfer-encoding", b"chunked")), b"0\r\n\r\n" + PULL),
    "a length that is too short": ((*ASKED, LENGTH), BODY + PULL),
    "a length that is too long": ((*ASKED, (b"content-length", b"99")), BODY),
    "two lengths": ((*ASKED, LENGTH, (b"content-length", b"6")), BODY),
    "no length": (ASKED, BODY),
    "a line end in a value": ((*ASKED, (b"x", b"y\r\nTransfer-Encoding: chunked")), BODY),
    "a line feed in a value": ((*ASKED, (b"x", b"y\nTransfer-Encoding: chunked")), BODY),
    "a zero byte in a value": ((*ASKED, (b"x", b"y\0z")), BODY),
    "a line end in a name": ((*ASKED, (b"x: y\r\ntransfer-encoding", b"chunked")), BODY),
    "a colon in a name": ((*ASKED, (b"transfer-encoding: chunked\r\nx", b"y")), BODY),
    "upper case in a name": ((*ASKED, (b"Content-Length", b"16")), BODY),
    "a header of a connection": ((*ASKED, (b"connection", b"authorization")), BODY),
    "an upgrade": ((*ASKED, (b"upgrade", b"h2c")), BODY),
    "a line end in the path": (request(b"POST", PATH + b" HTTP/1.1\r\nX: y", KEY), BODY),
    "a blank in the path": (request(b"POST", PATH + b" /api/pull", KEY), BODY),
    "a path of another place": (request(b"POST", b"http://x/api/pull", KEY), BODY),
    "no path": (request(b"POST", b"", KEY), BODY),
    "a star": (request(b"OPTIONS", b"*", KEY), BODY),
    "two paths": ((*ASKED[:4], (b":path", b"/api/pull"), KEY), BODY),
    "a path behind the headers": ((*ASKED[:3], KEY, (b":path", b"/api/pull")), BODY),
    "a line end in the method": (request(b"POST /api/pull HTTP/1.1\r\nX: y\r\n\r\nGET", PATH, KEY), BODY),
    "another method behind": ((*ASKED, (b"x-http-method-override", b"DELETE")), BODY),
    "two hosts": ((*ASKED, (b"host", b"y")), BODY),
    "a host with a line end": ((ASKED[0], ASKED[1], (b":authority", b"x\r\nX: y"), *ASKED[3:]), BODY),
    "an unknown pseudo header": (((b":x", b"y"), *ASKED), BODY),
    "a tunnel": (((b":method", b"CONNECT"), (b":authority", b"127.0.0.1:80"), KEY), PULL),
    "a websocket": (((b":method", b"CONNECT"), (b":protocol", b"websocket"), *ASKED[1:]), PULL),
    "two keys": ((*ASKED, (b"authorization", b"Bearer x")), BODY),
}  # fmt: skip


def test_nothing_is_smuggled_by_http2(tls: Gateway, engines: List[Engine]) -> None:
    """An engine sees nothing, or the one request that was asked for, with its own key."""
    passed = set()
    for name, (header, body) in SMUGGLED.items():
        asked = frame(http2.HEADERS, END_HEADERS, 1, fields(*header)) + frame(http2.DATA, END_STREAM, 1, body)
        http2.exchange(tls.port, asked, 3, 1)
        assert_one_or_none(engines, name)
        passed.update(name for engine in engines if engine.seen)
        for engine in engines:
            engine.seen.clear()
    assert {"no length", "another method behind"} <= passed, "the frames are not what they should be"


def assert_one_or_none(engines: List[Engine], name: str = "") -> None:
    seen = [request for engine in engines for request in engine.seen]
    assert [request["path"] for request in seen] in ([], [OPEN]), name
    for asked in seen:
        assert asked["headers"]["authorization"] == "Bearer " + ENGINE_KEY, name
        assert asked["length"] == 16 and "x-http-method-override" not in asked["headers"], name
        assert asked["headers"].get("x", "y") == "y", name


def test_trailers_change_nothing(tls: Gateway, engines: List[Engine]) -> None:
    trailers = fields((b"authorization", b"Bearer x"), (b"content-length", b"0"), (b"transfer-encoding", b"chunked"))
    raw = frame(http2.HEADERS, END_HEADERS, 1, fields(*ASKED)) + frame(http2.DATA, 0, 1, BODY)
    http2.exchange(tls.port, raw + frame(http2.HEADERS, END_STREAM | END_HEADERS, 1, trailers), 3, 1)
    assert_one_or_none(engines)


def test_no_other_path_exists_in_http2(tls: Gateway, engines: List[Engine]) -> None:
    paths = [path for path in (*CLOSED, *SPELLINGS) if "\\" not in path]  # which curl itself would rewrite
    for method in ("POST", "GET", "DELETE"):
        words = ["curl", "-sk", "--http2", "--path-as-is", "-X", method, "-w", "%{http_code} %{http_version}\\n"]
        words += [
            "-H",
            "Authorization: Bearer " + ALICE,
            "-H",
            "X-HTTP-Method-Override: POST",
            "-d",
            '{"model":"tiny"}',
        ]
        for path in paths:
            words += ["-o", "/dev/null", "https://127.0.0.1:%d%s" % (tls.port, path)]
        said = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        assert len(said) == len(paths) and set(said) <= {"404 2", "400 2"}, list(zip(paths, said))
    assert not any(engine.seen for engine in engines)


def test_streams_that_are_reset_at_once_keep_nobody_out(tls: Gateway) -> None:
    numbers = range(1, 4001, 2)
    asked = fields(*request(b"POST", PATH, KEY))
    flood = b"".join(
        frame(http2.HEADERS, END_HEADERS, number, asked) + frame(http2.RESET, 0, number, (8).to_bytes(4, "big"))
        for number in numbers
    )
    http2.exchange(tls.port, flood, 4001)
    assert served(tls)


def test_headers_without_an_end_are_cut_off(tls: Gateway) -> None:
    pair = fields((b"x", b"y" * 8000))
    flood = frame(http2.HEADERS, 0, 1, fields(*ASKED)) + frame(http2.CONTINUATION, 0, 1, pair) * 400
    assert not http2.exchange(tls.port, flood, 3), "the connection ends"
    assert served(tls)


def test_long_headers_in_http2(tls: Gateway, engines: List[Engine]) -> None:
    words = ["-H", "Authorization: Bearer " + ALICE, "-d", '{"model":"chat"}', "-H", "X: " + "y" * (20 << 10)]
    assert curled(tls, OPEN, *words) == "431 2"
    assert (
        curled(tls, OPEN, *words[:4], *(word for number in range(200) for word in ("-H", "X%d: y" % number)))[:3]
        != "200"
    )
    assert not any(engine.seen for engine in engines)


def served(gateway: Gateway) -> bool:
    return curled(gateway, OPEN, "-H", "Authorization: Bearer " + BOB, "-d", '{"model":"chat"}') == "200 2"


def curled(gateway: Gateway, path: str, *words: str) -> str:
    """``STATUS VERSION``."""
    command = ["curl", "-sk", "--http2", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", *words]
    url = "https://127.0.0.1:%d%s" % (gateway.port, path)
    return subprocess.run([*command, url], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True).stdout


# --- HTTP/1


@pytest.mark.parametrize("version", [b"1.0", b"0.9", b"1.2", b"2.0", b"3.0"])
def test_other_versions_of_http(gateway: Gateway, engines: List[Engine], version: bytes) -> None:
    closed = PULL.replace(b"Host", KEY[0] + b": " + KEY[1] + b"\r\nHost").replace(b"1.1", version)
    assert status_of(gateway, closed) in (400, 404, 505)
    assert not any(engine.seen for engine in engines)
    status = status_of(gateway, HEAD.replace(b"1.1", version) + b"Content-Length: 16\r\n\r\n" + BODY)
    assert status == 200 if version == b"1.0" else status in (200, 400, 502, 505)
    assert_one_or_none(engines)


def seen_by(engines: List[Engine]) -> List[str]:
    return [request["path"] for engine in engines for request in engine.seen]


def test_more_header_lines_than_are_read(gateway: Gateway, engines: List[Engine]) -> None:
    lines = b"".join(b"X%d: y\r\n" % number for number in range(500))
    assert status_of(gateway, HEAD + lines + b"Content-Length: 16\r\n\r\n" + BODY) in (400, 431)
    assert not seen_by(engines)


def test_a_request_that_drips_is_given_up(gateway: Gateway, engines: List[Engine]) -> None:
    """A byte now and then: each is in time, the request as a whole is not."""
    gateway.options["client_timeout"] = 1
    gateway.reload()
    for raw in (HEAD + b"X: " + b"y" * 999, HEAD + b"Content-Length: 999\r\n\r\n" + b"{" * 999):
        first = raw.index(b"y" * 99) if b"y" * 99 in raw else raw.index(b"{")
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection:
            connection.sendall(raw[:first])
            ended = threading.Event()
            threading.Thread(target=drip, args=(connection, raw[first:], ended)).start()
            answer = connection.recv(99)
            ended.set()
        assert answer.split(b" ", 2)[1] == b"408", answer
    assert not seen_by(engines)


def drip(connection: socket.socket, raw: bytes, ended: threading.Event) -> None:
    with contextlib.suppress(OSError):
        for number in range(len(raw)):
            connection.sendall(raw[number : number + 1])
            if ended.wait(0.1):
                return


def test_a_client_that_does_not_read_holds_no_engine(gateway: Gateway, engines: List[Engine]) -> None:
    gateway.options["client_timeout"] = 1
    gateway.pools["chat"] = [row(engines[0], "vllm@chat", key=ENGINE_KEY)]
    gateway.reload()
    until(lambda: set(gateway.states().values()) == {"UP"})
    body = json.dumps({"model": "chat", "pieces": 10**6}).encode()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert engines[0].cut.wait(60), "the engine still writes, or waits"
