#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An Ollama service that was set up by hand, as inventory variables."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_adopt
short_description: Print the inventory variables that reproduce a manually configured Ollama service
version_added: 0.1.0
description:
  - Reads the unit with all its drop-ins and environment files as systemd merges them, whoever wrote them, and gives the
    variables of the roles C(ollama) and C(gpu_host) with which a run changes nothing and restarts nothing.
  - A variable of the environment becomes the typed variable of the role where that writes it byte for byte, else it
    goes to C(ollama_environment).
  - What may be a secret is not given, nor what Ollama would misread. Both are named in RV(notes); what is not declared
    stays as it is.
  - Nothing is written.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.ollama]
  check_mode:
    support: full
  diff_mode:
    support: none
    details: It changes nothing.
options:
  name:
    description: Name of the unit, with or without C(.service).
    type: str
    default: ollama
  facts_timeout:
    description: Seconds that reading the GPUs may take.
    type: float
    default: 10.0
seealso:
  - module: gpufleet.inference.ollama_service
"""

EXAMPLES = r"""
- name: Read what a person has set up
  gpufleet.inference.ollama_adopt:
  become: true
  register: adopted

- name: Show it as inventory variables
  ansible.builtin.debug:
    msg: "{{ adopted.variables | to_nice_yaml(sort_keys=false) }}"
"""

RETURN = r"""
msg:
  description: How many variables and notes there are, or what failed.
  returned: always
  type: str
  sample: "ollama.service: 4 variables, 0 notes"
variables:
  description: Inventory variables of this host.
  returned: success
  type: dict
  sample: {ollama_visible_devices: all, ollama_sched_spread: true, ollama_keep_alive: "-1"}
notes:
  description: What the variables do not say, with the file and line, and why; and what a run would still change.
  returned: success
  type: list
  elements: str
  sample: ["HF_TOKEN (/etc/ollama.env:2) is not reported, as it may be a secret; it stays where it is"]
files:
  description: The unit's file and its drop-ins, in the order in which systemd reads them.
  returned: success
  type: list
  elements: str
  sample: [/etc/systemd/system/ollama.service, /etc/systemd/system/ollama.service.d/override.conf]
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import adopt
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(name=dict(type="str", default="ollama"), facts_timeout=dict(type="float", default=10.0))


def main():
    run(argument_spec(), adopt.adopt)


if __name__ == "__main__":
    main()
