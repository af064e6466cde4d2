# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends wheels that lie on the controller, only to hosts that ask for them."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from ansible_collections.gpufleet.inference.plugins.modules import python_environment
from ansible_collections.gpufleet.inference.plugins.plugin_utils.ask import Asking, Work
from ansible_collections.gpufleet.inference.plugins.plugin_utils.wheels import call_with_wheels


class ActionModule(Asking):
    """Sends the module to a host that is not as declared; when it answers ``needs``, the wheels as well."""

    MODULE = "gpufleet.inference.python_environment"
    WORK = Work("python_env.step", "bring", python_environment.argument_spec())

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = super(Asking, self).run(tmp, task_vars)

        def call(replaced: Mapping[str, Any]) -> Dict[str, Any]:
            arguments = dict(self._task.args, **replaced)
            asked = None if replaced else self.ask(arguments, task_vars)
            return asked or self.send(arguments, task_vars)

        result.update(call_with_wheels(self, self._task.args, call))
        return result
