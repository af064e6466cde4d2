# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks by a bare script whether the llama.cpp servers are in their declared state; sends the module where not."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.modules import llama_server_service
from ansible_collections.gpufleet.inference.plugins.plugin_utils.ask import Asking, Work


class ActionModule(Asking):
    MODULE = "gpufleet.inference.llama_server_service"
    WORK = Work("llama_server.service", "look", llama_server_service.argument_spec())
