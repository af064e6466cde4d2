#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent that reports the services of a GPU host to HAProxy gateways."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_agent
short_description: Report the services of a GPU host to gateways
version_added: 0.1.0
description:
  - Runs C(gpufleet-agent.service) on a GPU host. It answers the agent checks of HAProxy gateways, so they know which
    services of the host are ready, how busy they are, and when to send nothing.
  - A service gets no new requests while a run of this collection changes it (C(drain)), or when its last verification
    failed (C(down), with the verdict). Before a service is stopped, all gateways must have asked and its requests must
    have ended, within O(gpufleet.inference.vllm_service#module:drain_timeout).
  - The agent is one Python file without dependencies. It runs as an unprivileged user, in a sandbox, and writes
    nothing. It answers O(gateways) and its own host only.
  - The verification is that it answers for all O(services). If it fails, the previous state is restored.
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
  state:
    description: V(absent) stops and disables the agent and removes its files. Services are then no longer drained.
    type: str
    choices: [present, absent]
    default: present
  services:
    description: Services of this host that gateways send requests to.
    type: list
    elements: dict
    default: []
    suboptions:
      unit:
        description: Name of the unit, with or without C(.service).
        type: str
        required: true
      engine:
        description: The engine that it runs.
        type: str
        choices: [ollama, vllm, llama_server]
        required: true
      address:
        description: Address at which this host reaches it.
        type: str
        default: 127.0.0.1
      port:
        description: Its port.
        type: int
        required: true
      tls:
        description: Whether it speaks HTTPS.
        type: bool
        default: false
      max_concurrent:
        description:
          - How many requests it takes at a time. The gateways share them, as C(maxconn). V(0) sets no limit.
        type: int
        default: 0
      visible_devices:
        description:
          - The GPUs that are declared for it, in the form that its engine takes. Only O(on_unhealthy=drain) needs them.
        type: raw
        version_added: 0.2.0
  on_unhealthy:
    description:
      - With V(drain), gateways send no new requests to a service that has a GPU that must not be used (C(unfit) in the
        facts), and that stays there, as O(services[].visible_devices) names that GPU or is not set, or as the host
        has no fit GPU. It gets requests again with the first run that finds its GPUs fit, or others declared.
      - V(exclude) and V(fail) make no difference here. The role C(gpu_host) acts upon them.
    type: str
    choices: [exclude, drain, fail]
    default: exclude
    version_added: 0.2.0
  facts_timeout:
    description: Seconds that reading the GPUs may take. Only V(drain) needs them.
    type: float
    default: 10.0
    version_added: 0.2.0
  gateways:
    description:
      - Addresses or names of the gateways, as this host sees them. A name must be one that this host can resolve.
    type: list
    elements: str
    default: []
  local_gateway:
    description: The one of O(gateways) that runs on this host, and may therefore ask from a loopback address.
    type: str
    default: ""
  port:
    description: TCP port of the agent.
    type: int
    default: 8405
seealso:
  - module: gpufleet.inference.gateway_server
"""

EXAMPLES = r"""
- name: Report one vLLM to two gateways
  gpufleet.inference.gateway_agent:
    gateways: [192.0.2.10, 192.0.2.11]
    services:
      - {unit: vllm@chat, engine: vllm, address: 192.0.2.21, port: 8000, max_concurrent: 256}
  become: true
"""

RETURN = r"""
msg:
  description: What the agent answers for.
  returned: always
  type: str
  sample: "gpufleet-agent.service: 2 services, 2 gateways, port 8405"
held:
  description: The services to which gateways send no new requests because of their GPUs.
  returned: with O(state=present)
  type: list
  elements: str
  sample: []
verdict:
  description: V(ok), or the name of what was wrong.
  returned: always
  type: str
  sample: ok
restarted:
  description: Whether the agent was restarted.
  returned: always
  type: bool
rolled_back:
  description: Whether the previous state was restored after a failure.
  returned: always
  type: bool
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    service = {
        "unit": {"type": "str", "required": True},
        "engine": {"type": "str", "required": True, "choices": ["ollama", "vllm", "llama_server"]},
        "address": {"type": "str", "default": "127.0.0.1"},
        "port": {"type": "int", "required": True},
        "tls": {"type": "bool", "default": False},
        "max_concurrent": {"type": "int", "default": 0},
        "visible_devices": {"type": "raw"},
    }
    return {
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "services": {"type": "list", "elements": "dict", "default": [], "options": service},
        "on_unhealthy": {"type": "str", "choices": ["exclude", "drain", "fail"], "default": "exclude"},
        "facts_timeout": {"type": "float", "default": 10.0},
        "gateways": {"type": "list", "elements": "str", "default": []},
        "local_gateway": {"type": "str", "default": ""},
        "port": {"type": "int", "default": 8405},
    }


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import agent

    run(argument_spec(), agent.converge)


if __name__ == "__main__":
    main()
