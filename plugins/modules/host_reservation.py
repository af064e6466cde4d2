#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record on a host of the rollout that is changing it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_reservation
short_description: Reserve a host for one rollout
version_added: 0.2.0
description:
  - For the playbook C(gpufleet.inference.rollout), which reserves the hosts that it changes and releases them when it
    ends. Another controller's rollout is refused meanwhile.
  - The record is C(/var/lib/gpufleet/rollout.json). It does not expire.
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
  state:
    description:
      - V(reserved) records the rollout, unless another one has reserved the host. V(released) removes its record.
    type: str
    choices: [reserved, released]
    required: true
  holder:
    description: Which state folder of which controller reserves the host.
    type: str
    required: true
  run:
    description: The name of the rollout, for the message to others.
    type: str
    default: ""
  by:
    description: Who runs it, for the message to others.
    type: str
    default: ""
  take_over:
    description: Whether to reserve the host even if another rollout has reserved it.
    type: bool
    default: false
seealso:
  - module: gpufleet.inference.rollout
"""

EXAMPLES = r"""
- name: Reserve this host
  gpufleet.inference.host_reservation:
    state: reserved
    holder: 1f6bb1a6d0b44e0e9d3a
    run: 20261130T142110-1f6bb1
    by: root@controller
  become: true
"""

RETURN = r"""
msg:
  description: What was done, or who has reserved the host.
  returned: always
  type: str
  sample: rollout 20261130T142110-1f6bb1 of root@controller has reserved this host since 2026-11-30T14:21:10Z
reserved:
  description: Whether the host is reserved for O(holder) now.
  returned: success
  type: bool
new:
  description: Whether it was not before.
  returned: success
  type: bool
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.serving import reservation
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return {
        "state": {"type": "str", "choices": ["reserved", "released"], "required": True},
        "holder": {"type": "str", "required": True},
        "run": {"type": "str", "default": ""},
        "by": {"type": "str", "default": ""},
        "take_over": {"type": "bool", "default": False},
    }


def main():
    run(argument_spec(), reservation.step)


if __name__ == "__main__":
    main()
