# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: facts without peers, reach with them."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import network
from ansible_collections.gpufleet.inference.plugins.modules import torchrun_facts


def test_facts(run_module, monkeypatch):
    monkeypatch.setattr(facts, "gather", lambda **more: {"timeout": more["timeout"]})
    monkeypatch.setattr(network, "facts", lambda params, gather, warn: {"venv": params["venv"], "gpu": gather()})
    result = run_module(torchrun_facts.main, {"venv": "/opt/torch", "facts_timeout": 3})
    assert result["ansible_facts"] == {"torchrun": {"venv": "/opt/torch", "gpu": {"timeout": 3.0}}}
    assert result["changed"] is False


def test_reach(run_module, monkeypatch):
    monkeypatch.setattr(network, "reach", lambda peers, timeout: {"peers": sorted(peers), "timeout": timeout})
    result = run_module(torchrun_facts.main, {"peers": [{"name": "b"}, "no-facts"], "timeout": 0.5})
    assert result["ansible_facts"] == {"torchrun_reach": {"peers": ["b"], "timeout": 0.5}}


def test_no_network(run_module, monkeypatch):
    def fail(params, gather, warn):
        raise Failed("there is no ip on this host")

    monkeypatch.setattr(network, "facts", fail)
    result = run_module(torchrun_facts.main)
    assert (result["failed"], result["msg"]) == (True, "there is no ip on this host")
