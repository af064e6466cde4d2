#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one Ollama server is, has and does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_info
short_description: Version, configuration in force, models and GPU memory of an Ollama server
version_added: 0.1.0
description:
  - Reports a running Ollama server's version, configuration, models and GPU memory. It loads and changes nothing.
  - The configuration is the one that the server understood, out of its own log of its present start, which is not
    always the one that was meant.
  - GPU memory is what NVML names by process, next to what the server itself reports.
  - Of a server at O(host) that is not the one of unit O(name), log and processes are not known. What comes from them is
    empty.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.ollama_server
  - gpufleet.inference.attributes.info
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.ollama]
options:
  facts_timeout:
    description: Seconds that reading the GPUs may take.
    type: float
    default: 10.0
seealso:
  - module: gpufleet.inference.ollama_model
  - module: gpufleet.inference.gpu_facts
"""

EXAMPLES = r"""
- name: Inspect the server
  gpufleet.inference.ollama_info:
  become: true
  register: ollama

- name: No model may be on the CPU
  ansible.builtin.assert:
    that: item.size_vram_bytes == item.size_bytes
  loop: "{{ ollama.loaded }}"
"""

RETURN = r"""
msg:
  description: Summary in one line.
  returned: always
  type: str
  sample: "Ollama 0.32.15 at http://127.0.0.1:11434: 3 models, 1 loaded"
running:
  description: Whether the unit runs. When it does not, nothing else is returned but RV(unit).
  returned: always
  type: bool
unit:
  description: The unit.
  returned: always
  type: str
  sample: ollama.service
url:
  description: Where it listens, as it is reached from the host itself.
  returned: when it runs
  type: str
  sample: http://127.0.0.1:11434
version:
  description: Version of the server.
  returned: when it runs
  type: str
  sample: 0.32.15
store:
  description: Directory of its models; null when the process does not reveal it.
  returned: when it runs
  type: str
  sample: /usr/share/ollama/.ollama/models
configuration:
  description:
    - Each setting by the name of its variable, as the server logged that it understood it.
    - Null when the journal no longer has the start.
  returned: when it runs
  type: dict
  sample: {OLLAMA_KEEP_ALIVE: "2562047h47m16.854775807s", OLLAMA_SCHED_SPREAD: "true"}
misread:
  description: Variables that the server could not read and replaced by its defaults, with the value that it found.
  returned: when it runs
  type: dict
  sample: {OLLAMA_NUM_PARALLEL: "many"}
devices:
  description: Devices that the server found at its start; null when the journal no longer has it.
  returned: when it runs
  type: list
  elements: dict
  contains:
    id:
      description: The server's id for it.
      returned: always
      type: str
    library:
      description: C(CUDA), C(ROCm), C(Vulkan), or C(cpu) when it found no GPU.
      returned: always
      type: str
    description:
      description: Its model.
      returned: always
      type: str
    pci_bus_id:
      description: PCI bus id; empty where the server did not know it.
      returned: always
      type: str
models:
  description: The models of the store.
  returned: when it runs
  type: list
  elements: dict
  contains:
    name:
      description: Name with its tag.
      returned: always
      type: str
      sample: llama3.3:70b
    digest:
      description: Digest of its manifest, 64 hexadecimal digits.
      returned: always
      type: str
    size_bytes:
      description: Size of its files.
      returned: always
      type: int
    modified_at:
      description: When it was stored, as RFC 3339.
      returned: always
      type: str
    family:
      description: Architecture.
      returned: always
      type: str
      sample: llama
    parameters:
      description: Number of parameters, as the server writes it.
      returned: always
      type: str
      sample: 70.6B
    quantization:
      description: Type of its weights.
      returned: always
      type: str
      sample: Q4_K_M
    capabilities:
      description: What it can do; empty before Ollama 0.30.
      returned: always
      type: list
      elements: str
      sample: [completion, tools]
loaded:
  description: The models that the server reports as loaded.
  returned: when it runs
  type: list
  elements: dict
  contains:
    name:
      description: Name with its tag.
      returned: always
      type: str
    digest:
      description: Digest of its manifest.
      returned: always
      type: str
    size_bytes:
      description: Memory that it takes, as the server reports.
      returned: always
      type: int
    size_vram_bytes:
      description: The part of it on GPUs, as the server reports. Less than RV(loaded[].size_bytes) runs on the CPU.
      returned: always
      type: int
    context:
      description: Tokens of context of one request.
      returned: always
      type: int
    expires_at:
      description: When it will be unloaded, as RFC 3339. A year after 2200 means never.
      returned: always
      type: str
    held_bytes:
      description:
        - Memory that its worker holds, as NVML reports, in bytes by index of the GPU.
        - Empty, though RV(loaded[].size_vram_bytes) is not 0, when the worker is dead, which the server does not
          notice. See RV(gpu_source) first.
      returned: always
      type: dict
      sample: {"0": 12513705984, "1": 11962155008}
gpus:
  description: The GPUs of the host.
  returned: when it runs
  type: list
  elements: dict
  contains:
    index:
      description: Index, as NVML counts.
      returned: always
      type: int
    uuid:
      description: UUID.
      returned: always
      type: str
    name:
      description: Model.
      returned: always
      type: str
    held_bytes:
      description: Memory that processes of the unit hold there.
      returned: always
      type: int
gpu_source:
  description: Where the GPUs were read, as M(gpufleet.inference.gpu_facts) names it. Memory by process needs V(nvml) or
    V(nvidia-smi).
  returned: when it runs
  type: str
  sample: nvml
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import info
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        name=dict(type="str", default="ollama"), host=dict(type="str"), facts_timeout=dict(type="float", default=10.0)
    )


def main():
    run(argument_spec(), info.read)


if __name__ == "__main__":
    main()
