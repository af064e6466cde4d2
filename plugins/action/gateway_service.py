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
        """Move the engines' keys from the pools to an option of their own, which is never logged or shown. Anything
        malformed stays, for the module to reject."""
        given = arguments.get("pools") or {}
        if not isinstance(given, Mapping):
            return arguments
        pools, secret = dict(given), dict(arguments.get("engine_keys") or {})
        for model, rows in given.items():
            if isinstance(rows, list):
                pools[model] = [_without_key(row, secret) if isinstance(row, Mapping) else row for row in rows]
        return dict(arguments, pools=pools, engine_keys=secret)


def _without_key(row: Mapping[str, Any], secret: Dict[str, Any]) -> Dict[str, Any]:
    if row.get("key"):
        secret["%s %s" % (row.get("host"), row.get("unit"))] = row["key"]
    return {name: value for name, value in row.items() if name != "key"}
