# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who pulls a model from the registry, and who seeds it to whom."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping

from ansible_collections.gpufleet.inference.plugins.plugin_utils.sharing import share

DOCUMENTATION = r"""
name: ollama_seeding
short_description: Who pulls a model from the registry, and who seeds it to whom
version_added: 0.1.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - For the role P(gpufleet.inference.ollama#role). A model that several hosts lack is pulled by one of them, or by
    none where a host already has it; that host seeds it to the others.
  - The choice depends on nothing but the input. A host that has the model comes first, then the order of the hosts.
options:
  _input:
    description:
      - Results of the M(gpufleet.inference.ollama_model) module by host, with
        O(gpufleet.inference.ollama_model#module:defer_pulls), in the order of the hosts. Hosts without a result may be
        among them, as V(null).
    type: dict
    required: true
  batch:
    description: The hosts that will pull now. The others only seed.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Who does what
  ansible.builtin.debug:
    msg: "{{ results | gpufleet.inference.ollama_seeding(ansible_play_batch) }}"
"""

RETURN = r"""
_value:
  description:
    - RV(ignore:pull), lists of models by host, as O(gpufleet.inference.ollama_model#module:models) takes them. These
      hosts pull them first.
    - RV(ignore:seed), by host a dictionary with C(models), C(peers) and the C(unit) of its server.
  type: dict
"""


def plan(results: Mapping[str, Any], batch: List[str]) -> Dict[str, Dict[str, Any]]:
    """See DOCUMENTATION."""
    told = {host: result for host, result in results.items() if result and result.get("unit")}
    lack: Dict[str, Dict[str, Any]] = {}
    have: Dict[str, Dict[str, Any]] = {}
    for host, result in told.items():
        for needed in result.get("needs") or ():
            name, _sep, digest = needed.partition("@sha256:")
            if host in batch:
                lack.setdefault(name, {})[host] = {"name": name, "digest": digest} if digest else {"name": name}
        for item in result["models"]:
            if item.get("digest"):
                have.setdefault(item["name"], {})[host] = item
    found = share(lack, have)
    for host, seed in found["seed"].items():
        seed.update(unit=told[host]["unit"], models=[item["name"] for item in seed["models"]])
    return found


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"ollama_seeding": plan}
