# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a distributed PyTorch job, from the facts of its hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: torchrun_plan
short_description: Ranks, rendezvous, interfaces and variables of a distributed PyTorch job
version_added: 0.1.0
description:
  - From what M(gpufleet.inference.torchrun_facts) has gathered on all hosts of a job, decides its ranks (in the order
    of the inventory), the address of the rendezvous, on each host the network interface and the RDMA ports that lead to
    the others, and the variables that NCCL and Gloo need, each with its reason. Left out is what these libraries choose
    themselves, whatever interfaces the host has or gets, such as those of containers.
  - Finds the classic mistakes before the job does, see RV(_raw[].findings).
  - The plan is for M(gpufleet.inference.torchrun_job). What it contains about a host, such as
    C(plan.nodes[inventory_hostname].environment), serves any other program over several hosts, too.
author:
  - The gpufleet developers (@gpufleet)
options:
  _terms:
    description: Names of the hosts, in the order of their ranks, or lists of them. All hosts of the play by default.
    type: list
    elements: raw
  job:
    description: Name of the job, whose own processes may hold the port of the rendezvous.
    type: str
    default: ""
  nnodes:
    description: The number of hosts that is expected. Any number by default.
    type: int
  min_nodes:
    description: With how many hosts the job may run, for an elastic one. It needs all by default.
    type: int
  nproc_per_node:
    description: Processes on each host. By default one for each of its GPUs, or of O(gpus), or one where there is none.
    type: int
  gpus:
    description:
      - Indexes of the GPUs that the job uses on each host, as C(nvidia-smi) counts them. All by default. An empty list
        is for a job that computes on the CPU.
      - The job claims them while it runs, see M(gpufleet.inference.torchrun_job).
    type: list
    elements: int
  max_restarts:
    description: How often torchrun restarts the processes when one has failed.
    type: int
    default: 0
  rendezvous:
    description:
      - V(static) keeps the order of the hosts, V(c10d) can bring them together again after a failure and orders them by
        their addresses, V(standalone) is for one host.
      - By default the first of them that can do what O(min_nodes) and O(max_restarts) ask for.
    type: str
    choices: [static, c10d, standalone]
  master:
    description: Name of the host of the rendezvous, which is then the first. The first host by default.
    type: str
  master_addr:
    description: Its address. By default the one at which the other hosts reach it.
    type: str
  master_port:
    description: The port of the rendezvous.
    type: int
    default: 29500
  network:
    description: The subnet to use, such as V(10.1.0.0/16). Chosen by default.
    type: str
seealso:
  - module: gpufleet.inference.torchrun_facts
  - module: gpufleet.inference.torchrun_job
"""

EXAMPLES = r"""
---
- name: Show the plan
  ansible.builtin.debug:
    msg: "{{ lookup('gpufleet.inference.torchrun_plan', groups['torchrun'], nproc_per_node=8).text.splitlines() }}"
  run_once: true

- name: Give a vLLM over several hosts its interfaces
  gpufleet.inference.systemd_override:
    unit: vllm@chat
    environment: "{{ plan.nodes[inventory_hostname].environment }}"
  vars:
    plan: "{{ lookup('gpufleet.inference.torchrun_plan', groups['vllm']) }}"
"""

RETURN = r"""
_raw:
  description: The plan.
  type: list
  elements: dict
  contains:
    host:
      description: The host that has asked, whose part is in RV(_raw[].nodes).
      type: str
    text:
      description: The plan on one page, for a person.
      type: str
    nnodes:
      description: Number of hosts, and RV(_raw[].min_nodes), with how many the job may run.
      type: int
    min_nodes:
      description: With how many hosts the job may run.
      type: int
    world_size:
      description: Number of processes.
      type: int
    rendezvous:
      description: V(static), V(c10d) or V(standalone).
      type: str
    master:
      description: Host of the rendezvous.
      type: str
    master_addr:
      description: Its address.
      type: str
    master_port:
      description: Its port.
      type: int
    max_restarts:
      description: As given.
      type: int
    nodes:
      description:
        - Per host C(node_rank), C(first_rank), C(nproc_per_node), C(gpus) (C(index) and C(uuid) of each), C(script)
          (its digest), C(address), C(interface), C(rdma) (the RDMA ports to use), C(environment) and C(reasons), the
          reason of each variable.
      type: dict
    ranks:
      description: Per process C(rank), C(host), C(node_rank) and C(local_rank).
      type: list
      elements: dict
    findings:
      description:
        - What is wrong, or looks so, each C(level) (V(error) or V(warning)), C(code), C(host) and C(text).
        - The codes are V(group_size), V(no_facts), V(no_network), V(loopback_master), V(loopback_name), V(not_tried),
          V(rendezvous_blocked), V(port_taken), V(clock_skew), V(mtu_differs), V(no_torch), V(torch_differs),
          V(nccl_differs), V(script_differs), V(code_differs), V(no_gpu), V(gpu_in_use), V(too_many_processes),
          V(idle_gpus).
      type: list
      elements: dict
    errors:
      description: The texts of the findings because of which the job would not run.
      type: list
      elements: str
"""

from typing import Any, Dict, List, Optional

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import one_line, printable
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import plan

LONGEST = 2000  # characters of a finding
OPTIONS = (
    *("job", "nnodes", "min_nodes", "nproc_per_node", "gpus", "max_restarts", "rendezvous"),
    *("master", "master_addr", "master_port", "network"),
)


class LookupModule(LookupBase):
    """Collects the facts and has the plan made."""

    def run(self, terms: List[Any], variables: Optional[Dict[str, Any]] = None, **kwargs: Any) -> List[Dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        variables = variables or {}
        names = [name for term in terms for name in (term if isinstance(term, list) else [term])]
        names = names or list(variables.get("ansible_play_hosts_all", []))
        hostvars = variables["hostvars"]
        unknown = [name for name in names if name not in hostvars]
        if unknown:
            raise AnsibleLookupError("torchrun_plan: the inventory has no host %s" % ", ".join(unknown))
        told = {name: hostvars[name].get("ansible_facts") or {} for name in names}
        facts = {name: one.get("torchrun") for name, one in told.items()}
        reach = {name: one["torchrun_reach"] for name, one in told.items() if one.get("torchrun_reach") is not None}
        options = {name: self.get_option(name) for name in OPTIONS}
        try:
            made = plan.make(facts, reach or None, **options)
        except (Refused, ValueError) as error:
            raise AnsibleLookupError("torchrun_plan: %s" % error) from error
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise AnsibleLookupError(
                "torchrun_plan: the facts of one of %s are not those of gpufleet.inference.torchrun_facts: %s: %s"
                % (", ".join(names), type(error).__name__, one_line(str(error)))
            ) from error
        return [dict(_shown(made), host=variables.get("inventory_hostname"))]


def _shown(made: Dict[str, Any]) -> Dict[str, Any]:
    """The plan with all that is shown of it made safe for a terminal: names in it are what the hosts say."""
    return dict(
        made,
        text=printable(made["text"]),
        matrix=[printable(line) for line in made["matrix"]],
        errors=[one_line(text, LONGEST) for text in made["errors"]],
        findings=[dict(one, text=one_line(one["text"], LONGEST)) for one in made["findings"]],
    )
