#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation alone: the action plugin of the same name does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_report
short_description: Write one HTML page about the hosts of a play
version_added: 0.2.0
description:
  - The last step of the playbook C(gpufleet.inference.report), which is the way to use it. It writes what the tasks
    before it have read on the hosts of the play, and the receipts of the rollouts of this inventory.
  - The page is one file. It opens without a network and sends no request. It has names of hosts, models and services,
    and the messages of services, but no options, environments or diffs.
  - Everything happens on the controller. Only the user who runs Ansible can read the file.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - The page has the time at which the hosts were read.
options:
  path:
    description: The file on the controller. A relative path starts where Ansible was started.
    type: path
    required: true
notes:
  - Run it once for all hosts (C(run_once)).
  - The variable C(rollout_state) of the playbook C(gpufleet.inference.rollout) names the folder of the receipts.
"""

EXAMPLES = r"""
- name: Write the page
  gpufleet.inference.fleet_report:
    path: ~/fleet.html
  run_once: true
"""

RETURN = r"""
msg:
  description: Where the page is, and what it shows.
  returned: always
  type: str
  sample: "/home/alice/fleet.html: 3 hosts, 1 with a problem"
path:
  description: The file.
  returned: success
  type: str
  sample: /home/alice/fleet.html
problems:
  description: What is wrong, by host. Hosts without a problem are left out.
  returned: success
  type: dict
  sample:
    gpu3:
      - {kind: gpu, place: GPU 1, text: GPU is lost, action: look into it}
"""
