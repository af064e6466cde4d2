#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several simultaneous users of an OpenAI-compatible endpoint, and how long each waits."""

from __future__ import annotations

DOCUMENTATION = r"""
module: inference_loadtest
short_description: Measure an OpenAI-compatible endpoint with several simultaneous users
version_added: 0.2.0
description:
  - Sends requests of several simultaneous users to an endpoint such as vLLM's, llama.cpp's, or Ollama's under C(/v1),
    from the host on which the task runs, and measures how long each user waits.
  - First, each model generates one token that is not measured, so that it is loaded. A model with a chat template
    receives chats, any other model completions.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.endpoint
attributes:
  check_mode:
    support: none
  diff_mode:
    support: none
  idempotent:
    support: N/A
    details: It measures, and changes nothing that is declared.
options:
  models:
    description: Models to ask. Users are assigned to them in turn, so that each of two models has half of the users.
    type: list
    elements: str
    required: true
  users:
    description: Users that send requests at the same time.
    type: int
    default: 4
  requests:
    description: Requests of each user, one after the other.
    type: int
    default: 1
  rate:
    description:
      - Requests per second that all users together begin, at equal intervals. A user whose answer is late begins the
        next request late. If unset, each begins its next request as soon as it has an answer.
    type: float
  stream:
    description: Whether answers are streamed. Without a stream, only whole answers can be timed.
    type: bool
    default: true
  tokens:
    description: Tokens of an answer, at most.
    type: int
    default: 128
  prompt:
    description: The prompt. The number of the user and of the request is put before it.
    type: str
    default: Tell a long story about a ship that looks for a new home.
  timeout:
    description: Seconds within which an answer must be complete, including the time in the queue and to load the model.
    type: float
    default: 600.0
seealso:
  - module: gpufleet.inference.inference_endpoint
"""

EXAMPLES = r"""
- name: Eight users of one model
  gpufleet.inference.inference_loadtest:
    url: http://127.0.0.1:8000
    api_key: "{{ vault_vllm_key }}"
    models: [chat]
    users: 8
    requests: 4
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
requests_per_second:
  description: Answered requests divided by the total time.
  returned: success
  type: float
tokens_per_second:
  description: Tokens of all answers divided by the total time.
  returned: success
  type: float
models:
  description: What the users of each model saw. Times are C(mean), C(median), C(p99) and C(most).
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
    failed:
      description: Requests without a whole answer.
      returned: always
      type: int
    tokens:
      description: Tokens of all answers.
      returned: always
      type: int
    first_token_seconds:
      description: Seconds to the first token. Null without a stream, and if no request was answered.
      returned: always
      type: dict
    between_tokens_seconds:
      description: Seconds between two tokens after the first, as the average of each answer.
      returned: always
      type: dict
    answer_seconds:
      description: Seconds to the last token.
      returned: always
      type: dict
errors:
  description: Each error that a request ended with, once.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint import loadtest
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        url=dict(type="str", required=True),
        api_key=dict(type="str", no_log=True),
        models=dict(type="list", elements="str", required=True),
        users=dict(type="int", default=4),
        requests=dict(type="int", default=1),
        rate=dict(type="float"),
        stream=dict(type="bool", default=True),
        tokens=dict(type="int", default=128, no_log=False),
        prompt=dict(type="str", default="Tell a long story about a ship that looks for a new home."),
        timeout=dict(type="float", default=600.0),
        validate_certs=dict(type="bool", default=True),
        ca_path=dict(type="path"),
    )


def main():
    run(argument_spec(), loadtest.run, supports_check_mode=False)


if __name__ == "__main__":
    main()
