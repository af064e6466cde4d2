#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's models of a hub, offered to the others of the fleet for the length of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_seed
short_description: Offer models to other hosts
version_added: 0.1.0
description:
  - Lets a host offer models over the network, so that the other hosts do not have to download them. These are models
    that M(gpufleet.inference.model_source) has downloaded, or models of an Ollama store.
  - The other hosts get them with the option O(gpufleet.inference.model_source#module:seeds) or
    O(gpufleet.inference.ollama_model#module:seeds). The roles P(gpufleet.inference.vllm#role) and
    P(gpufleet.inference.ollama#role) do both, with C(vllm_seeding) and C(ollama_seeding).
  - It offers the files of these models and nothing else, only to clients that know the token, over plain HTTP. Ansible
    passes the checksum of each file, or of an Ollama model's manifest, to the peers, which check what they get.
    For the content of a hub's model they trust this host, as it reports the checksums.
  - A small program serves them, as a transient systemd unit in a sandbox, as the Ollama server's user or as an
    unprivileged user. Models of a hub must therefore be readable by everyone, as
    M(gpufleet.inference.model_source) leaves them. It ends when it is stopped, or by itself when nobody has requested
    anything for O(idle_timeout). Nothing of it stays.
  - Nothing depends on seeding. A host that cannot seed gives a warning, and RV(models) is empty. A host whose record of
    a model names a file outside of it, or something other than a regular file, cannot.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
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
    description: Models, all of Ollama or all of hubs. Required with O(state=started).
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the model.
        type: str
        required: true
      source:
        description: Hub that it was downloaded from; V(ollama) for a model of an Ollama store.
        type: str
        choices: [huggingface, modelscope, ollama]
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
    default: 11435
  unit:
    description: Unit of the Ollama server whose models are offered.
    type: str
    default: ollama
  host:
    description: Where that server listens, as C(ADDRESS:PORT). Left out, what the unit's process has in
      E(OLLAMA_HOST).
    type: str
  state:
    description: Whether models are offered.
    type: str
    choices: [started, stopped]
    default: started
  token:
    description:
      - The secret that peers must send, 32 lower-case hexadecimal digits, new for each run. Required with
        O(state=started).
    type: str
  peers:
    description:
      - Names or addresses of the hosts that will ask. This host listens on the IPv4 address from which it reaches the
        first of them that it can resolve. O(state=started) requires this or O(address).
    type: list
    elements: str
  address:
    description: IPv4 address of this host to listen on. If left out, it is derived from O(peers).
    type: str
  idle_timeout:
    description: Seconds without a request after which it ends by itself.
    type: int
    default: 600
seealso:
  - module: gpufleet.inference.ollama_model
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

- name: Offer a model of Ollama
  gpufleet.inference.model_seed:
    models: [{name: "llama3.3:70b", source: ollama}]
    token: "{{ token }}"
    peers: [gpu2.example.com]
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
  sample: http://192.0.2.7:11435 offers huggingface Qwen/Qwen3-8B main
url:
  description: Where it is offered.
  returned: when something is offered
  type: str
  sample: http://192.0.2.7:11435
models:
  description:
    - Of hubs, commit and files with size and SHA-256 of each model, by source, name and revision. Of Ollama, digests by
      the names of the models.
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
  sample: gpufleet-seed-11435.service
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    model = dict(
        name=dict(type="str", required=True),
        source=dict(type="str", choices=["huggingface", "modelscope", "ollama"], default="huggingface"),
        revision=dict(type="str"),
        root=dict(type="path", default="/var/lib/gpufleet/models"),
    )
    return dict(
        state=dict(type="str", choices=["started", "stopped"], default="started"),
        models=dict(type="list", elements="dict", options=model),
        token=dict(type="str", no_log=True),
        peers=dict(type="list", elements="str"),
        address=dict(type="str"),
        port=dict(type="int", default=11435),
        idle_timeout=dict(type="int", default=600),
        unit=dict(type="str", default="ollama"),
        host=dict(type="str"),
    )


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import seeding
    from ansible_collections.gpufleet.inference.plugins.module_utils.seeding import model, offer

    readers = {"huggingface": model.read, "modelscope": model.read, "ollama": seeding.read}
    run(
        argument_spec(),
        lambda *given: offer.converge(*given, readers),
        required_if=[("state", "started", ("models", "token"))],
    )


if __name__ == "__main__":
    main()
