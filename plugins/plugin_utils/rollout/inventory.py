# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory declares of its hosts: who serves what, and who shares a model. Pure."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Sequence, Set

GATEWAYS = "the gateways"
"""Name of the pool that the gateways themselves form."""


class Inventory:
    """The hosts of each group, and their variables."""

    def __init__(self, groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Any]) -> None:
        self.groups, self.hostvars = groups, hostvars

    def hosts(self, *groups: str) -> List[str]:
        """The hosts of these groups, each once."""
        return list(dict.fromkeys(host for group in groups for host in self.groups.get(group, ())))

    def served(self, engines: Mapping[str, Callable[..., Any]]) -> Dict[str, Dict[str, Set[str]]]:
        """For each pool, its hosts and the engines that serve it there. An engine without models is a pool, too.

        :param engines: group → what a host of it serves, from its name and variables.
        """
        found: Dict[str, Dict[str, Set[str]]] = {}
        for group, services in engines.items():
            for host in self.hosts(group):
                for service in services(host, self.hostvars[host]):
                    for pool in service.models or [group]:
                        found.setdefault(pool, {}).setdefault(host, set()).add(group)
        if self.hosts("gateway"):
            found[GATEWAYS] = {host: {"gateway"} for host in self.hosts("gateway")}
        return found

    def together(self) -> List[List[str]]:
        """Hosts that share a model of vLLM."""
        instances = [one for host in self.hosts("vllm") for one in self.hostvars[host].get("vllm_instances") or []]
        return [list(one["hosts"]) for one in instances if one.get("hosts")]
