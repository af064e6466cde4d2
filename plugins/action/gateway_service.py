# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether the gateway is in its declared state; sends the module where it is not."""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from ansible_collections.gpufleet.inference.plugins.module_utils.gateway.service import secrets
from ansible_collections.gpufleet.inference.plugins.modules import gateway_service
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction, RemoteFunction


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.gateway_service"
    FUNCTION = RemoteFunction("gateway.service", "check", gateway_service.argument_spec())

    def secrets(self, arguments: Mapping[str, Any]) -> Iterable[str]:
        return secrets(arguments)
