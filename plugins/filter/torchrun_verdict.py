# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One verdict on a job from the results of its hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: torchrun_verdict
short_description: One verdict on a torchrun job from the results of its hosts
version_added: 0.1.0
description:
  - Says which process of all hosts failed first and why, how fast the processes exchanged data and which way, and which
    host is slower than the others.
author:
  - The gpufleet developers (@gpufleet)
positional: plan
options:
  _input:
    description: Per host the result of M(gpufleet.inference.torchrun_job).
    type: dict
    required: true
  plan:
    description: What the lookup P(gpufleet.inference.torchrun_plan#lookup) gives.
    type: dict
    required: true
  gpus:
    description: Per host C(nvlink) and C(rdma), whether its GPUs have NVLinks and whether it has RDMA ports in use.
    type: dict
    default: {}
  floor_gbps:
    description: Bus bandwidth in GB/s that the all-reduce must reach.
    type: float
    default: 0
seealso:
  - module: gpufleet.inference.torchrun_job
"""

EXAMPLES = r"""
---
- name: What came of the job
  ansible.builtin.debug:
    msg: "{{ (results | gpufleet.inference.torchrun_verdict(plan)).lines }}"
  vars:
    results: "{{ dict(ansible_play_hosts_all | zip(ansible_play_hosts_all | map('extract', hostvars, 'finished'))) }}"
    plan: "{{ lookup('gpufleet.inference.torchrun_plan') }}"
  run_once: true
"""

RETURN = r"""
_value:
  description:
    - C(name) (V(ok) or what is wrong), C(text), C(first_failure), C(restarts), C(nodes) (how many hosts the job ended
      with), C(transports) by host, C(allreduce) (the figures), C(outlier), C(late) (the processes that were
      behind when an operation timed out; where nobody is known to be, those that reported nothing), and C(lines) for a
      person.
  type: dict
"""

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import one_line
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import report

LONGEST = 2000  # characters of a line


def torchrun_verdict(results, plan, gpus=None, floor_gbps=0.0):
    if not isinstance(results, dict) or not isinstance(plan, dict):
        raise AnsibleFilterError("torchrun_verdict: expected a dictionary of results by host, and a plan")
    try:
        found = report.of_job(results, plan, gpus, float(floor_gbps))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            "torchrun_verdict: a host's result is not one of gpufleet.inference.torchrun_job: %s: %s"
            % (type(error).__name__, one_line(str(error)))
        ) from error
    return dict(
        found, text=one_line(found["text"], LONGEST), lines=[one_line(line, LONGEST) for line in found["lines"]]
    )


class FilterModule:
    """The filter under its name."""

    def filters(self):
        return {"torchrun_verdict": torchrun_verdict}
