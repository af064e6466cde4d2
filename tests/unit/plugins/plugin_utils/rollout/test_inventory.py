# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pools, and hosts that share a model, as an inventory declares them."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import ENGINES
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.inventory import GATEWAYS, Inventory


def test_pools_and_shared_models():
    big = {"vllm_instances": [{"name": "big", "model": "big", "hosts": ["b", "c"]}, {"name": "own", "model": "own"}]}
    hostvars = {"a": {"ollama_models": ["chat"]}, "b": big, "c": big, "d": {}, "gw": {}}
    found = Inventory({"ollama": ["a", "d"], "vllm": ["b", "c"], "gateway": ["gw"]}, hostvars)
    assert found.hosts("ollama", "vllm", "ollama", "llama_server") == ["a", "d", "b", "c"]
    assert found.served(ENGINES) == {
        "chat": {"a": {"ollama"}},
        "ollama": {"d": {"ollama"}},
        "big": {"b": {"vllm"}},
        "own": {"b": {"vllm"}, "c": {"vllm"}},
        GATEWAYS: {"gw": {"gateway"}},
    }
    assert found.together() == [["b", "c"], ["b", "c"]]
    assert Inventory({}, {}).served(ENGINES) == {} and Inventory({}, {}).together() == []
