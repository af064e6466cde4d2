# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The instances of the role vllm as the module takes them."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

DOCUMENTATION = r"""
name: vllm_instances
short_description: The instances of the role vllm as the module takes them
version_added: 0.1.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - For the role P(gpufleet.inference.vllm#role). Merges the defaults, the paths of the models and the API keys into the
    instances, for O(gpufleet.inference.vllm_service#module:instances).
options:
  _input:
    description: The instances of the inventory.
    type: list
    elements: dict
    required: true
  defaults:
    description: Options of all instances; the C(environment) of an instance is laid over theirs.
    type: dict
    required: true
  host:
    description: Name of this host in the inventory.
    type: str
    required: true
  models:
    description: Results of M(gpufleet.inference.model_source), of which C(item.name) and C(path) are used.
    type: list
    elements: dict
    default: []
  api_keys:
    description: Keys by the name of the instance.
    type: dict
    default: {}
  planned:
    description:
      - Left out, the instances of this host alone are returned, and those that are absent.
      - Else those that this host shares with others, by name with the options that the plan adds. One that has no plan
        keeps C(hosts) and C(network).
    type: dict
"""

EXAMPLES = r"""
- name: Show what the module gets
  ansible.builtin.debug:
    msg: "{{ vllm_instances | gpufleet.inference.vllm_instances(vllm_defaults, inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: The instances.
  type: list
  elements: dict
"""

SHARING = ("hosts", "network")
"""What the role alone knows."""


def instances(
    declared: Sequence[Mapping[str, Any]],
    defaults: Mapping[str, Any],
    host: str,
    models: Sequence[Mapping[str, Any]] = (),
    api_keys: Optional[Mapping[str, str]] = None,
    planned: Optional[Mapping[str, Mapping[str, Any]]] = None,
) -> List[Dict[str, Any]]:
    """See DOCUMENTATION."""
    paths = {result["item"]["name"]: result["path"] for result in models if result.get("path")}
    found = []
    for given in declared:
        merged = {**defaults, **given}
        environment = {**defaults.get("environment", {}), **given.get("environment", {})}
        if environment:
            merged["environment"] = environment
        name, model = merged["name"], merged.get("model")
        if model in paths:
            merged.update(model=paths[model], served_model_name=merged.get("served_model_name", [model]))
        if name in (api_keys or {}):
            merged["api_key"] = (api_keys or {})[name]
        shared = "hosts" in merged and merged.get("state", "present") == "present"
        if shared != (planned is not None) or (shared and host not in merged["hosts"]):
            continue
        plan = (planned or {}).get(name)
        if plan or not shared:
            merged = {option: value for option, value in merged.items() if option not in SHARING}
        if plan:
            merged.update(plan, environment={**plan["environment"], **environment})
        found.append(merged)
    return found


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"vllm_instances": instances}
