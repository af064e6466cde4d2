#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's models of a hub, offered to the others of the fleet for the length of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_seed
short_description: Offer models of a hub to other hosts
version_added: 0.1.0
description:
  - Lets a host offer models that M(gpufleet.inference.model_source) has downloaded, so that the other hosts need not
    download them, too. They get them with the option O(gpufleet.inference.model_source#module:seeds).
  - The role P(gpufleet.inference.vllm#role) does both, with C(vllm_seeding).
  - The other hosts trust it for the content of the files, as it reports their checksums.
  - It offers the files of these models and nothing else, only to clients that know the token, over plain HTTP. Ansible
    passes the checksum of each file to the peers.
  - A small program does it, as a unit of systemd that exists in memory only, in a sandbox, as a user without rights. It
    ends when it is stopped, or by itself when nobody has requested anything for O(idle_timeout). So all must be able
    to read the files, as M(gpufleet.inference.model_source) leaves them.
  - Seeding helps, but nothing depends on it. A host that cannot seed gives a warning, and RV(models) is empty. A host
    whose record of a model names a file outside of it, or something other than a regular file, cannot.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.seeding
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.models]
  check_mode:
    support: full
  diff_mode:
    support: none
    details: Nothing of the host is changed.
options:
  models:
    description: Models, as declared for M(gpufleet.inference.model_source). Required with O(state=started).
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the model.
        type: str
        required: true
      source:
        description: Hub that it was downloaded from.
        type: str
        choices: [huggingface, modelscope]
        default: huggingface
      revision:
        description: The declared revision.
        type: str
      root:
        description: Folder for the models of all sources.
        type: path
        default: /var/lib/gpufleet/models
  port:
    description: TCP port to listen on. Peers must be able to reach it.
    type: int
    default: 11436
seealso:
  - module: gpufleet.inference.model_source
"""

EXAMPLES = r"""
- name: Offer a model
  gpufleet.inference.model_seed:
    models: [{name: Qwen/Qwen3-8B}]
    token: "{{ token }}"
    peers: [gpu2.example.com]
  become: true
  register: seed

- name: Get it from there, on another host
  gpufleet.inference.model_source:
    name: Qwen/Qwen3-8B
    seeds:
      - url: "{{ hostvars['gpu1'].seed.url }}"
        token: "{{ token }}"
        models: "{{ hostvars['gpu1'].seed.models }}"
  become: true

- name: Stop offering
  gpufleet.inference.model_seed:
    state: stopped
  become: true
"""

RETURN = r"""
msg:
  description: What is offered, and where.
  returned: always
  type: str
  sample: http://192.0.2.7:11436 offers huggingface Qwen/Qwen3-8B main
url:
  description: Where it is offered.
  returned: when something is offered
  type: str
  sample: http://192.0.2.7:11436
models:
  description: Commit and files with size and SHA-256 of each model, by source, name and revision.
  returned: always
  type: dict
  sample:
    huggingface Qwen/Qwen3-8B main:
      commit: b968826d9c46dd6066d109eabc6255188de91218
      files:
        - {path: config.json, size: 728, sha256: "f3e1a1c0…"}
unit:
  description: The unit that offers them.
  returned: always
  type: str
  sample: gpufleet-seed-11436.service
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.seeding import model
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    model = dict(
        name=dict(type="str", required=True),
        source=dict(type="str", choices=["huggingface", "modelscope"], default="huggingface"),
        revision=dict(type="str"),
        root=dict(type="path", default="/var/lib/gpufleet/models"),
    )
    return dict(
        state=dict(type="str", choices=["started", "stopped"], default="started"),
        models=dict(type="list", elements="dict", options=model),
        token=dict(type="str", no_log=True),
        peers=dict(type="list", elements="str"),
        address=dict(type="str"),
        port=dict(type="int", default=11436),
        idle_timeout=dict(type="int", default=600),
    )


def main():
    run(argument_spec(), model.converge, required_if=[("state", "started", ("models", "token"))])


if __name__ == "__main__":
    main()
