#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several users of an Ollama server at once, and what each of them waits for."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_loadtest
short_description: Measure an Ollama server under several users at once
version_added: 0.1.0
description:
  - Sends requests of several users to a server at the same moment, from the host itself, and measures what each of them
    waits for. Reports what the GPUs hold afterwards.
  - The models are loaded first, which is not measured. They stay loaded as the server keeps them.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.ollama_server
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.ollama]
  check_mode:
    support: none
  diff_mode:
    support: none
  idempotent:
    support: N/A
    details: It measures, and changes nothing that is declared.
options:
  models:
    description: Models to ask. Users take them in turn, so that with two of them each has half of the users.
    type: list
    elements: str
    required: true
  users:
    description: Users that ask at the same time.
    type: int
    default: 4
  requests:
    description: Requests of each user, one after the other.
    type: int
    default: 1
  tokens:
    description: Tokens of an answer, at most.
    type: int
    default: 128
  prompt:
    description: What is asked. Each user's own number is put before it.
    type: str
    default: Tell a long story about a ship that looks for a new home.
  timeout:
    description: Seconds within which an answer must be complete, waiting in the queue and loading the model included.
    type: int
    default: 600
  facts_timeout:
    description: Seconds that reading the GPUs may take.
    type: float
    default: 10.0
seealso:
  - module: gpufleet.inference.ollama_service
    description: Its options O(gpufleet.inference.ollama_service#module:num_parallel),
      O(gpufleet.inference.ollama_service#module:max_loaded_models) and
      O(gpufleet.inference.ollama_service#module:max_queue) decide what is measured here.
"""

EXAMPLES = r"""
- name: Eight users of one model
  gpufleet.inference.ollama_loadtest:
    models: ["llama3.3:70b"]
    users: 8
  become: true
  register: load

- name: Show the report
  ansible.builtin.debug:
    var: load.report
"""

RETURN = r"""
report:
  description: The whole result as readable lines.
  returned: success
  type: list
  elements: str
users:
  description: Number of users.
  returned: success
  type: int
seconds:
  description: Seconds until the last answer was complete.
  returned: success
  type: float
tokens_per_second:
  description: Tokens of all answers divided by the total time.
  returned: success
  type: float
models:
  description: What the users of each model saw.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The model.
      returned: always
      type: str
    requests:
      description: Requests to it.
      returned: always
      type: int
    refused:
      description: Requests refused because the queue was full.
      returned: always
      type: int
    failed:
      description: Requests that failed for another reason.
      returned: always
      type: int
    first_token_seconds:
      description: Seconds to the first token, C(least), C(median) and C(most). Null when no request was answered.
      returned: always
      type: dict
    queue_seconds:
      description: The part of it that was neither loading nor reading the prompt, which is the time in the queue.
      returned: always
      type: dict
    tokens_per_second:
      description: Speed at which an answer came once it had begun.
      returned: always
      type: dict
gpus:
  description: The GPUs of the host at the end, the models still loaded.
  returned: success
  type: list
  elements: dict
  contains:
    index:
      description: Index, as NVML counts.
      returned: always
      type: int
    name:
      description: Model.
      returned: always
      type: str
    used_bytes:
      description: Memory in use there, null when the driver does not report it.
      returned: always
      type: int
    held_bytes:
      description: The part of it that the processes of the unit hold.
      returned: always
      type: int
errors:
  description: Each error that a request ended with, once.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import loadtest
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        models=dict(type="list", elements="str", required=True),
        users=dict(type="int", default=4),
        requests=dict(type="int", default=1),
        tokens=dict(type="int", default=128, no_log=False),
        prompt=dict(type="str", default="Tell a long story about a ship that looks for a new home."),
        name=dict(type="str", default="ollama"),
        host=dict(type="str"),
        timeout=dict(type="int", default=600),
        facts_timeout=dict(type="float", default=10.0),
    )


def main():
    run(argument_spec(), loadtest.run, supports_check_mode=False)


if __name__ == "__main__":
    main()
