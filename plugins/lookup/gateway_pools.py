# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models of the inventory, and the servers of each, for the gateway."""

from __future__ import annotations

DOCUMENTATION = r"""
name: gateway_pools
short_description: The models of the inventory, and the servers of each
version_added: 0.1.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - Reads what the hosts of the groups C(ollama), C(vllm) and C(llama_server) declare of their services, and returns the
    servers of each model, for O(gpufleet.inference.gateway_service#module:pools). Nothing is declared twice.
  - A host is reached at its C(gateway_address), or else its C(ansible_host), unless its service listens on a particular
    address. A service that listens on loopback is left out with a warning, unless the gateway is on the same host.
  - For Ollama, the models are those of C(ollama_models).
options:
  keys:
    description: Whether to include the API keys of the engines. If so, do not print the result.
    type: bool
    default: false
seealso:
  - module: gpufleet.inference.gateway_service
"""

EXAMPLES = r"""
- name: Show which servers serve which model
  ansible.builtin.debug:
    msg: "{{ lookup('gpufleet.inference.gateway_pools') }}"
"""

RETURN = r"""
_raw:
  description:
    - One dictionary of models. Each is a list of servers, with C(host), C(address), C(port), C(engine), C(unit),
      C(api), C(max_concurrent) and C(tls), and with O(keys) also C(key), the engine's own API key.
  type: list
  elements: dict
"""

from typing import Any, Dict, List, Optional

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible.utils.display import Display

from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import pools

display = Display()


class LookupModule(LookupBase):
    """Entry point for Ansible."""

    def run(self, terms: List[Any], variables: Optional[Dict[str, Any]] = None, **kwargs: Any) -> List[Dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        variables = variables or {}
        try:
            found, left_out = pools(variables["hostvars"], variables["groups"], variables.get("inventory_hostname", ""))
        except (KeyError, TypeError, ValueError) as error:
            raise AnsibleLookupError("gateway_pools: a service of the inventory cannot be read: %s" % error) from error
        for sentence in left_out:
            display.warning("gateway_pools: %s" % sentence)
        if not self.get_option("keys"):
            for row in (row for rows in found.values() for row in rows):
                del row["key"]
        return [found]
