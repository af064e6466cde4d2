# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's agent has to know, from the inventory."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleLookupError

from ansible_collections.gpufleet.inference.plugins.lookup.gateway_agent import LookupModule

HOSTVARS = {
    "gpu1": {
        "ansible_host": "192.0.2.21",
        "ollama_models": ["chat", "code"],
        "ollama_host": "0.0.0.0:11434",
        "ollama_num_parallel": 4,
        "vllm_instances": [{"name": "big", "model": "m", "host": "192.0.2.21", "port": 8001, "api_key": "sesame"}],
    },
    "gpu2": {"ollama_models": ["chat"], "ollama_host": "0.0.0.0"},
    "gw1": {"gateway_address": "192.0.2.10", "ansible_host": "198.51.100.1"},
    "gw2": {},
}
GROUPS = {"ollama": ["gpu1", "gpu2"], "vllm": ["gpu1"], "gateway": ["gw1", "gw2"]}


def ask(host, hostvars=HOSTVARS, groups=GROUPS):
    return LookupModule().run([], {"hostvars": hostvars, "groups": groups, "inventory_hostname": host})


def test_each_service_once_and_no_key():
    (found,) = ask("gpu1")
    ollama = {"unit": "ollama", "engine": "ollama", "address": "192.0.2.21", "port": 11434, "tls": False}
    vllm = {"unit": "vllm@big", "engine": "vllm", "address": "192.0.2.21", "port": 8001, "tls": False}
    assert found == {
        "services": [dict(ollama, max_concurrent=4), dict(vllm, max_concurrent=0)],
        "gateways": ["192.0.2.10", "gw2"],
    }


def test_a_host_without_services_and_an_inventory_without_gateways():
    assert ask("gw1", groups={}) == [{"services": [], "gateways": []}]


def test_what_cannot_be_read():
    with pytest.raises(AnsibleLookupError, match="gateway_agent: a service of the inventory cannot be read"):
        ask("gpu1", {**HOSTVARS, "gpu1": {"ollama_models": [{"tag": "x"}]}})
