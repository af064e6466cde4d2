# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Middleware of a vLLM server: without an API key, only the open paths and CORS' OPTIONS are answered.

vLLM itself asks for the key only on paths that begin with /v1; since 0.22 also /v2 and /inference, since 0.27 /cohere.
0.32.0 leaves open /invocations, which generates, /tokenize, /detokenize, /generative_scoring, /scale_elastic_ep,
/metrics, /load, /docs and others.

With GPUFLEET_LOCAL_ADMIN=1, other hosts reach only the paths that serve, whatever their key.

vLLM itself knows one key; a request with a client's key is passed on with that one.

The Ansible collection gpufleet.inference writes this file for an instance, and replaces it on its next run.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os

SERVE = (
    *("/v1", "/v2", "/inference", "/cohere", "/invocations", "/tokenize", "/detokenize", "/pooling", "/classify"),
    *("/score", "/rerank", "/generative_scoring", "/health", "/ping", "/metrics", "/load", "/version"),
)
"""What is not below these paths controls the server, or may do so in a later version."""


def _hash(text):
    return hashlib.sha256(text.encode()).digest()


def _path(scope):
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if path.startswith(root) else path


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app):
        self.app = app
        self.own = ("Bearer " + os.environ["VLLM_API_KEY"]).encode()
        keys = [os.environ["VLLM_API_KEY"], *os.environ.get("GPUFLEET_CLIENT_KEYS", "").split()]
        self.keys = [_hash("Bearer " + key) for key in keys]
        self.local_admin = os.environ.get("GPUFLEET_LOCAL_ADMIN") == "1"
        self.open = set(filter(None, os.environ.get("GPUFLEET_OPEN_PATHS", "").split(",")))

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket") or self._open(scope):
            return await self.app(scope, receive, send)
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if self._allowed(given[0] if given else b"") and self._may_reach(scope):
            return await self.app(dict(scope, headers=self._with_own_key(scope["headers"])), receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        body = b'{"error":"Unauthorized"}'
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _open(self, scope):
        return scope.get("method") == "OPTIONS" or _path(scope) in self.open

    def _may_reach(self, scope):
        path, peer = _path(scope), (scope.get("client") or ("0.0.0.0", 0))[0]
        if not self.local_admin or any(path == one or path.startswith(one + "/") for one in SERVE):
            return True
        try:
            # who connects from this host to an address of it comes from that address
            return peer == (scope.get("server") or ("",))[0] or ipaddress.ip_address(peer).is_loopback
        except ValueError:
            return False

    def _allowed(self, given):
        scheme, _blank, key = given.decode("latin-1").partition(" ")
        said = _hash(scheme.capitalize() + " " + key)
        return any(hmac.compare_digest(said, key) for key in self.keys)

    def _with_own_key(self, headers):
        others = [(name, value) for name, value in headers if name != b"authorization"]
        return [*others, (b"authorization", self.own)]
