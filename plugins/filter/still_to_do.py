# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts of a group the roles are run on, after all were asked whether they are as declared."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping

DOCUMENTATION = r"""
name: still_to_do
short_description: The pattern of the hosts of a group that are not as declared
version_added: 0.1.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - For the playbook C(gpufleet.inference.site), which has run M(gpufleet.inference.host_check) before.
  - Hosts that share their models are kept if another host of the group may lack one, and left out otherwise.
options:
  _input:
    description: The variable C(groups).
    type: dict
    required: true
  group:
    description: The name of the group. The inventory need not have it.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Serve with Ollama
  hosts: "{{ groups | gpufleet.inference.still_to_do('ollama') }}"
  roles: [gpufleet.inference.ollama]
"""

RETURN = r"""
_value:
  description: A pattern for C(hosts). It matches no host where there is nothing to do.
  type: str
"""

#: The groups that host_check puts hosts into; the second is for those that may have to share models with others.
AS_DECLARED = "gpufleet_as_declared"
SHARING = "gpufleet_as_declared_sharing"
NONE = "all:!all"


def still_to_do(groups: Mapping[str, List[str]], group: str) -> str:
    """See DOCUMENTATION."""
    asked = {host for name in (AS_DECLARED, SHARING) for host in groups.get(name, ())}
    if set(groups.get(group, ())) <= asked:
        return NONE
    return group + (":!" + AS_DECLARED if AS_DECLARED in groups else "")


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"still_to_do": still_to_do}
