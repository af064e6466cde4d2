# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether the llama.cpp servers are in their declared state; sends the module where they are not."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.modules import llama_server_service
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import RemoteFunction


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.llama_server_service"
    FUNCTION = RemoteFunction("llama_server.service", "check", llama_server_service.argument_spec())
