# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a gateway reaches Open WebUI, by the inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
name: open_webui_servers
short_description: The hosts with Open WebUI, as a gateway reaches them
version_added: 0.2.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - Returns the hosts of the group C(open_webui), for O(gpufleet.inference.gateway_service#module:web). One that listens
    on loopback is left out, unless it is the gateway's own host.
options: {}
seealso:
  - module: gpufleet.inference.gateway_service
"""

EXAMPLES = r"""
- name: Show where the page for people is
  ansible.builtin.debug:
    msg: "{{ lookup('gpufleet.inference.open_webui_servers') }}"
"""

RETURN = r"""
_raw:
  description: One list of dictionaries with C(host), C(address) and C(port).
  type: list
  elements: list
"""

from typing import Any, Dict, List, Optional

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gpufleet.inference.plugins.plugin_utils.open_webui import servers


class LookupModule(LookupBase):
    """Entry point for Ansible."""

    def run(self, terms: List[Any], variables: Optional[Dict[str, Any]] = None, **kwargs: Any) -> List[List[Any]]:
        variables = variables or {}
        try:
            return [servers(variables["hostvars"], variables["groups"], variables.get("inventory_hostname", ""))]
        except (KeyError, TypeError, ValueError) as error:
            raise AnsibleLookupError("open_webui_servers: a host of open_webui cannot be read: %s" % error) from error
