#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation alone: the action plugin of the same name does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_check
short_description: Check in one exchange whether roles of this collection would change a host
version_added: 0.1.0
description:
  - Walks through the tasks of the roles on the controller and runs all their checks on the host in one exchange,
    including the gate. Nothing is changed on the host, and no module is sent.
  - RV(as_declared) is true for a host on which no role has anything to do. For any other host RV(msg) says why the
    roles run. The same holds if the answer cannot be known in advance.
  - The playbook C(gpufleet.inference.site) begins with it. The filter P(gpufleet.inference.still_to_do#filter) selects
    the hosts that are left for a role.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.attributes.facts
notes:
  - Run it as root (C(become)), as the tasks of the roles run.
  - Before ansible-core 2.19, the roles run for every host.
  - Variables of the host such as C(ollama_keep_alive) mean the same as for the roles. C(gpufleet_check_first=false)
    skips this check.
options:
  roles:
    description: Names of roles without the name of the collection, in the order in which they would run.
    type: list
    elements: str
    choices: [gateway, gpu_host, llama_server, monitoring, ollama, open_webui, vllm]
    required: true
"""

EXAMPLES = r"""
- name: Ask everything that the roles would ask
  gpufleet.inference.host_check:
    roles: [gpu_host, ollama]
  become: true
  register: gpufleet_check

- name: Print the lines of proof
  ansible.builtin.debug:
    msg: "{{ gpufleet_check.lines }}"
  when: gpufleet_check.as_declared
"""

RETURN = r"""
as_declared:
  description: Whether no role has anything to do.
  returned: always
  type: bool
  sample: true
msg:
  description: Why the roles are run, if they are.
  returned: always
  type: str
  sample: as declared
self_check:
  description: Whether the host is to have a self check, or may have one that must be removed.
  returned: if the host is not as declared
  type: bool
  sample: false
roles:
  description: The roles that have nothing to do.
  returned: if the host is as declared
  type: list
  elements: str
  sample: [gpu_host, ollama]
shares:
  description: Whether the host may have to share its models with others.
  returned: if the host is as declared
  type: bool
  sample: false
lines:
  description: The summary line of each service.
  returned: if the host is as declared
  type: list
  elements: str
  sample: ["ok · 4× H200 · CUDA_VISIBLE_DEVICES=0,1,2,3 spread"]
registered:
  description: What the roles would have registered, such as C(ollama_result), by name.
  returned: if the host is as declared
  type: dict
modules:
  description: The module behind each registered result, by the same names.
  returned: if the host is as declared
  type: dict
ansible_facts:
  description: The facts that the roles would have gathered.
  returned: if the host is as declared
  type: dict
"""
