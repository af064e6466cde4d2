# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's agent has to know: its services, and the gateways of the inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
name: gateway_agent
short_description: What a host's agent reports, and to which gateways
version_added: 0.1.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - Returns the options of M(gpufleet.inference.gateway_agent) for the host that asks, from what the inventory declares
    of its engines and of the group C(gateway). Nothing is declared twice.
  - A gateway is known by its C(gateway_address), or else its C(ansible_host), or else its name.
  - The port is the C(gateway_agent_port) of the gateways. Without a group C(gateway), or if that port is V(0), the
    state is V(absent).
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
  description: One dictionary with C(state), C(services), C(gateways), C(local_gateway) and C(port).
  type: list
  elements: dict
"""

from typing import Any, Dict, List, Mapping, Optional, Sequence

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import address_of, pools
from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import services as declared

PORT = 8405
"""The default of the role gateway, which is not among the variables of its hosts."""


class LookupModule(LookupBase):
    """Entry point for Ansible."""

    def run(self, terms: List[Any], variables: Optional[Dict[str, Any]] = None, **kwargs: Any) -> List[Dict[str, Any]]:
        variables = variables or {}
        hostvars, groups, host = variables["hostvars"], variables["groups"], variables["inventory_hostname"]
        port = agent_port(hostvars, groups.get("gateway", ()))
        if not port:
            return [{"state": "absent", "services": [], "gateways": [], "local_gateway": "", "port": PORT}]
        try:
            return [dict(known(hostvars, groups, host), state="present", port=port)]
        except (KeyError, TypeError, ValueError) as error:
            raise AnsibleLookupError("gateway_agent: a service of the inventory cannot be read: %s" % error) from error


def agent_port(hostvars: Mapping[str, Mapping[str, Any]], gateways: Sequence[str]) -> int:
    """The port at which all gateways ask; 0 if they ask no agent, or there are none.

    :raises AnsibleLookupError: they ask at different ports.
    """
    ports = {name: int(hostvars[name].get("gateway_agent_port", PORT)) for name in gateways}
    if len(set(ports.values())) > 1:
        listed = ", ".join("%d on %s" % (port, name) for name, port in ports.items())
        raise AnsibleLookupError(
            "gateway_agent: gateway_agent_port is %s; expected the same port on all gateways: set it for their group"
            % listed
        )
    return next(iter(ports.values()), 0)


def known(hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Any], host: str) -> Dict[str, Any]:
    """The services of a host, and the gateways that ask for them. Pure."""
    own = {name: [host] for name, hosts in groups.items() if host in hosts}  # of the others nothing is needed
    asking = host if "gateway" in own else ""
    found, _left_out = pools(hostvars, own, asking)
    gpus = {service.unit: service.gpus for _host, service, _address in declared(hostvars, own, asking)}
    services = {
        row["unit"]: {
            "unit": row["unit"],
            "engine": row["engine"],
            "address": row["address"],
            "port": row["port"],
            "tls": row["tls"],
            "max_concurrent": int(row["max_concurrent"] or 0),
            "visible_devices": gpus[row["unit"]],
        }
        for rows in found.values()
        for row in rows
    }
    gateways = {name: address_of(name, hostvars[name]) for name in groups.get("gateway", ())}
    return {
        "services": list(services.values()),
        "gateways": list(gateways.values()),
        "local_gateway": gateways.get(host, ""),
    }
