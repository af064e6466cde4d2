# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets in, and where a request goes: the generated configuration in a real HAProxy."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, List

import pytest
from engines import Engine
from gateways import ALICE, BOB, ENGINE_KEY, EVE, KEYS, Gateway, exchange, row, status_of
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import haproxy, keys, runtime, service


def test_a_request_reaches_a_server_of_its_model(gateway: Gateway, engines: List[Engine]) -> None:
    assert gateway.chat().json["engine"] in ("gpu1", "gpu2")
    assert gateway.ask(path="/api/chat", body={"model": "tiny"}).json["engine"] == "gpu3"
    assert gateway.ask(path="/api/chat", body={"model": "tiny:latest"}).json["engine"] == "gpu3"
    assert gateway.ask("GET", "/health", key="").text == "ok"


def test_the_models_that_a_key_may_use_are_listed(gateway: Gateway) -> None:
    def models(key: str) -> Any:
        return [model["id"] for model in gateway.ask("GET", "/v1/models", key=key).json["data"]]

    assert models(ALICE) == ["big", "chat", "tiny"] and models(BOB) == ["chat"]
    tags = gateway.ask("GET", "/api/tags").json["models"]
    assert [model["name"] for model in tags] == ["big", "tiny"]
    assert gateway.ask("GET", "/v1/models/chat", key=BOB).json["id"] == "chat"
    assert gateway.ask("GET", "/v1/models/tiny", key=BOB).status == 404
    assert gateway.ask("GET", "/v1/models", key="").status == 401


def test_the_longest_list_of_models_is_whole(gateway: Gateway) -> None:
    servers = gateway.pools["chat"]
    gateway.pools.update(("model-%03d" % number, servers) for number in range(229))
    missing = keys.LONGEST - 1 - len("alice %s\n" % gateway.maps()["openai"]["alice"])
    entry = len('{"id":"","object":"model","created":0,"owned_by":"gpufleet"},')
    gateway.pools["m" * (missing - entry)] = servers
    assert len("alice %s\n" % gateway.maps()["openai"]["alice"]) == keys.LONGEST - 1
    gateway.reload()
    assert gateway.ask("GET", "/v1/models").text == gateway.maps()["openai"]["alice"]


def test_haproxy_says_why_it_refuses_a_configuration(gateway: Gateway) -> None:
    options = dict(gateway.options, pools=gateway.pools)
    assert service._invalid(options, gateway.maps(), False) is None
    refused = service._invalid(dict(options, port=70000), gateway.maps(), False)
    assert refused and "ALERT" in refused and "70000" in refused


@pytest.mark.parametrize("key", ["", "wrong", ALICE + "x", ALICE[:-1], ALICE.upper()])
def test_a_wrong_key(gateway: Gateway, engines: List[Engine], key: str) -> None:
    answer = gateway.chat(key=key)
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not any(engine.seen for engine in engines)


def test_a_key_for_another_model(gateway: Gateway, engines: List[Engine]) -> None:
    answer = gateway.chat("tiny", key=BOB)
    assert (answer.status, answer.code) == (403, "model_not_allowed")
    assert gateway.chat("nosuch").code == "model_not_found"
    assert gateway.ask(path="/api/chat", body={"model": "chat"}).status == 403
    assert not any(engine.seen for engine in engines)


def test_the_engine_sees_its_own_key_and_no_trace_of_the_client_s(gateway: Gateway, engines: List[Engine]) -> None:
    names = ("Cookie", "X_Api_Key", "X_HTTP_Method_Override", "X_Forwarded_For", "Proxy_Authorization", "X_Request_Id")
    answer = gateway.ask(
        body={"model": "chat"}, path="/v1/chat/completions?api_key=" + ALICE, **dict.fromkeys(names, ALICE)
    )
    assert answer.status == 200
    (seen,) = [request for engine in engines for request in engine.seen]
    assert seen["headers"].pop("authorization") == "Bearer " + ENGINE_KEY
    assert seen["headers"]["x-request-id"] == answer.headers["x-request-id"]
    assert seen["path"] == "/v1/chat/completions"
    assert ALICE not in json.dumps(seen)
    gateway.ask(path="/v1/completions", body={"model": "tiny"})
    assert "authorization" not in engines[2].seen[0]["headers"]


# --- keys


def test_an_expired_key(gateway: Gateway) -> None:
    def status(expires: str) -> int:
        gateway.options["keys"] = [*KEYS, {"name": "eve", "key": EVE, "pools": ["chat"], "expires": expires}]
        gateway.reload()
        return gateway.chat(key=EVE).status

    assert status("2001-01-01") == 401 and gateway.chat(key=EVE).code == "expired_api_key"
    assert status("2999-01-01T00:00:00Z") == 200


def test_a_key_is_rotated_without_a_reload(gateway: Gateway) -> None:
    worker = runtime.info(gateway.socket)["Pid"]
    new, old = gateway.maps(keys=[{"name": "alice", "key": EVE, "pools": ["*"]}]), gateway.maps()
    try:
        for name in haproxy.MAPS:
            runtime.replace_map(gateway.place.map(name), new[name], gateway.socket)
        assert gateway.chat(key=EVE).status == 200
        assert gateway.chat(key=ALICE).status == gateway.chat(key=BOB).status == 401
        assert runtime.read_map(gateway.place.map("keys"), gateway.socket) == new["keys"]
    finally:
        for name in haproxy.MAPS:
            runtime.replace_map(gateway.place.map(name), old[name], gateway.socket)
    assert gateway.chat(key=EVE).status == 401 and gateway.chat().status == 200
    assert runtime.info(gateway.socket)["Pid"] == worker


def test_the_limits_of_a_key(gateway: Gateway, engines: List[Engine]) -> None:
    limited = {"name": "eve", "key": EVE, "pools": ["*"], "rate": 4, "concurrent": 2}
    gateway.options["keys"] = [*KEYS, limited]
    gateway.reload()
    engines[2].go.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(gateway.chat, "tiny", EVE, wait=True) for _ in range(2)]
        for _ in waiting:
            assert engines[2].arrived.acquire(timeout=60)
        third = gateway.chat("tiny", key=EVE)
        engines[2].go.set()
        assert [answer.result().status for answer in waiting] == [200, 200]
    assert (third.status, third.code) == (429, "too_many_concurrent") and third.headers["retry-after"] == "5"
    assert gateway.chat("tiny", key=EVE).status == 200
    fifth = gateway.chat("tiny", key=EVE)
    assert (fifth.status, fifth.code) == (429, "rate_limit_exceeded") and fifth.headers["retry-after"]
    assert gateway.chat("tiny").status == 200, "others have their own limits"


def test_the_rate_of_an_address(gateway: Gateway) -> None:
    gateway.options["address_rate"] = 3
    gateway.reload()
    statuses = [gateway.chat(key="wrong").status for _ in range(5)]
    assert statuses == [401, 401, 401, 429, 429]


# --- paths

OPEN = "/v1/chat/completions"
CLOSED = [
    *(
        "/api/pull",
        "/api/delete",
        "/api/create",
        "/api/copy",
        "/api/push",
        "/api/blobs/sha256:0",
        "/api/ps",
        "/api/version",
    ),
    *("/metrics", "/admin", "/sleep", "/wake_up", "/v1/load_lora_adapter", "/tokenize", "/docs", "/openapi.json", "/"),
    *("/inference/v1/generate", "/reset_prefix_cache", "/server_info", "/collective_rpc", "/invocations", "/slots"),
]
SPELLINGS = [
    *("//api/pull", "/api//pull", "/api/./pull", "/v1/../api/pull", "/v1/chat/completions/../../../api/pull"),
    *(
        "/api/pul%6c",
        "/api%2fpull",
        "/%61pi/pull",
        "/API/PULL",
        "/api/pull/",
        "/api/pull;x",
        "/api/pull%00",
        "/api/pull%20",
    ),
    *(
        "/v1/chat/completions/",
        "/v1/chat/completions%2f..%2f..%2f..%2fapi%2fpull",
        "/V1/chat/completions",
        "/v1/chat//completions",
    ),
    *(
        "/v1/chat/completions/..;/",
        "/.//v1/chat/completions",
        "/v1\\chat\\completions",
        "/v1/models/..%2f..%2fapi%2fpull",
    ),
]


@pytest.mark.parametrize("path", [*CLOSED, *SPELLINGS])
def test_no_other_path_exists(gateway: Gateway, engines: List[Engine], path: str) -> None:
    for method in ("GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS"):
        assert gateway.ask(method, path, {"model": "tiny"}).status in (400, 404), method
    assert not any(engine.seen for engine in engines)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "POSTS"])
def test_no_other_method_exists(gateway: Gateway, engines: List[Engine], method: str) -> None:
    raw = "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nX-HTTP-Method-Override: POST\r\nContent-Length: 16\r\n\r\n"
    assert status_of(gateway, (raw % (method, OPEN, ALICE)).encode() + b'{"model":"chat"}') in (400, 404)
    assert not any(engine.seen for engine in engines)


BODY = b'{"model":"chat"}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + ALICE.encode() + b"\r\n"
PULL = b"POST /api/pull HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
SMUGGLED = {
    "both lengths": HEAD + b"Content-Length: 16\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + PULL,
    "two lengths": HEAD + b"Content-Length: 16\r\nContent-Length: 6\r\n\r\n" + BODY + PULL,
    "a list of lengths": HEAD + b"Content-Length: 16, 6\r\n\r\n" + BODY + PULL,
    "a signed length": HEAD + b"Content-Length: +16\r\n\r\n" + BODY + PULL,
    "an odd coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + PULL,
    "a coding behind a tab": HEAD + b"Transfer-Encoding:\tchunked, identity\r\n\r\n0\r\n\r\n" + PULL,
    "a coding in HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + PULL,
    "a name with a blank": HEAD + b"Content-Length : 16\r\n\r\n" + BODY + PULL,
    "a folded line": HEAD + b"X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 16\r\n\r\n" + BODY + PULL,
    "a bare line feed": HEAD + b"X: y\nTransfer-Encoding: chunked\r\nContent-Length: 16\r\n\r\n" + BODY + PULL,
    "a zero byte": HEAD + b"X: a\0b\r\nContent-Length: 16\r\n\r\n" + BODY + PULL,
    "an absolute target": HEAD.replace(b" /v1", b" http://x/api/pull?/v1") + b"Content-Length: 16\r\n\r\n" + BODY,
    "an upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 16\r\n\r\n" + BODY + PULL,
    "an upgrade to HTTP/2": HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAA\r\n"
    b"Content-Length: 16\r\n\r\n" + BODY + PULL,
    "a tunnel": b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n" + PULL,
    "HTTP/0.9": b"GET /api/pull\r\n",
    "two hosts": HEAD + b"Host: y\r\nContent-Length: 16\r\n\r\n" + BODY + PULL,
    "two keys": HEAD + b"Authorization: Bearer x\r\nContent-Length: 16\r\n\r\n" + BODY,
    "a header that the hop removes": HEAD + b"Connection: authorization\r\nContent-Length: 16\r\n\r\n" + BODY + PULL,
}  # fmt: skip


@pytest.mark.parametrize("raw", SMUGGLED.values(), ids=list(SMUGGLED))
def test_nothing_is_smuggled(gateway: Gateway, engines: List[Engine], raw: bytes) -> None:
    """An engine sees nothing, or the one request that was asked for, with its own key."""
    exchange(gateway, raw)
    seen = [request for engine in engines for request in engine.seen]
    assert [request["path"] for request in seen] in ([], [OPEN])
    assert all(request["headers"]["authorization"] == "Bearer " + ENGINE_KEY for request in seen)
    assert all(request["length"] in (0, 16) for request in seen)


# --- bodies


@pytest.mark.parametrize(
    "body",
    [
        *("", "{", "[]", '"chat"', "null", '{"model":"chat"', '{"model":"chat",}x', '{model:"chat"}', "\ufeff" + '{"model":"chat"}'),
        *('{"model":"chat","model":"tiny"}', '{"model":"chat","Model":"tiny"}', '{"MODEL":"tiny","model":"chat"}'),
        *('{"model":"chat","mod\\u0065l":"tiny"}', '{"mod\\u0065l":"chat"}', '{"model":"ch\\u0061t"}', '{"model":["chat"]}'),
        *('{"model":{"a":"chat"}}', '{"model":1}', '{"model":null}', "{}", '{"messages":[{"model":"chat"}]}'),
    ],
)  # fmt: skip
def test_a_body_that_names_no_model_or_more_than_one(gateway: Gateway, engines: List[Engine], body: str) -> None:
    answer = gateway.ask(body=body.encode())
    assert (answer.status, answer.code) == (400, "bad_request")
    assert not any(engine.seen for engine in engines)


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"chat"}',
        ' \r\n\t{ "model" : "chat" } \n',
        '{"messages":[{"role":"user","content":"say \\"model\\": \\"tiny\\" {[}] \\\\"}],"model":"chat"}',
        '{"tools":[{"parameters":{"properties":{"model":{"type":"string"}}}}],"n":-1.5e+3,"stream":true,"x":null,"model":"chat"}',
        '{"models":"tiny","model":"chat"}',
    ],
)
def test_a_body_that_names_one_model(gateway: Gateway, body: str) -> None:
    assert gateway.ask(body=body.encode()).json["engine"] in ("gpu1", "gpu2")


def test_a_model_with_a_slash_and_the_older_name_of_ollama(gateway: Gateway, engines: List[Engine]) -> None:
    gateway.pools["org/chat"] = [row(engines[0], "vllm@org", key=ENGINE_KEY)]
    gateway.reload()
    assert gateway.ask(body=b'{"model":"org\\/chat"}').json["engine"] == "gpu1"
    assert gateway.ask("GET", "/v1/models/org%2Fchat").json["id"] == "org/chat"
    assert gateway.ask(path="/api/show", body={"name": "tiny"}).json["engine"] == "gpu3"
    assert gateway.ask(path="/api/show", body={"name": "tiny", "model": "big"}).status == 400


def long(size: int, first: bool = False, **more: str) -> bytes:
    """A body of about so many bytes, whose model is named first or last."""
    message = {"messages": [{"role": "user", "content": "x" * size}]}
    parts = [{"model": "chat"}, message] if first else [message, {"model": "chat"}]
    return json.dumps({**parts[0], **more, **parts[1]}).encode()


def test_a_body_longer_than_the_buffer(gateway: Gateway, engines: List[Engine]) -> None:
    """bob may use all models of the servers of chat, alice's friend only one of those of tiny."""
    big = 3 << 20
    assert gateway.ask(body=long(600 << 10)).status == 200, "it fits: the model may stand anywhere"
    assert gateway.ask(body=long(big, first=True), key=BOB).status == 200
    assert max(request["length"] for engine in engines for request in engine.seen) > big
    unseen = gateway.ask(body=long(big))
    assert (unseen.status, unseen.code) == (413, "model_not_seen")
    assert gateway.ask(body=long(big), X_Model="chat").status == 200
    assert gateway.ask(body=long(big), X_Model="tiny", key=BOB).status == 403
    gateway.options["keys"] = [*KEYS, {"name": "eve", "key": EVE, "pools": ["tiny"]}]
    gateway.reload()
    assert gateway.ask(body=long(big), X_Model="tiny", key=EVE).status == 413
    assert gateway.ask(body=long(big), X_Model="tiny").status == 200
    chunked = gateway.ask(body=iter([long(big, first=True)]))
    assert (chunked.status, chunked.code) == (411, "length_required")
    assert gateway.ask(body=iter([long(1000)])).status == 200


def test_bodies_and_headers_that_are_too_long(gateway: Gateway, engines: List[Engine]) -> None:
    raw = HEAD + b"Content-Length: %d\r\n\r\n" % (33 << 20)
    assert status_of(gateway, raw) == 413
    assert gateway.ask(body={"model": "chat"}, X_Long="x" * (20 << 10)).status == 431
    try:
        assert gateway.ask(body={"model": "chat"}, X_Long="x" * (2 << 20)).status in (400, 431)
    except OSError:
        pass  # the connection ended while more was sent than the gateway reads
    assert gateway.ask(body={"model": "chat"}, Content_Encoding="gzip").status == 415
    assert not any(engine.seen for engine in engines)


# --- what is logged


def test_no_key_prompt_or_unknown_word_is_in_the_log(gateway: Gateway) -> None:
    word = "xyzzy-never-logged"
    gateway.chat(messages=[{"role": "user", "content": word}])
    gateway.ask(path="/%s?key=%s" % (word, ALICE), body=word, X_Word=word)
    gateway.chat(word)
    gateway.chat(key=word)
    gateway.ask(body='{"model":"chat","x":"%s"' % word)
    exchange(gateway, ("GET /%s\x01 HTTP/1.1\r\nAuthorization: Bearer %s\r\n\r\n" % (word, ALICE)).encode())
    found = gateway.logged()[-1]
    until(lambda: len(gateway.logged()) >= 6)
    text = gateway.log.read_text()
    assert word not in text and ALICE not in text and BOB not in text and ENGINE_KEY not in text
    served = [line for line in gateway.logged() if line["status"] == 200 and line["pool"] == "chat"][-1]
    assert (served["key"], served["path"], served["client"]) == ("alice", OPEN, "127.0.0.1")
    assert served["server"].startswith("gpu") and served["bytes_in"] > 0 and found


def test_haproxy_says_when_its_certificate_ends(tls: Gateway) -> None:
    """The one in use: a file that was renewed without a reload makes no difference."""
    file = tls.options["tls_certificate"]
    said = subprocess.run(["openssl", "x509", "-noout", "-enddate", "-in", file], capture_output=True, text=True).stdout
    ends = runtime.certificate_ends(file, tls.socket)
    assert ends == ssl.cert_time_to_seconds(said.strip().partition("=")[2]) and 0 < ends - time.time() < 3 * 86400
    Path(file).write_text("renewed")
    assert runtime.certificate_ends(file, tls.socket) == ends
    assert runtime.certificate_ends(file + ".other", tls.socket) is None
