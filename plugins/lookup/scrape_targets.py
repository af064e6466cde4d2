# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Prometheus reads the metrics of, from the inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
name: scrape_targets
short_description: What a Prometheus reads the metrics of, from the inventory
version_added: 0.2.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - Reads what the hosts of the groups C(vllm), C(llama_server) and C(gateway) declare, and returns the targets for
    O(gpufleet.inference.monitoring_service#module:targets). Nothing is declared twice.
  - Ollama exports no metrics. The gateway counts its requests.
  - A host is reached at its C(gateway_address), or else its C(ansible_host), unless its service listens on a particular
    address. What listens on loopback is left out with a warning, unless Prometheus is on the same host.
options:
  node_port:
    description: Port of the node exporter on every host; V(0) if there is none.
    type: int
    default: 9100
  gpu_exporter_port:
    description: Port of the exporter for GPUs on every GPU host, such as that of DCGM; V(0) if there is none.
    type: int
    default: 0
seealso:
  - module: gpufleet.inference.monitoring_service
"""

EXAMPLES = r"""
- name: Show what Prometheus is going to read
  ansible.builtin.debug:
    msg: "{{ lookup('gpufleet.inference.scrape_targets').targets }}"
"""

RETURN = r"""
_raw:
  description:
    - One dictionary with C(targets) and C(keys). Each target has C(job), C(host), C(address), C(port), C(labels),
      C(tls) and C(key), the name of its key, or an empty text. C(keys) has the keys by these names; do not print it.
  type: list
  elements: dict
"""

from typing import Any, Dict, List, Optional

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible.utils.display import Display

from ansible_collections.gpufleet.inference.plugins.plugin_utils.scrape_targets import targets

display = Display()


class LookupModule(LookupBase):
    """Entry point for Ansible."""

    def run(self, terms: List[Any], variables: Optional[Dict[str, Any]] = None, **kwargs: Any) -> List[Dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        variables = variables or {}
        exporters = {"node": self.get_option("node_port"), "gpu": self.get_option("gpu_exporter_port")}
        try:
            asking = variables.get("inventory_hostname", "")
            found = targets(variables["hostvars"], variables["groups"], asking, exporters)
        except (KeyError, TypeError, ValueError) as error:
            raise AnsibleLookupError("scrape_targets: a service of the inventory cannot be read: %s" % error) from error
        for sentence in found.left_out:
            display.warning("scrape_targets: %s" % sentence)
        return [{"targets": found.targets, "keys": found.keys}]
