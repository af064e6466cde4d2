# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends the module only to hosts that do not have the model yet."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from ansible.module_utils.common.parameters import remove_values

from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import source
from ansible_collections.gpufleet.inference.plugins.modules import model_source
from ansible_collections.gpufleet.inference.plugins.plugin_utils.ask import Asking, Work


class ActionModule(Asking):
    """Asks first, by a bare script."""

    MODULE = "gpufleet.inference.model_source"
    WORK = Work("model_source.source", "bring", model_source.argument_spec())

    def ask(self, arguments: Mapping[str, Any], task_vars: Optional[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
        answer = super().ask(arguments, task_vars)
        return answer and remove_values(answer, source.secrets(arguments))
