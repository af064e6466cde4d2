#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation alone: the action plugin of the same name does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout
short_description: One step of a rollout
version_added: 0.2.0
description:
  - The steps of the playbook C(gpufleet.inference.rollout), which is the way to use them. They plan the rollout, decide
    when a host may be changed, keep the journal, and write the receipt. The roles change the hosts.
  - Everything happens on the controller, apart from the questions to the gateways.
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
  step:
    description:
      - V(look) reads what the roles have found on a host, V(unfit) why they failed there. V(gateways) asks a gateway
        which hosts serve. V(plan) plans the rollout from that, and refuses it where it cannot succeed.
      - V(holder) tells in whose name the hosts are reserved, V(reserved) whether all of them are. V(released) records
        which hosts were released, and warns of the others.
      - V(room) asks a gateway until its pools can do without a batch. V(admit) decides whether a host may be changed
        now. V(applied) follows; for the canary, V(soak) and V(compare), and V(back) if it does worse than the others;
        V(done) or V(failed).
      - V(report) writes the receipt. V(control) is for the playbook C(gpufleet.inference.rollout_control).
    type: str
    choices: [look, unfit, gateways, plan, holder, reserved, released, room, admit, applied, soak, compare, back, done,
              failed, report, control]
    required: true
  request:
    description: For O(step=control), what to do.
    type: str
    choices: [status, pause, resume, stop]
notes:
  - Its variables, such as C(rollout_min_ready), are those of the playbook.
"""

EXAMPLES = r"""
- name: Ask whether this host may be changed now
  gpufleet.inference.rollout:
    step: admit
  register: rollout_admission
"""

RETURN = r"""
msg:
  description: What the step found or did.
  returned: always
  type: str
  sample: "pool chat has 3 of 4 hosts ready, and 3 must stay so"
go:
  description: Whether the host may be changed now.
  returned: with O(step=admit)
  type: bool
canary:
  description: Whether the host is a canary.
  returned: with O(step=admit)
  type: bool
holder:
  description: By what the hosts know the rollouts of this state folder.
  returned: with O(step=holder)
  type: str
run:
  description: The name of the rollout.
  returned: with O(step=holder)
  type: str
by:
  description: Who runs it, and on which controller.
  returned: with O(step=holder)
  type: str
refused:
  description: Whether a host could not be reserved.
  returned: with O(step=reserved)
  type: bool
plan:
  description: The units that change, the canary, the pools, what changes of each service, the predicted seconds, and
    what is left of each pool at each step.
  returned: with O(step=plan)
  type: dict
lines:
  description: The plan as text.
  returned: with O(step=plan)
  type: list
  elements: str
receipt:
  description: What the rollout was predicted to cost, and what it cost.
  returned: with O(step=report)
  type: dict
path:
  description: The file on the controller that contains the receipt.
  returned: with O(step=report)
  type: str
"""
