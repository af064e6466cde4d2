# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where Open WebUI gets its models from."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.plugin_utils.open_webui import connections, servers

GPU1 = {"ansible_host": "192.0.2.1", "ollama_models": ["a", "b"], "ollama_host": "0.0.0.0"}
GPU2 = {
    "ansible_host": "192.0.2.2",
    "vllm_instances": [{"name": "chat", "model": "c", "port": 8000, "host": "0.0.0.0", "api_key": "own"}],
}
GATEWAY = {"ansible_host": "192.0.2.9", "gateway_tls_certificate": "/x.pem"}
HOSTS = {"gpu1": GPU1, "gpu2": GPU2, "gw": GATEWAY}
GROUPS = {"ollama": ["gpu1"], "vllm": ["gpu2"]}


def test_the_services_where_there_is_no_gateway() -> None:
    assert connections(HOSTS, GROUPS) == [
        {"url": "http://192.0.2.1:11434", "api": "ollama"},
        {"url": "http://192.0.2.2:8000", "api": "openai", "key": "own"},
    ]


def test_the_gateway_with_its_key() -> None:
    groups = {**GROUPS, "gateway": ["gw"]}
    assert connections(HOSTS, groups, "chat", "k") == [{"url": "https://192.0.2.9:8443", "api": "openai", "key": "k"}]
    assert connections(HOSTS, groups, "gw", "k")[0]["url"] == "https://127.0.0.1:8443"


def test_where_a_gateway_reaches_the_page() -> None:
    hosts = {
        "a": {"ansible_host": "192.0.2.1", "open_webui_host": "0.0.0.0"},
        "b": {"ansible_host": "192.0.2.2", "open_webui_host": "192.0.2.7", "open_webui_port": 80},
        "c": {},
    }
    there = [{"host": "a", "address": "192.0.2.1", "port": 8080}, {"host": "b", "address": "192.0.2.7", "port": 80}]
    assert servers(hosts, {"open_webui": ["a", "b", "c"]}, "gw") == there
    own = {"host": "c", "address": "127.0.0.1", "port": 8080}
    assert servers(hosts, {"open_webui": ["a", "b", "c"]}, "c") == [*there, own]
