# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declarations of engines → the servers of each model."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import pools


def servers(group: str, gateway: str = "", **variables: Any) -> Dict[str, List[Tuple[Any, ...]]]:
    """Model to ``(unit, address, port, api, max_concurrent)`` of one host."""
    found, _left_out = pools({"gpu1": {"ansible_host": "192.0.2.1", **variables}}, {group: ["gpu1"]}, gateway)
    keys = ("unit", "address", "port", "api", "max_concurrent")
    return {model: [tuple(row[key] for key in keys) for row in rows] for model, rows in found.items()}


def test_ollama() -> None:
    models = [{"name": "m8b"}, "m32b", {"name": "old", "state": "absent"}, {"name": "warm", "state": "loaded"}]
    row = ("ollama", "192.0.2.1", 11434, "both", 1)
    assert servers("ollama", ollama_host="0.0.0.0", ollama_models=models) == {
        "m8b": [row],
        "m32b": [row],
        "warm": [row],
    }
    found = servers(
        "ollama", ollama_host=":8080", ollama_models=["m"], ollama_num_parallel=4, gateway_address="192.0.2.9"
    )
    assert found == {"m": [("ollama", "192.0.2.9", 8080, "both", 4)]}
    assert servers("ollama", ollama_host="192.0.2.7", ollama_models=["m"])["m"][0][1] == "192.0.2.7"
    assert servers("ollama", ollama_host="0.0.0.0", ollama_models=["m"], ollama_state="absent") == {}


def test_instances_of_ollama() -> None:
    one, two = {"name": "a", "host": "0.0.0.0:11434"}, {"name": "b", "host": "0.0.0.0:11435"}
    assert [row[0] for row in servers("ollama", ollama_instances=[one, two], ollama_models=["m"])["m"]] == ["ollama@a"]
    named = {"ollama_instances": [one, two], "ollama_models": ["m"], "ollama_models_unit": "ollama@b"}
    assert [row[0] for row in servers("ollama", **named)["m"]] == ["ollama@b"]
    both = servers("ollama", ollama_instances=[one, two], ollama_models=["m"], ollama_models_dir="/srv/models")
    assert [row[2] for row in both["m"]] == [11434, 11435]


def test_vllm() -> None:
    instances = [
        {"name": "chat", "model": "org/chat", "served_model_name": ["chat", "default"], "max_num_seqs": 64},
        {"name": "embed", "model": "org/embed", "port": 8001, "lora_adapters": {"law": "/srv/law"}},
        {"name": "old", "model": "org/old", "state": "absent"},
        {"name": "night", "model": "org/night", "port": 8004, "state": "asleep"},
        {"name": "wide", "model": "org/wide", "port": 8002, "hosts": ["gpu0", "gpu1"]},
        {"name": "first", "model": "org/first", "port": 8003, "hosts": ["gpu1", "gpu2"]},
    ]
    found = servers("vllm", vllm_instances=instances, vllm_host="0.0.0.0")
    assert found["chat"] == found["default"] == [("vllm@chat", "192.0.2.1", 8000, "openai", 64)]
    assert found["org/embed"] == [("vllm@embed", "192.0.2.1", 8001, "openai", None)]
    assert found["law"] == found["org/embed"], "an adapter is requested as its model is"
    assert sorted(found) == ["chat", "default", "law", "org/embed", "org/first", "org/night"]
    assert servers("vllm") == {}


def test_llama_server() -> None:
    instances = [
        {"name": "chat", "model": "org/chat", "parallel": 4},
        {"name": "embed", "model": "/srv/e.gguf", "port": 8081, "alias": "embed,e"},
        {"name": "plain", "model": "/srv/p.gguf", "port": 8082},
    ]
    found = servers(
        "llama_server",
        llama_server_host="0.0.0.0",
        llama_server_instances=instances,
        llama_server_models=[{"name": "org/chat"}],
    )
    assert sorted(found) == ["e", "embed", "org/chat", "plain"]
    assert found["org/chat"] == [("llama-server@chat", "192.0.2.1", 8080, "openai", 4)]
    single = servers("llama_server", llama_server_host="0.0.0.0", llama_server_model="/srv/m.gguf")
    assert single == {"llama-server": [("llama-server", "192.0.2.1", 8080, "openai", None)]}


def test_keys_and_tls_of_engines() -> None:
    variables = {"vllm_instances": [{"name": "a", "model": "m"}], "vllm_host": "::", "vllm_api_key": "sesame"}
    found, _left_out = pools({"gpu1": {**variables, "vllm_ssl_certfile": "/c"}}, {"vllm": ["gpu1"]})
    (row,) = found["m"]
    assert (row["key"], row["tls"], row["address"], row["engine"]) == ("sesame", True, "gpu1", "vllm")


@pytest.mark.parametrize("gateway", ["", "gpu2"])
def test_a_service_on_loopback_is_left_out(gateway: str) -> None:
    found, left_out = pools({"gpu1": {"ollama_models": ["m"]}}, {"ollama": ["gpu1"]}, gateway)
    assert found == {} and left_out == ["ollama on gpu1 listens on 127.0.0.1, where no gateway reaches it"]
    assert servers("ollama", "gpu1", ollama_models=["m"])["m"][0][1] == "127.0.0.1", "of its own host"


def test_several_hosts_and_engines_of_one_model() -> None:
    hostvars = {
        "gpu1": {"ollama_host": "0.0.0.0", "ollama_models": ["m"]},
        "gpu2": {"ollama_host": "0.0.0.0", "ollama_models": ["m"]},
        "gpu3": {"vllm_host": "0.0.0.0", "vllm_instances": [{"name": "a", "model": "/m", "served_model_name": ["m"]}]},
    }
    found, left_out = pools(hostvars, {"ollama": ["gpu1", "gpu2"], "vllm": ["gpu3"], "gateway": ["gpu9"]})
    assert [row["host"] for row in found["m"]] == ["gpu1", "gpu2", "gpu3"] and left_out == []
