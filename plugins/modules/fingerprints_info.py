#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recorded answers of the services of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fingerprints_info
short_description: Read the recorded answers of the services of a host
version_added: 0.2.0
description:
  - The answers that were accepted for each service with the option C(fingerprints), as they are recorded in
    C(/var/lib/gpufleet/fingerprints). No model is asked.
  - The filter P(gpufleet.inference.differing_answers#filter) compares those of several hosts.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.attributes.info
options: {}
seealso:
  - module: gpufleet.inference.generations_info
"""

EXAMPLES = r"""
- name: Read the recorded answers
  gpufleet.inference.fingerprints_info:
  become: true
  register: answers
"""

RETURN = r"""
msg:
  description: How many services have recorded answers.
  returned: always
  type: str
  sample: recorded answers of 2 services
fingerprints:
  description:
    - For each unit, the C(model), the C(prompts), the C(answers) to them, and the C(tolerance) of log probabilities.
    - An answer is a list of tokens. Each is a list of its text, its log probability, and the most likely tokens there.
  returned: always
  type: dict
  sample:
    vllm@chat.service:
      model: llama3
      prompts: [Say hello.]
      answers: [[[Hello, -0.02, {Hello: -0.02, Hey: -4.1}]]]
      tolerance: 0.1
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.serving import fingerprint
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def main():
    run({}, fingerprint.report)


if __name__ == "__main__":
    main()
