# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets in, and where a request goes: the generated configuration in a real HAProxy."""

from __future__ import annotations

import json
from typing import Any, List

import pytest
from engines import Engine
from gateways import ALICE, BOB, ENGINE_KEY, Gateway


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
