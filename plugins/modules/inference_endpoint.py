#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any OpenAI-compatible endpoint: ready, idle, and one token with figures."""

from __future__ import annotations

DOCUMENTATION = r"""
module: inference_endpoint
short_description: Wait until an OpenAI-compatible endpoint is ready or idle, and let it generate a token
version_added: 0.1.0
description:
  - Asks an endpoint such as vLLM's, or Ollama's under C(/v1), from the host on which the task runs. Nothing is changed.
  - Ready means that the list of models answers and is not empty; a C(/health) that answers is not a proof and is not
    asked.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.endpoint
attributes:
  check_mode:
    support: full
    details: It reads alone, in check mode as well.
  diff_mode:
    support: none
options:
  state:
    description:
      - V(ready) waits until it lists its models, O(model) among them.
      - V(idle) also waits until C(/metrics) reports no running and no waiting request. Ollama does not report them.
    type: str
    choices: [ready, idle]
    default: ready
  model:
    description: A model that must be served. If unset, any model will do, and O(smoke) uses the first.
    type: str
  smoke:
    description:
      - Let the model generate O(tokens) tokens, as a chat, or as a completion if it has no chat template.
      - A model of vLLM that generates no text computes an embedding, a score, a class or a pooled output instead.
    type: bool
    default: false
  tokens:
    description: Tokens that O(smoke) asks for. More than one makes RV(tokens_per_second) a rate worth comparing.
    type: int
    default: 1
  timeout:
    description: Maximum seconds for everything.
    type: float
    default: 60.0
seealso:
  - module: gpufleet.inference.ollama_service
"""

EXAMPLES = r"""
- name: The chat model answers, and how fast
  gpufleet.inference.inference_endpoint:
    url: http://127.0.0.1:8000
    api_key: "{{ vault_vllm_key }}"
    model: chat
    smoke: true
    tokens: 32

- name: Wait until no request is left, a minute at most
  gpufleet.inference.inference_endpoint:
    url: http://127.0.0.1:8000
    state: idle
    timeout: 60
"""

RETURN = r"""
msg:
  description: The outcome in one line, or what failed.
  returned: always
  type: str
  sample: ok · 1 model · chat answered in 0.21 s, 151.2 tokens/s · 0 running, 0 waiting
verdict:
  description:
    - V(ok), or one of V(not_ready), V(unauthorized), V(model_missing), V(stalled), V(not_generated), V(no_metrics),
      V(busy).
  returned: unless an option was wrong
  type: str
  sample: ok
url:
  description: The endpoint without C(/v1).
  returned: success
  type: str
  sample: http://127.0.0.1:8000
models:
  description: Names of the models that it serves.
  returned: success
  type: list
  elements: str
  sample: [chat]
model:
  description: The model that answered.
  returned: success, with O(smoke)
  type: str
  sample: chat
task:
  description: What it was asked for, V(text), V(embeddings), V(scores), V(classification) or V(pooling).
  returned: success, with O(smoke)
  type: str
  sample: text
latency_seconds:
  description: Seconds from the request to the whole answer.
  returned: success, with O(smoke)
  type: float
  sample: 0.212
tokens_per_second:
  description: Tokens that were generated, by that time; null for a RV(task) that generates none.
  returned: success, with O(smoke)
  type: float
  sample: 151.2
running:
  description: Requests that the server is processing; null where it does not report them.
  returned: success
  type: int
  sample: 0
waiting:
  description: Requests that are waiting in the server; null where it does not report them.
  returned: success
  type: int
  sample: 0
elapsed_seconds:
  description: Seconds that everything took.
  returned: success
  type: float
  sample: 0.4
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.probe import probe
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        url=dict(type="str", required=True),
        api_key=dict(type="str", no_log=True),
        state=dict(type="str", choices=["ready", "idle"], default="ready"),
        model=dict(type="str"),
        smoke=dict(type="bool", default=False),
        tokens=dict(type="int", default=1, no_log=False),
        timeout=dict(type="float", default=60.0),
        validate_certs=dict(type="bool", default=True),
        ca_path=dict(type="path"),
    )


def main():
    run(argument_spec(), probe)


if __name__ == "__main__":
    main()
