# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On the controller: hands the hosts' addresses and listeners to a host that is to try them."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import fabric

MODULE = "gpufleet.inference.torchrun_facts"


class ActionModule(ActionBase):
    """Replaces names in ``peers`` by what the module has to know of those hosts."""

    TRANSFERS_FILES = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("peers") is not None:
            names = arguments["peers"] if isinstance(arguments["peers"], list) else [arguments["peers"]]
            own = (task_vars or {}).get("inventory_hostname")
            port = int(arguments.get("master_port") or 29500)
            arguments["peers"] = known([name for name in names if name != own], (task_vars or {})["hostvars"], port)
        result.update(self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars))
        return result


def known(names: List[Any], hostvars: Mapping[str, Any], port: int) -> List[Dict[str, Any]]:
    """What is known of the named hosts that listen: name, addresses, token, ports."""
    found = []
    for name in names:
        if isinstance(name, dict):
            found.append(name)
            continue
        facts = (hostvars[name].get("ansible_facts") or {}).get("torchrun") if name in hostvars else None
        if facts and facts.get("listener"):
            addresses = [one["address"] for one in fabric.candidates(facts)]
            listener = facts["listener"]
            found.append({"name": name, "addresses": addresses, "rendezvous": port, **listener})
    return found
