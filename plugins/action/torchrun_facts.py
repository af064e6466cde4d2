# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passes the addresses and listeners of other hosts to a host that checks whether it reaches them."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import fabric
from ansible_collections.gpufleet.inference.plugins.modules import torchrun_facts
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import RemoteFunction


class ActionModule(CheckFirstAction):
    """Replaces names in ``peers`` by what the host must know of those hosts."""

    MODULE = "gpufleet.inference.torchrun_facts"
    FUNCTION = RemoteFunction(
        "torchrun.network", "report", torchrun_facts.argument_spec(), facts=("torchrun", "torchrun_reach")
    )

    def prepare(self, arguments: Dict[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        peers = arguments.get("peers")
        if peers is None:
            return arguments
        names = peers if isinstance(peers, list) else [peers]
        others = [name for name in names if name != variables.get("inventory_hostname")]
        port = int(arguments.get("master_port") or 29500)
        return dict(arguments, peers=known(others, variables["hostvars"], port))


def known(names: List[Any], hostvars: Mapping[str, Any], port: int) -> List[Dict[str, Any]]:
    """What is known of the named hosts that listen: name, addresses, token, ports."""
    found = []
    for name in names:
        if isinstance(name, dict):
            found.append(name)
            continue
        facts = (hostvars[name].get("ansible_facts") or {}).get("torchrun") if name in hostvars else None
        if facts and facts.get("listener"):
            listener = facts["listener"]
            try:
                addresses = [str(one["address"]) for one in fabric.candidates(facts)]
                ports = {"port": int(listener["port"]), "busy": dict(listener["busy"]), "rendezvous": port}
                found.append({"name": name, "addresses": addresses, "token": str(listener["token"]), **ports})
            except (AttributeError, KeyError, TypeError, ValueError):
                continue  # odd facts of one host must not fail another one
    return found
