# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where Open WebUI gets its models from: the gateway of the inventory, or its services."""

from __future__ import annotations

DOCUMENTATION = r"""
name: open_webui_connections
short_description: The servers of the inventory, as Open WebUI connects to them
version_added: 0.2.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - Returns the first host of the group C(gateway), which serves all models. If there is none, returns each service of
    the groups C(ollama), C(vllm) and C(llama_server) that other hosts can reach.
  - For O(gpufleet.inference.open_webui_service#module:connections). It has keys; do not print it.
options:
  key:
    description: The API key for the gateway.
    type: str
    default: ''
seealso:
  - module: gpufleet.inference.open_webui_service
  - plugin: gpufleet.inference.gateway_pools
    plugin_type: lookup
"""

EXAMPLES = r"""
- name: Connect Open WebUI to the fleet
  gpufleet.inference.open_webui_service:
    venv: /opt/gpufleet/open_webui/current
    connections: "{{ lookup('gpufleet.inference.open_webui_connections', key=vault_open_webui_key) }}"
  become: true
"""

RETURN = r"""
_raw:
  description: One list of dictionaries with C(url), C(api), and C(key) where there is one.
  type: list
  elements: list
"""

from typing import Any, Dict, List, Optional

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gpufleet.inference.plugins.plugin_utils.open_webui import connections


class LookupModule(LookupBase):
    """Entry point for Ansible."""

    def run(self, terms: List[Any], variables: Optional[Dict[str, Any]] = None, **kwargs: Any) -> List[List[Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        variables = variables or {}
        own, key = variables.get("inventory_hostname", ""), self.get_option("key")
        try:
            return [connections(variables["hostvars"], variables["groups"], own, key)]
        except (KeyError, TypeError, ValueError) as error:
            raise AnsibleLookupError(
                "open_webui_connections: a service of the inventory cannot be read: %s" % error
            ) from error
