# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether the vLLM instances are in their declared states; sends the module if they are not."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.modules import vllm_service
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import RemoteFunction


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.vllm_service"
    FUNCTION = RemoteFunction("vllm.service", "check", vllm_service.argument_spec())
