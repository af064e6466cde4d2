# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who downloads a model, and who seeds it to whom."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping

DOCUMENTATION = r"""
name: model_seeding
short_description: Who downloads a model, and who seeds it to whom
version_added: 0.1.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - For the roles P(gpufleet.inference.vllm#role) and P(gpufleet.inference.ollama#role). A model that several hosts lack
    is downloaded by one of them, or by none where a host already has it; that host seeds it to the others.
  - The choice depends on nothing but the input. A host that has the model comes first, then the order of the hosts.
options:
  _input:
    description:
      - By host, in the order of the hosts, the results of a loop of M(gpufleet.inference.model_source) with
        O(gpufleet.inference.model_source#module:defer_downloads), or the result of
        M(gpufleet.inference.ollama_model) with O(gpufleet.inference.ollama_model#module:defer_downloads). Hosts without
        a result may be among them.
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
    - RV(ignore:seed), by host a dictionary with C(models), C(peers) and, for Ollama, the C(unit) of its server, as
      M(gpufleet.inference.model_seed) takes them.
  type: dict
"""

HUBS = ("huggingface", "modelscope")
NAMED = ("name", "source", "revision", "root")
By = Dict[Any, Dict[str, Any]]


def _of_hubs(host: str, results: List[Any], lack: By, have: By) -> None:
    for one in results:
        item = one["item"]
        key = (item.get("source") or HUBS[0], item["name"], item.get("revision") or "")
        if key[0] in HUBS and one.get("path"):
            have.setdefault(key, {})[host] = item
        elif key[0] in HUBS and one.get("needs"):
            lack.setdefault(key, {})[host] = item


def _of_ollama(host: str, result: Mapping[str, Any], lack: By, have: By) -> None:
    for needed in result.get("needs") or ():
        name, _sep, digest = needed.partition("@sha256:")
        lack.setdefault(name, {})[host] = {"name": name, "digest": digest} if digest else {"name": name}
    for item in result["models"]:
        if item.get("digest"):
            have.setdefault(item["name"], {})[host] = item


def plan(results: Mapping[str, Any], batch: List[str]) -> Dict[str, Dict[str, Any]]:
    """See DOCUMENTATION."""
    lack: By = {}
    have: By = {}
    units: Dict[str, str] = {}
    for host, result in results.items():
        lacks = lack if host in batch else {}
        if isinstance(result, list):
            _of_hubs(host, result, lacks, have)
        elif result and result.get("unit"):
            units[host] = result["unit"]
            _of_ollama(host, result, lacks, have)
    found = share(lack, have)
    for host, seed in found["seed"].items():
        seed["models"] = [{name: item[name] for name in NAMED if name in item} for item in seed["models"]]
        if host in units:
            seed.update(unit=units[host], models=[{"name": one["name"], "source": "ollama"} for one in seed["models"]])
    return found


def share(lack: By, have: By) -> Dict[str, Dict[str, Any]]:
    """A host seeds the models that it has. The first host that needs one which no host has downloads and seeds it.

    :param lack: by model and host the item by which the model is called there, in the order of the hosts.
    :param have: the same of the hosts that have it.
    :returns: ``pull``, lists of items by host, and ``seed``, by host a dictionary with ``models``, the seeder's items,
        and ``peers``.
    """
    pulls: Dict[str, List[Any]] = {}
    seeds: Dict[str, Dict[str, Any]] = {}
    for model, peers in lack.items():
        owners = have.get(model)
        if not owners and len(peers) < 2:
            continue  # nobody to share the download with
        seeder, item = next(iter((owners or peers).items()))
        if not owners:
            pulls.setdefault(seeder, []).append(item)
        seed = seeds.setdefault(seeder, {"models": [], "peers": []})
        seed["models"].append(item)
        seed["peers"] += [peer for peer in peers if peer != seeder and peer not in seed["peers"]]
    return {"pull": pulls, "seed": seeds}


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"model_seeding": plan}
