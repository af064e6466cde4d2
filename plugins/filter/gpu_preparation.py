# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the role gpu_host has anything to judge or to do on a host."""

from __future__ import annotations

from typing import Any, Callable, Dict

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.preparation import missing

DOCUMENTATION = r"""
name: gpu_preparation
short_description: What keeps the GPUs of a host from being prepared
version_added: 0.2.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - For the role P(gpufleet.inference.gpu_host#role), which judges or prepares a host only if this list is not empty.
options:
  _input:
    description: C(ansible_facts.gpu), as M(gpufleet.inference.gpu_facts) returns it.
    type: dict
    required: true
  required:
    description: The host must have a GPU.
    type: bool
    required: true
  pynvml:
    description: The GPUs must be read through NVML.
    type: bool
    required: true
  persistence:
    description: The GPUs must be in persistence mode.
    type: bool
    required: true
  expected:
    description: How many GPUs the host has by the inventory. V(0) expects any number.
    type: int
    required: true
"""

EXAMPLES = r"""
- name: Show what has to be done
  ansible.builtin.debug:
    msg: >-
      {{ ansible_facts.gpu
      | gpufleet.inference.gpu_preparation(required=true, pynvml=true, persistence=true, expected=8) }}
"""

RETURN = r"""
_value:
  description: What was found, one item each. It is empty for a prepared host.
  type: list
  elements: str
  sample: [persistence mode is off]
"""


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"gpu_preparation": missing}
