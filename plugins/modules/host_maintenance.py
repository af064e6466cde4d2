#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a maintenance on its host, and whether the GPUs are back after it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_maintenance
short_description: Record a maintenance of a host, and wait for its GPUs
version_added: 0.2.0
description:
  - The steps of the playbook C(gpufleet.inference.maintain) on a host. The record is on the host, so that a run that
    was killed is resumed where it was.
  - It stops and starts no service. The roles do that, with the states V(stopped) and V(present).
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  name:
    description: Name of the maintenance, such as V(driver-580). A host goes through each name once.
    type: str
    required: true
  state:
    description:
      - V(begun) records which GPUs the host has, and what is known against them. If an earlier maintenance has not
        ended, what was recorded then is kept.
      - V(returned) records that the work is done, and waits until the GPUs are back.
      - V(ended) records that the host is in service again.
    type: str
    choices: [begun, returned, ended]
    required: true
  driver:
    description: For O(state=returned), the version that the driver must have, or its first parts, such as V(580).
    type: str
  new_gpus:
    description: For O(state=returned), whether other GPUs may be in the place of the previous ones.
    type: bool
    default: false
  timeout:
    description: For O(state=returned), the seconds within which the GPUs must be back.
    type: int
    default: 600
  facts_timeout:
    description: Maximum seconds for reading the facts of the GPUs once.
    type: float
    default: 10
seealso:
  - module: gpufleet.inference.gpu_facts
"""

EXAMPLES = r"""
- name: Record the GPUs
  gpufleet.inference.host_maintenance:
    name: driver-580
    state: begun
  become: true

- name: Wait until they are back
  gpufleet.inference.host_maintenance:
    name: driver-580
    state: returned
    driver: "580"
  become: true
"""

RETURN = r"""
msg:
  description: What was found or done.
  returned: always
  type: str
  sample: 4 GPUs as before, driver 580.159.04
ended:
  description: Whether the maintenance has ended on this host.
  returned: with O(state=begun), if it has
  type: bool
stopped:
  description: Whether the services are to be stopped now, which is not so in check mode.
  returned: with O(state=begun), unless the maintenance has ended
  type: bool
work:
  description: Whether the work has still to be done.
  returned: with O(state=begun), unless the maintenance has ended
  type: bool
downtime_ms:
  description: Milliseconds since the maintenance was begun.
  returned: with O(state=ended), unless it had ended before
  type: int
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.serving import maintenance
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["begun", "returned", "ended"], "required": True},
        "driver": {"type": "str"},
        "new_gpus": {"type": "bool", "default": False},
        "timeout": {"type": "int", "default": 600},
        "facts_timeout": {"type": "float", "default": 10},
    }


def main():
    run(argument_spec(), maintenance.step)


if __name__ == "__main__":
    main()
