#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes the servers of a host out of a gateway's pools, and puts them back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_server
short_description: Drain a host at a gateway, and put it back
version_added: 0.1.0
description:
  - Sets the state of a host's servers in all pools of a gateway, and waits until none of their requests is running.
  - Run it on each gateway host (role P(gpufleet.inference.gateway#role)). It is for work outside of this collection,
    such as a reboot or a new driver. A run that changes a service drains it automatically.
  - The state persists until another one is declared, even if the gateway is reloaded, restarted or killed, or the host
    reboots. Meanwhile the gateway does not ask the host's agent.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.gateway]
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  host:
    description: Name of the host in the inventory.
    type: str
    required: true
  unit:
    description: One of its services, such as V(vllm@chat). If left out, all services of the host.
    type: str
    default: ""
  state:
    description:
      - V(ready) sends it requests again, subject to its agent's answers.
      - V(drained) sends it no new requests. Running requests finish.
      - V(maintenance) is the same, and the gateway does not check its health either.
    type: str
    choices: [ready, drained, maintenance]
    default: ready
  timeout:
    description:
      - Seconds that running and waiting requests get to finish. If any remain, the task fails and lists them; the
        servers stay out of the pools. V(0) does not wait.
    type: int
    default: 300
seealso:
  - module: gpufleet.inference.gateway_agent
"""

EXAMPLES = r"""
- name: Take a host out of all gateways
  gpufleet.inference.gateway_server:
    host: "{{ inventory_hostname }}"
    state: maintenance
  delegate_to: "{{ item }}"
  loop: "{{ groups.gateway }}"
  become: true

- name: Reboot it
  ansible.builtin.reboot:
  become: true

- name: Put it back
  gpufleet.inference.gateway_server:
    host: "{{ inventory_hostname }}"
    state: ready
  delegate_to: "{{ item }}"
  loop: "{{ groups.gateway }}"
  become: true
"""

RETURN = r"""
msg:
  description: The state, and in how many pools.
  returned: always
  type: str
  sample: "gpu1: drained in 3 pools"
pools:
  description: Pools that have a server of the host.
  returned: success
  type: list
  elements: str
servers:
  description: The previous state of each server, by pool and name.
  returned: success
  type: dict
  sample: {"chat/gpu1:ollama:11434": ready}
seconds:
  description: How long it took until no request was running.
  returned: success
  type: float
running:
  description: What was still running at the end.
  returned: always, unless the gateway has no such server
  type: list
  elements: str
  sample: [2 requests running and 0 waiting in chat/gpu1:ollama:11434]
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import server
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return {
        "host": {"type": "str", "required": True},
        "unit": {"type": "str", "default": ""},
        "state": {"type": "str", "choices": ["ready", "drained", "maintenance"], "default": "ready"},
        "timeout": {"type": "int", "default": 300},
    }


def main():
    run(argument_spec(), server.converge)


if __name__ == "__main__":
    main()
