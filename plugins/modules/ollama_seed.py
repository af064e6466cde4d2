#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's models, offered to the others of the fleet for the length of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_seed
short_description: Offer models of an Ollama store to other hosts
version_added: 0.1.0
description:
  - Lets a host offer models of its store over the network, so that the other hosts need not download them, too. They
    pull them with the option O(gpufleet.inference.ollama_model#module:seeds).
  - The role P(gpufleet.inference.ollama#role) does both, with C(ollama_seeding).
  - It offers the files of these models and nothing else, only to clients that know the token, over plain HTTP. Ansible
    passes each model's digest to the peers, whose servers check every file against it.
  - A small program does it, as a unit of systemd that exists in memory only, in a sandbox, as the server's user. It
    ends when it is stopped, or by itself when nobody has requested anything for O(idle_timeout). Nothing of it stays.
  - Nothing depends on seeding. A host that cannot seed gives a warning, and RV(models) is empty.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.seeding
  - gpufleet.inference.ollama_server
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.ollama]
  check_mode:
    support: full
  diff_mode:
    support: none
    details: Nothing of the host is changed.
options:
  models:
    description: Names of models of the store. Required with O(state=started).
    type: list
    elements: str
  port:
    description: TCP port to listen on. Peers must be able to reach it.
    type: int
    default: 11435
seealso:
  - module: gpufleet.inference.ollama_model
"""

EXAMPLES = r"""
- name: Offer a model
  gpufleet.inference.ollama_seed:
    models: ["llama3.3:70b"]
    token: "{{ token }}"
    peers: [gpu2.example.com]
  register: seed

- name: Pull it from there, on another host
  gpufleet.inference.ollama_model:
    models: ["llama3.3:70b"]
    seeds:
      - url: "{{ hostvars['gpu1'].seed.url }}"
        token: "{{ token }}"
        models: "{{ hostvars['gpu1'].seed.models }}"

- name: Stop offering
  gpufleet.inference.ollama_seed:
    state: stopped
"""

RETURN = r"""
msg:
  description: What is offered, and where.
  returned: always
  type: str
  sample: http://192.0.2.7:11435 offers llama3.3:70b
url:
  description: Where it is offered.
  returned: when something is offered
  type: str
  sample: http://192.0.2.7:11435
models:
  description: Digests by the names of the models that are offered.
  returned: always
  type: dict
  sample: {"llama3.3:70b": "a6eb4748fd2990ad2952b2335a95a7f952d1a06119a0aa6a2df6cd052a93a3fa"}
unit:
  description: The unit that offers them.
  returned: always
  type: str
  sample: gpufleet-seed-11435.service
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import seeding
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        state=dict(type="str", choices=["started", "stopped"], default="started"),
        models=dict(type="list", elements="str"),
        token=dict(type="str", no_log=True),
        peers=dict(type="list", elements="str"),
        address=dict(type="str"),
        port=dict(type="int", default=11435),
        idle_timeout=dict(type="int", default=600),
        name=dict(type="str", default="ollama"),
        host=dict(type="str"),
    )


def main():
    run(argument_spec(), seeding.converge, required_if=[("state", "started", ("models", "token"))])


if __name__ == "__main__":
    main()
