# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether the gateway is in its declared state; sends the module where it is not."""

from __future__ import annotations

from typing import Any, Dict, Iterator, Mapping

from ansible_collections.gpufleet.inference.plugins.modules import gateway_service
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import (
    CheckFirstAction,
    RemoteFunction,
    refuse,
)

#: Of each server.
NEEDED = ("host", "address", "port", "engine", "unit", "api")


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.gateway_service"
    FUNCTION = RemoteFunction("gateway.service", "check", gateway_service.argument_spec())

    def prepare(self, arguments: Dict[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        """Engines' keys leave the pools for an option of their own, which is logged and shown nowhere."""
        refuse(list(_odd(arguments)))
        pools, secret = {}, dict(arguments.get("engine_keys") or {})
        for model, rows in (arguments.get("pools") or {}).items():
            pools[model] = [{name: value for name, value in row.items() if name != "key"} for row in rows]
            secret.update(("%s %s" % (row["host"], row["unit"]), row["key"]) for row in rows if row.get("key"))
        return dict(arguments, pools=pools, engine_keys=secret)


def _odd(arguments: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each part of the pools that is of the wrong form. It shows no value, as any may be a key."""
    odd = [name for name in ("pools", "engine_keys") if not isinstance(arguments.get(name) or {}, dict)]
    if odd:
        yield "%s: expected a dictionary" % " and ".join(odd)
        return
    for model, rows in (arguments.get("pools") or {}).items():
        if not isinstance(rows, list):
            yield "pools[%s]: expected a list of servers" % model
            continue
        for number, row in enumerate(rows):
            lacks = [name for name in NEEDED if name not in row] if isinstance(row, dict) else NEEDED
            if lacks:
                yield "pools[%s][%d] lacks %s; expected a server as the lookup gateway_pools returns it" % (
                    *(model, number),
                    ", ".join(lacks),
                )
