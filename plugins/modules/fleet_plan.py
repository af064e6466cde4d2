#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation alone: the action plugin of the same name does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_plan
short_description: What the inventory would change on the fleet, at what price and risk
version_added: 0.2.0
description:
  - Part of the playbook C(gpufleet.inference.plan), which checks all hosts first. Prints the risks, a table with one
    row for each service, and the steps of a rollout with the capacity of each pool. Nothing is changed anywhere.
  - The variables of the rollout, such as C(rollout_min_ready), have the same effect.
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
  output:
    description: File on the controller that gets the plan as JSON, readable by its user alone.
    type: path
notes:
  - Run it once, after every host has been checked.
"""

EXAMPLES = r"""
- name: Print the plan
  gpufleet.inference.fleet_plan:
    output: plan.json
  run_once: true
  register: plan_result
"""

RETURN = r"""
msg:
  description: The plan in one line.
  returned: success
  type: str
  sample: "plan: changes; 2 to change, 6 as declared"
verdict:
  description: V(nothing) to do, V(changes), or V(impossible).
  returned: success
  type: str
reason:
  description: Why the plan is impossible.
  returned: success
  type: str
host:
  description: The host for which the task ran.
  returned: success
  type: str
lines:
  description: The plan as text.
  returned: success
  type: list
  elements: str
plan:
  description: The plan as data.
  returned: success
  type: dict
  contains:
    verdict:
      description: As RV(verdict).
      type: str
    reason:
      description: As RV(reason).
      type: str
    risks:
      description:
        - What may cost service, with the C(host) and a C(text). Hosts that cannot be changed, unhealthy GPUs, files
          that hide a declared value, pools without a second host, gateways that do not answer.
      type: list
      elements: dict
    hosts:
      description:
        - By the name of a host its C(state) (V(as declared), V(differs), V(unfit)), C(why), and its C(services).
        - Each service has C(service), C(changes), C(why), C(restart), C(predicted) (seconds without it; null if there
          is no plan) and the C(basis) of that prediction, C(drift) (declared, on disk and running), and the C(gpus) and
          C(ports) that it claims afterwards.
      type: dict
    steps:
      description: The steps of a rollout, each with its C(hosts), whether they are the C(canary), and C(pools), the
        capacity of each pool that loses a host meanwhile.
      type: list
      elements: dict
"""
