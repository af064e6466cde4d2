# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declarations of engines and gateways → what a Prometheus reads."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from ansible_collections.gpufleet.inference.plugins.plugin_utils.scrape_targets import Found, targets

VLLM = {"vllm_host": "::", "vllm_instances": [{"name": "a", "model": "m", "served_model_name": ["m"]}]}
LLAMA = {"llama_server_host": "192.0.2.7", "llama_server_port": 8090}


def found(group: str, asking: str = "watch", node: int = 0, gpu: int = 0, **variables: Any) -> Found:
    hostvars = {"gpu1": {"ansible_host": "192.0.2.1", **variables}, "watch": {"ansible_host": "192.0.2.2"}}
    return targets(hostvars, {group: ["gpu1"], "monitoring": ["watch"]}, asking, {"node": node, "gpu": gpu})


def where(rows: List[Dict[str, Any]]) -> List[Tuple[Any, ...]]:
    return [(row["job"], row["host"], row["address"], row["port"], row["labels"].get("unit")) for row in rows]


def test_engines_that_export_metrics() -> None:
    assert where(found("vllm", **VLLM).targets) == [("vllm", "gpu1", "192.0.2.1", 8000, "vllm@a")]
    assert where(found("llama_server", **LLAMA).targets) == [
        ("llama_server", "gpu1", "192.0.2.7", 8090, "llama-server")
    ]
    assert found("ollama", ollama_host="0.0.0.0").targets == [], "Ollama exports none"
    assert found("vllm", vllm_ssl_certfile="/a.pem", **VLLM).targets[0]["tls"]


def test_a_key_is_sent_only_where_it_is_asked_for() -> None:
    assert found("vllm", vllm_api_key="sesame", **VLLM).keys == {}, "vLLM asks for it below /v1 alone"
    guarded = {"vllm_api_key": "sesame", "vllm_guard_all_paths": True, **VLLM}
    assert found("vllm", **guarded).keys == {"key-1": "sesame"}
    assert found("vllm", vllm_open_paths=["/health", "/metrics"], **guarded).keys == {}
    two = [{"name": "a", "api_key": "one"}, {"name": "b", "port": 8091}, {"name": "c", "port": 8092, "api_key": "two"}]
    several = found("llama_server", llama_server_host="::", llama_server_api_key="one", llama_server_instances=two)
    assert [row["key"] for row in several.targets] == ["key-1", "key-1", "key-2"]
    assert several.keys == {"key-1": "one", "key-2": "two"}


def test_loopback_is_read_from_the_same_host_alone() -> None:
    far = found("vllm", **dict(VLLM, vllm_host="127.0.0.1"))
    assert far.targets == []
    assert far.left_out == ["vllm@a on gpu1 listens on 127.0.0.1, where this Prometheus does not reach it"]
    near = found("vllm", asking="gpu1", **dict(VLLM, vllm_host="127.0.0.1"))
    assert where(near.targets) == [("vllm", "gpu1", "127.0.0.1", 8000, "vllm@a")] and near.left_out == []


def test_gateways_show_their_figures_on_loopback() -> None:
    assert where(found("gateway", asking="gpu1").targets) == [("gateway", "gpu1", "127.0.0.1", 8404, None)]
    assert found("gateway").left_out == [
        "the status port of the gateway on gpu1 listens on 127.0.0.1, where this Prometheus does not reach it"
    ]
    opened = found("gateway", gateway_status_clients=["192.0.2.2"], gateway_status_port=8500)
    assert where(opened.targets) == [("gateway", "gpu1", "192.0.2.1", 8500, None)] and opened.left_out == []
    assert found("gateway", gateway_status_port=0) == Found([], {}, [])


def test_exporters_of_hosts_and_of_gpus() -> None:
    assert where(found("ollama", node=9100, gpu=9400).targets) == [
        ("node", "gpu1", "192.0.2.1", 9100, None),
        ("node", "watch", "127.0.0.1", 9100, None),
        ("gpu", "gpu1", "192.0.2.1", 9400, None),
    ]
