# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether the gateway is in its declared state; sends the module where it is not."""

from __future__ import annotations

from typing import Any, Dict, Mapping

from ansible_collections.gpufleet.inference.plugins.modules import gateway_service
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction, RemoteFunction


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.gateway_service"
    FUNCTION = RemoteFunction("gateway.service", "check", gateway_service.argument_spec())

    def prepare(self, arguments: Dict[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        """Engines' keys leave the pools for an option of their own, which is logged and shown nowhere."""
        pools, secret = {}, dict(arguments.get("engine_keys") or {})
        for model, rows in (arguments.get("pools") or {}).items():
            pools[model] = [{name: value for name, value in row.items() if name != "key"} for row in rows]
            secret.update(("%s %s" % (row["host"], row["unit"]), row["key"]) for row in rows if row.get("key"))
        return dict(arguments, pools=pools, engine_keys=secret)
