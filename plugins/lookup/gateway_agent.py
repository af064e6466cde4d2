# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's agent has to know: its services, and the gateways of the inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
name: gateway_agent
short_description: The services of a host that gateways use, and the gateways
version_added: 0.1.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - Returns the options O(gpufleet.inference.gateway_agent#module:services) and
    O(gpufleet.inference.gateway_agent#module:gateways) for the host that asks, from what the inventory declares of its
    engines and of the group C(gateway). Nothing is declared twice.
  - A gateway is known by its C(gateway_address), or else its C(ansible_host), or else its name.
seealso:
  - module: gpufleet.inference.gateway_agent
"""

EXAMPLES = r"""
- name: Show what gateways use of a host
  ansible.builtin.debug:
    msg: "{{ lookup('gpufleet.inference.gateway_agent') }}"
"""

RETURN = r"""
_raw:
  description: One dictionary with C(services) and C(gateways).
  type: list
  elements: dict
"""

from typing import Any, Dict, List, Mapping, Optional

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import address_of, pools


class LookupModule(LookupBase):
    """Entry point for Ansible."""

    def run(self, terms: List[Any], variables: Optional[Dict[str, Any]] = None, **kwargs: Any) -> List[Dict[str, Any]]:
        variables = variables or {}
        try:
            return [known(variables["hostvars"], variables["groups"], variables["inventory_hostname"])]
        except (KeyError, TypeError, ValueError) as error:
            raise AnsibleLookupError("gateway_agent: a service of the inventory cannot be read: %s" % error) from error


def known(hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Any], host: str) -> Dict[str, Any]:
    """The services of a host, and the gateways that ask for them. Pure."""
    found, _left_out = pools(hostvars, groups, host)
    services = {
        row["unit"]: {
            "unit": row["unit"],
            "engine": row["engine"],
            "address": row["address"],
            "port": row["port"],
            "tls": row["tls"],
            "max_concurrent": int(row["max_concurrent"] or 0),
        }
        for rows in found.values()
        for row in rows
        if row["host"] == host
    }
    gateways = [address_of(name, hostvars[name]) for name in groups.get("gateway", ())]
    return {"services": list(services.values()), "gateways": gateways}
