# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who downloads a model from its hub, and who seeds it to whom."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Tuple

from ansible_collections.gpufleet.inference.plugins.plugin_utils.sharing import share

DOCUMENTATION = r"""
name: model_seeding
short_description: Who downloads a model from its hub, and who seeds it to whom
version_added: 0.1.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - For the role P(gpufleet.inference.vllm#role). A model that several hosts lack is downloaded by one of them, or by
    none where a host already has it; that host seeds it to the others.
  - The choice depends on nothing but the input. A host that has the model comes first, then the order of the hosts.
options:
  _input:
    description:
      - By host the results of a loop of M(gpufleet.inference.model_source) with
        O(gpufleet.inference.model_source#module:defer), in the order of the hosts.
    type: dict
    required: true
  batch:
    description: The hosts that will load now. The others only seed.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Who does what
  ansible.builtin.debug:
    msg: "{{ results | gpufleet.inference.model_seeding(ansible_play_batch) }}"
"""

RETURN = r"""
_value:
  description:
    - RV(ignore:pull), lists of models by host; these hosts download them first.
    - RV(ignore:seed), by host a dictionary with C(models) and C(peers).
  type: dict
"""

HUBS = ("huggingface", "modelscope")
NAMED = ("name", "source", "revision", "root")


def _key(item: Mapping[str, Any]) -> Tuple[str, ...]:
    return item.get("source") or HUBS[0], item["name"], item.get("revision") or ""


def plan(results: Mapping[str, Any], batch: List[str]) -> Dict[str, Dict[str, Any]]:
    """See DOCUMENTATION."""
    lack: Dict[Tuple[str, ...], Dict[str, Any]] = {}
    have: Dict[Tuple[str, ...], Dict[str, Any]] = {}
    for host, of_host in results.items():
        for one in of_host:
            key, item = _key(one["item"]), one["item"]
            if key[0] not in HUBS:
                continue
            if one.get("path"):
                have.setdefault(key, {})[host] = item
            elif one.get("needs") and host in batch:
                lack.setdefault(key, {})[host] = item
    found = share(lack, have)
    for seed in found["seed"].values():
        seed["models"] = [{name: item[name] for name in NAMED if name in item} for item in seed["models"]]
    return found


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"model_seeding": plan}
