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
        "state": "present",
        "services": [
            dict(ollama, max_concurrent=4, visible_devices=None),
            dict(vllm, max_concurrent=0, visible_devices="all"),
        ],
        "gateways": ["192.0.2.10", "gw2"],
        "local_gateway": "",
        "port": 8405,
    }


@pytest.mark.parametrize("wish", ["all", {"count": 2}, [0, 1], "none", None])
def test_the_gpus_are_those_declared(wish):
    hostvars = {**HOSTVARS, "gpu2": {"ollama_models": ["chat"], "ollama_host": "0.0.0.0"}}
    if wish is not None:
        hostvars["gpu2"]["ollama_visible_devices"] = wish
    assert [service["visible_devices"] for service in ask("gpu2", hostvars)[0]["services"]] == [wish]


@pytest.mark.parametrize(("wish", "gpus"), [("all", "all"), ([0, 1], [0, 1]), (None, "all")])
def test_vllm_has_all_gpus_unless_told_otherwise(wish, gpus):
    instance = dict(HOSTVARS["gpu1"]["vllm_instances"][0], **({"visible_devices": wish} if wish else {}))
    hostvars = {**HOSTVARS, "gpu1": {**HOSTVARS["gpu1"], "vllm_instances": [instance]}}
    found = ask("gpu1", hostvars)[0]["services"]
    assert [one["visible_devices"] for one in found if one["engine"] == "vllm"] == [gpus]


@pytest.mark.parametrize("groups", [{}, {"gateway": []}, {"ollama": ["gpu1"]}])
def test_without_gateways_there_is_no_agent(groups):
    (found,) = ask("gpu1", {"gpu1": {"ollama_models": [{"tag": "wrong"}]}}, groups)
    assert (found["state"], found["services"], found["gateways"]) == ("absent", [], [])


def test_a_host_without_services():
    (found,) = ask("gw1")
    assert (found["state"], found["services"], found["local_gateway"]) == ("present", [], "192.0.2.10")


def test_only_a_gateway_reaches_what_listens_on_loopback():
    groups = {"ollama": ["gpu2", "gw2"], "gateway": ["gw1", "gw2"]}
    hostvars = {**HOSTVARS, "gpu2": {"ollama_models": ["chat"]}, "gw2": {"ollama_models": ["chat"]}}
    assert ask("gpu2", hostvars, groups)[0]["services"] == []
    (found,) = ask("gw2", hostvars, groups)
    assert [service["address"] for service in found["services"]] == ["127.0.0.1"]
    assert found["local_gateway"] == "gw2"


def test_the_port_is_that_of_the_gateways():
    def with_ports(*ports):
        given = {name: {"gateway_agent_port": port} for name, port in zip(("gw1", "gw2"), ports)}
        return {**HOSTVARS, "gpu1": {**HOSTVARS["gpu1"], "gateway_agent_port": 1}, **given}

    assert ask("gpu1", with_ports(8500, "8500"))[0]["port"] == 8500
    (found,) = ask("gpu1", with_ports(0, 0))
    assert (found["state"], found["services"]) == ("absent", [])
    with pytest.raises(AnsibleLookupError, match="gateway_agent_port is 8500 on gw1, 0 on gw2; expected the same port"):
        ask("gpu1", with_ports(8500, 0))


def test_other_hosts_are_not_even_read():
    class Untouched(dict):
        def get(self, *_words):
            raise AssertionError

    assert ask("gpu1", {**HOSTVARS, "gpu2": Untouched()})[0]["services"]


def test_what_cannot_be_read():
    with pytest.raises(AnsibleLookupError, match="gateway_agent: a service of the inventory cannot be read"):
        ask("gpu1", {**HOSTVARS, "gpu1": {"ollama_models": [{"tag": "x"}]}})
