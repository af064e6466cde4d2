# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts of a group the roles are run on, after all were asked whether they are as declared."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Sequence, Union

DOCUMENTATION = r"""
name: still_to_do
short_description: The pattern of the hosts of a group that are not as declared
version_added: 0.1.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - For plays after a task with M(gpufleet.inference.host_check) that registers C(gpufleet_check), as in the playbook
    C(gpufleet.inference.site). Only its last result counts, and only for the roles that it was asked about.
  - Hosts that share their models are kept if another host of the group may lack one, and left out otherwise.
options:
  _input:
    description: The variable C(groups).
    type: dict
    required: true
  role:
    description:
      - The name of a role, and of the group it is for. The inventory need not have it.
      - With a list of names, the hosts that are left for any of these roles.
    type: raw
    required: true
  hostvars:
    description: The variable C(hostvars). It is not defined in C(hosts) before the first play with hosts.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Serve with Ollama
  hosts: "{{ groups | gpufleet.inference.still_to_do('ollama', hostvars | default({})) }}"
  roles: [gpufleet.inference.ollama]
"""

RETURN = r"""
_value:
  description: A pattern for C(hosts). It matches no host where there is nothing to do.
  type: str
"""

NONE = "all:!all"


def still_to_do(
    groups: Mapping[str, List[str]], role: Union[str, Sequence[str]], hostvars: Mapping[str, Mapping[str, Any]]
) -> str:
    """See DOCUMENTATION."""
    roles = [role] if isinstance(role, str) else role
    left, done = [], []
    for name in roles:
        checked = {host: hostvars.get(host, {}).get("gpufleet_check", {}) for host in groups.get(name, ())}
        converged = {host: one for host, one in checked.items() if one.get("as_declared") and name in one["roles"]}
        if len(converged) < len(checked):
            left.append(name)
            done += [host for host, one in converged.items() if not one["shares"]]
    return ",".join([*left, *("!" + host for host in dict.fromkeys(done))]) if left else NONE


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"still_to_do": still_to_do}
