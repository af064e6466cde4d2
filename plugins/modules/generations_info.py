#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last accepted configurations of the services of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: generations_info
short_description: List the last accepted configurations of the services of a host
version_added: 0.2.0
description:
  - Each time a service is changed and verified, its options are recorded on the host, with what the verification
    measured. The last five of each service are kept in C(/var/lib/gpufleet/generations), in files that only root can
    read.
  - No secret is recorded, and a change of secrets alone records nothing.
  - The option C(generation) of a service's module takes the service back to one of them.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.attributes.info
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.services]
options:
  unit:
    description: Name of a unit, with or without C(.service). If left out, all services are listed.
    type: str
seealso:
  - module: gpufleet.inference.llama_server_service
  - module: gpufleet.inference.ollama_service
  - module: gpufleet.inference.vllm_service
"""

EXAMPLES = r"""
- name: Read the history of all services
  gpufleet.inference.generations_info:
  become: true
  register: history

- name: Print it
  ansible.builtin.debug:
    msg: "{{ history.table }}"
"""

RETURN = r"""
msg:
  description: How many generations and services there are.
  returned: always
  type: str
  sample: 5 generations of 2 services
table:
  description: A heading and a line for each generation, the newest of each service first. Empty if there is none.
  returned: always
  type: list
  elements: str
generations:
  description: The generations of each service by the name of its unit, the newest last.
  returned: always
  type: dict
  sample:
    ollama.service:
      - number: 3
        accepted: "2026-11-30T08:12:13Z"
        changes: ["keep_alive 5m → 1h"]
        verdict: ok
        version: 0.32.15
        figures: {ready_seconds: 0.4, version: 0.32.15}
        downtime_ms: 1240
        options: {keep_alive: 1h, visible_devices: all}
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.serving import generations
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(unit=dict(type="str"))


def main():
    run(argument_spec(), generations.report)


if __name__ == "__main__":
    main()
