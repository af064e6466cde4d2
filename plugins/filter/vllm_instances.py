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
  - For the role P(gpufleet.inference.vllm#role). Selects the instances of one host, or those that it shares with other
    hosts, for O(gpufleet.inference.vllm_service#module:instances).
options:
  _input:
    description: The instances of the inventory.
    type: list
    elements: dict
    required: true
  host:
    description: Name of this host in the inventory.
    type: str
    required: true
  state:
    description: State of instances that set none.
    type: str
    default: present
  environment:
    description: Variables of all instances. They override those of a plan.
    type: dict
    default: {}
  planned:
    description:
      - Left out, the instances that this host has alone are returned, and those that are absent.
      - Otherwise, those that it shares with other hosts, with the options that the plan has for their names. An
        instance without a plan keeps C(hosts) and C(network).
    type: dict
"""

EXAMPLES = r"""
- name: Show the instances that the module receives
  ansible.builtin.debug:
    msg: "{{ vllm_instances | gpufleet.inference.vllm_instances(inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: The instances.
  type: list
  elements: dict
"""

SHARING = ("hosts", "network")
"""Options of the role alone."""


def instances(
    declared: Sequence[Mapping[str, Any]],
    host: str,
    state: str = "present",
    environment: Optional[Mapping[str, str]] = None,
    planned: Optional[Mapping[str, Mapping[str, Any]]] = None,
) -> List[Dict[str, Any]]:
    """See DOCUMENTATION."""
    if not isinstance(declared, list) or not all(isinstance(given, dict) for given in declared):
        return declared if planned is None else []  # type: ignore[return-value]  # the module says what is wrong
    found = []
    for given in declared:
        shared = "hosts" in given and given.get("state", state) in ("present", "asleep") and state != "stopped"
        if shared != (planned is not None) or (shared and host not in given["hosts"]):
            continue
        plan = (planned or {}).get(given.get("name"))
        own = dict(given)
        if plan or not shared:
            own = {option: value for option, value in given.items() if option not in SHARING}
        if plan:
            variables = {**plan["environment"], **(environment or {}), **given.get("environment", {})}
            own.update(plan, environment=variables)
        found.append(own)
    return found


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"vllm_instances": instances}
