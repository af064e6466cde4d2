# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup as a playbook has it."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleError

from ansible_collections.gpufleet.inference.plugins.lookup import gateway_pools


class Lookup(gateway_pools.LookupModule):
    def set_options(self, task_keys=None, var_options=None, direct=None):
        self.given = direct

    def get_option(self, option, hostvars=None):
        return self.given.get(option, False)


def run(monkeypatch, keys=False, **variables):
    warnings = []
    monkeypatch.setattr(gateway_pools.display, "warning", warnings.append)
    hostvars = {"gpu1": {"ollama_models": ["m"], **variables}}
    groups = {"ollama": ["gpu1"], "vllm": ["gpu1"]}
    return Lookup().run([], {"hostvars": hostvars, "groups": groups}, keys=keys), warnings


def test_one_dictionary_of_models(monkeypatch):
    ((found,), warnings) = run(monkeypatch, ollama_host="0.0.0.0")
    assert [row["host"] for row in found["m"]] == ["gpu1"] and warnings == []


@pytest.mark.parametrize(("keys", "found"), [(False, [None]), (True, ["sesame"])])
def test_the_keys_of_engines_come_on_request_only(monkeypatch, keys, found):
    vllm = {"vllm_instances": [{"name": "a", "model": "m"}], "vllm_host": "::", "vllm_api_key": "sesame"}
    ((models,), _warnings) = run(monkeypatch, keys, ollama_state="absent", **vllm)
    assert [row.get("key") for row in models["m"]] == found and ("sesame" in str(models)) == keys


def test_what_is_left_out_is_warned_of(monkeypatch):
    ((found,), warnings) = run(monkeypatch)
    assert found == {} and warnings == [
        "gateway_pools: ollama on gpu1 listens on 127.0.0.1, where no gateway reaches it"
    ]


def test_a_service_that_cannot_be_read(monkeypatch):
    with pytest.raises(AnsibleError, match="cannot be read"):
        run(monkeypatch, ollama_host="https://x")
