# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leaves on a host what the controller would ask it: walks through the roles, then sends the module."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from ansible.errors import AnsibleError

from ansible_collections.gpufleet.inference.plugins.action import host_check
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import one_line
from ansible_collections.gpufleet.inference.plugins.plugin_utils.arguments import Label
from ansible_collections.gpufleet.inference.plugins.plugin_utils.role_walk import Undecided
from ansible_collections.gpufleet.inference.plugins.plugin_utils.self_check import SelfCheckAction


class ActionModule(SelfCheckAction):
    why = ""
    """Why the host cannot be left a self check."""

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = super().run(tmp, task_vars)
        if self.why and not result.get("failed"):
            result.setdefault("warnings", []).append("this host has no self check, because %s" % self.why)
        return result

    def _found(self, given: Dict[str, Any], variables: Mapping[str, Any], label: Label) -> Dict[str, Any]:
        if given.get("interval"):
            own = (self._task, self._connection, self._play_context, self._loader, self._templar)
            walker = host_check.ActionModule(*own, self._shared_loader_obj)
            try:
                self.calls, self.masked = walker.asked_of(given.get("roles") or [], variables)
            except (AnsibleError, Undecided) as error:
                if self._task.check_mode:
                    return {"changed": False, "msg": "not known before the roles have run", "reason": ""}
                self.why = one_line(str(error))
                given = {**given, "interval": ""}
        return super()._found(given, variables, label)
