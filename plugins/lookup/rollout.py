# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts and batches of a rollout's plays. Runs in ansible-playbook's own process whenever a play begins."""

from __future__ import annotations

DOCUMENTATION = r"""
name: rollout
short_description: The hosts and batches of a rollout's plays
version_added: 0.2.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - For the playbook C(gpufleet.inference.rollout). Reads the journal of the rollout when a play begins, so each play
    starts from what is true then.
options:
  _terms:
    description:
      - V(targets) are the hosts of the run. With it, the run takes the lock of the rollouts of this inventory.
      - V(gateways) are the gateways that report which hosts serve.
      - V(hosts) or V(sizes), followed by V(held), V(canary), V(rest), V(reserve), V(reserved) or V(all), are the hosts
        of that part in their order, and the sizes of its batches.
    required: true
"""

EXAMPLES = r"""
- name: Change the canary
  hosts: "{{ lookup('gpufleet.inference.rollout', 'hosts', 'canary') }}"
  serial: "{{ lookup('gpufleet.inference.rollout', 'sizes', 'canary') }}"
"""

RETURN = r"""
_raw:
  description: A pattern of hosts for V(targets), else a list.
  type: list
  elements: raw
"""

from typing import Any, Dict, List, Mapping, Optional

from ansible import context
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.journal import Journal, default_folder
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.plan import Unit, batches
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.state import State, in_hand, remaining

GROUPS = ("ollama", "vllm", "llama_server", "gateway")
NONE = "all:!all"


class LookupModule(LookupBase):
    """Entry point for Ansible."""

    def run(self, terms: List[Any], variables: Optional[Dict[str, Any]] = None, **kwargs: Any) -> List[Any]:
        variables = variables or {}
        folder = self._templar.template(variables.get("rollout_state", "")) or default_folder(_sources(variables))
        try:
            return [_found(Journal(str(folder)), variables, *map(str, terms))]
        except OSError as error:
            raise AnsibleLookupError("the state folder of the rollout (rollout_state): %s" % error) from None


def _found(journal: Journal, variables: Mapping[str, Any], what: str, part: str = "") -> Any:
    check = bool(variables.get("ansible_check_mode"))
    if what == "targets":
        _refuse_parts()
        if not check and not any(
            context.CLIARGS.get(name) for name in ("syntax", "listhosts", "listtasks", "listtags")
        ):
            _lock(journal)
        return ":".join(group for group in GROUPS if group in variables.get("groups", {})) or NONE
    state = State() if check else journal.own()
    if what == "gateways":
        return state.plan.gateways if state.plan else []
    found = _part(state, part)
    if what == "sizes":  # an empty list would mean all hosts at once
        return [sum(len(unit.hosts) for unit in chosen) for chosen in found] or [1]
    known = variables.get("groups", {}).get("all", ())  # a host may have left the inventory since it was reserved
    return [host for chosen in found for unit in chosen for host in unit.hosts if host in known]


def _part(state: State, part: str) -> List[List[Unit]]:
    """The batches of one part. What has no room now is in the last ones: it may have, by its turn."""
    if not state.plan:
        return []
    if part == "reserve":
        return [[Unit(tuple(state.plan.reserve))]]
    if part == "reserved":
        return [[Unit(tuple(state.reserved))]]
    if part == "all":  # one of them is enough for the receipt, but --limit may leave out any
        return [[*state.plan.units, Unit(tuple(state.plan.as_declared))]]
    left = remaining(state)
    held = in_hand(state)
    canary = [unit for unit in left if unit not in held and set(unit.hosts) & set(state.plan.canary)]
    chosen = {"held": held, "canary": canary}.get(part, [unit for unit in left if unit not in [*held, *canary]])
    found = batches(chosen, state.plan.pools, state.plan.width)
    return found + [[unit] for unit in chosen if not any(unit in one for one in found)]


def _sources(variables: Mapping[str, Any]) -> List[Any]:
    found = variables.get("ansible_inventory_sources") or []
    return [found] if isinstance(found, str) else list(found)


def _refuse_parts() -> None:
    """A task cannot refuse an option that leaves out tasks."""
    given = {name: context.CLIARGS.get(name) for name in ("tags", "skip_tags", "start_at_task", "step")}
    odd = [name for name, value in given.items() if value and list(value if name != "step" else []) != ["all"]]
    if odd:
        raise AnsibleLookupError(
            "--%s would leave out steps of the rollout, which only runs as a whole (nothing was changed)"
            % odd[0].replace("_", "-")
        )


def _lock(journal: Journal) -> None:
    holder = journal.lock()
    if holder:
        raise AnsibleLookupError(
            "another rollout of this inventory is running (%s): nothing was changed; the playbook "
            "gpufleet.inference.rollout_control shows and stops it" % holder
        )
