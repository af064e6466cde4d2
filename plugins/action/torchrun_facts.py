# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hands the hosts' addresses and listeners to a host that is to try them; asks it by a bare script."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import fabric
from ansible_collections.gpufleet.inference.plugins.modules import torchrun_facts
from ansible_collections.gpufleet.inference.plugins.plugin_utils.ask import Asking, Work


class ActionModule(Asking):
    """Replaces names in ``peers`` by what the host has to know of those hosts."""

    MODULE = "gpufleet.inference.torchrun_facts"
    WORK = Work("torchrun.network", "report", torchrun_facts.argument_spec())

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        arguments = self._task.args
        if arguments.get("peers") is not None:
            names = arguments["peers"] if isinstance(arguments["peers"], list) else [arguments["peers"]]
            own = (task_vars or {}).get("inventory_hostname")
            port = int(arguments.get("master_port") or 29500)
            peers = known([name for name in names if name != own], (task_vars or {})["hostvars"], port)
            self._task.args = dict(arguments, peers=peers)
        return super().run(tmp, task_vars)


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
                told = {"token": str(listener["token"]), "port": int(listener["port"]), "busy": dict(listener["busy"])}
            except (AttributeError, KeyError, TypeError, ValueError):
                continue  # one host's odd facts are no reason to fail on another
            found.append({"name": name, "addresses": addresses, "rendezvous": port, **told})
    return found
