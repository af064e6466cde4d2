# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The middleware that asks for the key on every path, run as vLLM would."""

from __future__ import annotations

import asyncio

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import guard


@pytest.fixture
def ask(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "open-sesame")
    monkeypatch.setenv("GPUFLEET_OPEN_PATHS", "/health,/metrics")

    def ask(path, key=None, method="GET", kind="http", **scope):
        sent, through = [], []

        async def app(scope, receive, send):
            through.append(scope["path"])
            ask.headers = scope["headers"]

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"x")] + ([(b"authorization", key.encode())] if key else [])
        scope = {"type": kind, "method": method, "path": path, "headers": headers, **scope}
        asyncio.run(guard.Guard(app)(scope, None, send))
        return through, sent

    return ask


@pytest.mark.parametrize(
    "path", ["/v1/models", "/invocations", "/tokenize", "/", "/health/", "/metrics/x", "/HEALTH", "//health"]
)
def test_without_the_key_nothing_is_answered(ask, path):
    through, sent = ask(path)
    assert through == []
    headers = [(b"content-type", b"application/json"), (b"content-length", b"24")]
    assert sent == [
        {"type": "http.response.start", "status": 401, "headers": headers},
        {"type": "http.response.body", "body": b'{"error":"Unauthorized"}'},  # as vLLM's own
    ]


@pytest.mark.parametrize(
    "key", ["Bearer open-sesam", "Bearer open-sesame2", "open-sesame", "Basic open-sesame", "Bearer", " "]
)
def test_a_wrong_key(ask, key):
    assert ask("/v1/models", key)[0] == []


def test_what_goes_through(ask):
    assert ask("/v1/models", "Bearer open-sesame") == (["/v1/models"], [])
    assert ask("/invocations", "bearer open-sesame")[0]
    assert ask("/health")[0] and ask("/metrics")[0]
    assert ask("/v1/models", method="OPTIONS")[0], "browsers ask without a key"
    assert ask("/anything", kind="lifespan")[0]
    assert ask("/team/health", root_path="/team")[0]
    assert not ask("/them/health", root_path="/team")[0]


def test_the_keys_of_clients(ask, monkeypatch):
    """vLLM itself knows its own key alone."""
    monkeypatch.setenv("GPUFLEET_CLIENT_KEYS", "first-key second-key")
    for key in ("open-sesame", "first-key", "second-key"):
        assert ask("/v1/models", "Bearer " + key)[0]
        assert ask.headers == [(b"host", b"x"), (b"authorization", b"Bearer open-sesame")]
    for key in ("first-key second-key", "first", "", "second-key "):
        assert not ask("/v1/models", "Bearer " + key)[0]


def test_a_websocket_is_closed(ask):
    through, sent = ask("/v1/realtime", kind="websocket", method=None)
    assert through == [] and sent == [{"type": "websocket.close", "code": 1008}]
    assert ask("/v1/realtime", "Bearer open-sesame", kind="websocket", method=None)[0]


def test_the_host_reaches_a_server_that_listens_on_its_address(ask, monkeypatch):
    monkeypatch.setenv("GPUFLEET_LOCAL_ADMIN", "1")
    here = {"client": ("10.0.0.5", 4711), "server": ("10.0.0.5", 8000)}
    assert ask("/sleep", "Bearer open-sesame", **here)[0] == ["/sleep"]
    assert ask("/sleep", "Bearer open-sesame", **dict(here, client=("10.0.0.9", 1)))[0] == []


@pytest.mark.parametrize(
    ("path", "peer", "through"),
    [
        ("/sleep", "127.0.0.1", True),
        ("/sleep", "::1", True),
        ("/sleep", "10.0.0.9", False),
        ("/sleep", None, False),
        ("/sleep", "unix", False),
        ("/is_sleeping", "10.0.0.9", False),
        ("/what_a_later_version_adds", "10.0.0.9", False),
        ("/v1x", "10.0.0.9", False),
        ("/v1/chat/completions", "10.0.0.9", True),
        ("/metrics", "10.0.0.9", True),
        ("/health", "10.0.0.9", True),
    ],
)
def test_other_hosts_do_not_reach_what_controls_the_server(ask, monkeypatch, path, peer, through):
    client = {"client": (peer, 1) if peer else None}
    assert ask(path, "Bearer open-sesame", **client)[0] == [path], "without the paths that control it nothing is closed"
    monkeypatch.setenv("GPUFLEET_LOCAL_ADMIN", "1")
    assert ask(path, "Bearer open-sesame", **client)[0] == ([path] if through else [])
