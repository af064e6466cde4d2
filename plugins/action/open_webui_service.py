# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether Open WebUI is in its declared state; sends the module where it is not."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.modules import open_webui_service
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction, RemoteFunction


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.open_webui_service"
    FUNCTION = RemoteFunction("open_webui.service", "check", open_webui_service.argument_spec())
