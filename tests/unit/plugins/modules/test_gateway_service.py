# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: its options, what it hides, what it refuses, and that check mode writes nothing."""

from __future__ import annotations

import time

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import service
from ansible_collections.gpufleet.inference.plugins.modules import gateway_service

KEY, ENGINE_KEY = "sesame-open-4711-and-more", "engine-sesame-4711"
MANY = ["model-%03d" % number for number in range(300)]
ROW = {"host": "gpu1", "address": "192.0.2.1", "port": 8000, "engine": "vllm", "unit": "vllm@chat", "api": "openai"}


def test_no_key_is_shown(run_module, monkeypatch):
    def converge(params, check_mode, warn):
        assert check_mode
        return {"changed": True, "msg": "%s %s" % (params["keys"][0]["key"], params["engine_keys"]["gpu1 vllm@chat"])}

    monkeypatch.setattr(service, "converge", converge)
    given = {"keys": [{"name": "a", "key": KEY}], "pools": {"m": [ROW]}}
    given["engine_keys"] = {"gpu1 vllm@chat": ENGINE_KEY}
    result = run_module(gateway_service.main, given, check=True)
    assert result["changed"] and KEY not in str(result) and ENGINE_KEY not in str(result)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"host": "0.0.0.0"}, "tls_certificate"),
        ({"host": "a b"}, "is not an address"),
        ({"tls_certificate": "/no/such.pem"}, "there is no file /no/such.pem"),
        ({"redirect_port": 80}, "no https"),
        ({"status_clients": ["watch }"]}, "status_clients: 'watch }' is not an IPv4 address"),
        ({"keys": [{"name": "a"}]}, "has neither"),
        ({"keys": [{"name": "a b", "key": KEY}]}, "is not a name"),
        ({"keys": [{"name": "a", "key": "short"}]}, "less than 20 characters"),
        ({"keys": [{"name": "a", "key": KEY, "sha256": "0" * 64}]}, "has both"),
        ({"keys": [{"name": "a", "sha256": "abc"}]}, "64 lower-case"),
        ({"keys": [{"name": "a", "key": KEY, "expires": "soon"}]}, "expires of a"),
        ({"keys": [{"name": "a", "key": KEY, "pools": ["m", "n"]}], "pools": {"m": [ROW]}}, "may use n, which no host"),
        ({"keys": [{"name": "a", "key": KEY}, {"name": "b", "key": KEY}]}, "b is the same key as a"),
        ({"pools": {"a b": [ROW]}}, "is not a valid model name"),
        ({"pools": {"m": [dict(ROW, host='g"1')]}}, "a server of m has the host 'g\"1'; expected a name"),
        ({"pools": {"m": [{name: ROW[name] for name in ROW if name != "host"}]}}, "has the host None; expected a name"),
        ({"pools": {"m": [dict(ROW, port="http")]}}, "has the port 'http'; expected a number of at least 1"),
        ({"pools": {"m": [dict(ROW, port=0)]}}, "has the port 0"),
        ({"pools": {"m": [dict(ROW, max_concurrent=-1)]}}, "has the max_concurrent -1"),
        ({"pools": {"m": [dict(ROW, engine="tgi")]}}, "'tgi'; expected one of ollama, vllm, llama_server"),
        ({"pools": {"m": [dict(ROW, api="http")]}}, "'http'; expected one of openai, ollama, both"),
        ({"pools": {"m": ["gpu1"]}}, "a server of m is 'gpu1'; expected a dictionary"),
        ({"pools": {"m": "gpu1"}}, "m has no list of servers"),
        ({"pools": {"m": []}}, "m has no list of servers"),
        ({"pools": {"m": [ROW]}, "affinity": ["n"]}, "affinity: no host serves n; the models are m"),
        (
            {"pools": dict.fromkeys(MANY, [ROW]), "keys": [{"name": "a", "key": KEY, "pools": ["*"]}]},
            "of the models of a",
        ),
        ({"pools": {"m": [ROW, dict(ROW, host="b")]}, "engine_keys": {"b vllm@chat": KEY}}, "different api keys"),
        ({"nosuch": 1}, "nosuch"),
    ],
)
def test_what_is_refused(run_module, given, words):
    result = run_module(gateway_service.main, given)
    assert result["failed"] and not result.get("changed") and words in result["msg"]
    assert KEY not in str(result)


@pytest.mark.parametrize(("days", "said"), [(13, "in 13.0 days: renew it"), (-3, "ended on "), (15, "")])
def test_a_certificate_that_ends_soon_is_a_warning(monkeypatch, days, said):
    monkeypatch.setattr(service.runtime, "certificate_ends", lambda file, path: int(time.time()) + days * 86400 + 60)
    warnings = list(service._expiry(service._certificates("/etc/gateway.pem", service.haproxy.Place())))
    assert len(warnings) == bool(said) and all("/etc/gateway.pem" in one and said in one for one in warnings)
    assert all(("ends on " in one) != (days < 0) and "-" not in one.partition("UTC")[2] for one in warnings)
    assert service._certificates(None, service.haproxy.Place()) == {}


def test_a_gateway_that_does_not_run_has_no_certificate():
    assert service._certificates("/etc/gateway.pem", service.haproxy.Place(run="/no/such")) == {}
