# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gateway counts: tokens of answers in the log, requests of keys for Prometheus. A real HAProxy."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any, Dict

import pytest
from gateways import ALICE, BOB, EVE, KEYS, Gateway, asked
from waiting import until

USAGE = {"prompt_tokens": 12, "completion_tokens": 345, "total_tokens": 357}
CHAT = {"choices": [{"message": {"content": 'say "completion_tokens": 9 {"usage": 1}'}}], "usage": USAGE, "x": None}
OLLAMA = {"response": "x" * 9000, "done": True, "prompt_eval_count": 7, "eval_duration": 5, "eval_count": 8}
STREAM = "data: %s\n\ndata: [DONE]\n\n" % json.dumps({"choices": [], "usage": USAGE})


def tokens(gateway: Gateway, **body: Any) -> Any:
    """What the log says of the tokens of one answer."""
    answer = gateway.chat(**body)
    number = answer.headers["x-request-id"]
    found = until(lambda: [line for line in gateway.logged() if line["id"] == number])
    return found[0].get("tokens_in"), found[0].get("tokens_out")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"text": json.dumps(CHAT)}, (12, 345)),
        ({"text": json.dumps(CHAT, indent=1)}, (12, 345)),
        ({"text": json.dumps(OLLAMA)}, (7, 8)),
        ({"text": json.dumps({"output": [], "usage": {"input_tokens": 3, "output_tokens": 0}})}, (3, 0)),
        ({"text": json.dumps({"data": [{"embedding": [0.5] * 4000}], "usage": {"prompt_tokens": 6}})}, (6, None)),
        ({"pieces": 3, "last": STREAM}, (12, 345)),
        ({"pieces": 3}, (None, None)),
        ({"text": json.dumps(dict(CHAT, usage=None))}, (None, None)),
        ({"text": '{"usage": {"prompt_tokens": 007, "completion_tokens": %s}}' % ("9" * 30)}, (7, None)),
        ({"model": "nosuch"}, (None, None)),
    ],
    ids=["chat", "indented", "ollama", "responses", "embeddings", "stream", "no usage", "nothing", "no numbers", "404"],
)
def test_the_tokens_of_an_answer_are_logged(gateway: Gateway, body: Dict[str, Any], expected: Any) -> None:
    assert tokens(gateway, **body) == expected


def test_an_event_does_not_wait_for_the_tokens(gateway: Gateway, engines: Any) -> None:
    for engine in engines:
        engine.stepwise = True
    answer = asked(gateway, pieces=1, last=STREAM)
    for engine in engines:
        engine.step.release()
    assert b'"piece": 0' in answer.readline()
    for engine in engines:
        engine.step.release()
    assert STREAM.encode() in answer.read()


def figures(gateway: Gateway) -> Dict[str, Dict[str, int]]:
    """Name to key to value, as the status port prints them."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.options["status_port"], timeout=60)
    connection.request("GET", "/keys")
    found: Dict[str, Dict[str, int]] = {}
    for line in connection.getresponse().read().decode().splitlines():
        if not line.startswith("# TYPE gpufleet_key_"):
            name, key, value = re.fullmatch(r'gpufleet_key_(\w+)\{key="([^"]+)"\} (\d+)', line).groups()  # type: ignore
            found.setdefault(name, {})[key] = int(value)
    connection.close()
    return found


def test_the_requests_of_each_key(gateway: Gateway) -> None:
    gateway.options["keys"] = [*KEYS, {"name": "eve", "key": EVE, "pools": ["chat"], "rate": 2}]
    gateway.reload()
    assert [gateway.chat(key=EVE).status for _ in range(4)] == [200, 200, 429, 429]
    assert [gateway.chat("tiny", key=BOB).status, gateway.ask("GET", "/v1/models", key=BOB).status] == [403, 200]
    gateway.chat(key="wrong")
    found = figures(gateway)
    assert found["requests_total"] == {"eve": 4, "bob": 2} and found["rejected_total"] == {"eve": 2, "bob": 1}
    assert gateway.chat(key=ALICE).status == 200 and figures(gateway)["rejected_total"]["alice"] == 0
    assert until(lambda: figures(gateway)["requests"] == {"eve": 0, "bob": 0, "alice": 0})


def test_only_the_named_hosts_read_the_figures(gateway: Gateway) -> None:
    def status(source: str) -> int:
        address = ("127.0.0.1", gateway.options["status_port"])
        connection = http.client.HTTPConnection(*address, timeout=60, source_address=(source, 0))
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().status
        except (http.client.HTTPException, OSError):
            return 0
        finally:
            connection.close()

    assert status("127.0.0.3") == 200, "this test tells hosts apart by their address"
    gateway.options["status_clients"] = ["192.0.2.1", "127.0.0.2/32"]
    gateway.reload()
    assert until(lambda: status("127.0.0.3") == 0)
    assert (status("127.0.0.1"), status("127.0.0.2")) == (200, 200)
