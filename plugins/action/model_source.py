# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether a host has the model; sends the module where it does not."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Mapping

from ansible_collections.gpufleet.inference.plugins.modules import model_source
from ansible_collections.gpufleet.inference.plugins.plugin_utils.arguments import problems
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction, refuse
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import RemoteFunction
from ansible_collections.gpufleet.inference.plugins.plugin_utils.role import Role

NOT_OF_AN_ENTRY = ("defer_downloads", "seeds", "token")
"""Options of the module that a role sets itself."""


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.model_source"
    FUNCTION = RemoteFunction("model_source.source", "converge", model_source.argument_spec())

    def prepare(self, arguments: Dict[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        """A role passes on the keys that it knows of an entry of its list: others would have no effect."""
        role, entry = Role.of(variables), variables.get("item")
        if role and isinstance(entry, dict):
            known = {name: row for name, row in self.FUNCTION.argument_spec.items() if name not in NOT_OF_AN_ENTRY}
            refuse(list(problems(known, entry, place="%smodels[%s]" % (role.prefix, entry.get("name")))))
        return arguments

    def secrets(self, arguments: Mapping[str, Any]) -> Iterable[str]:
        from ansible_collections.gpufleet.inference.plugins.module_utils.model_source.source import secrets

        return secrets(arguments)
