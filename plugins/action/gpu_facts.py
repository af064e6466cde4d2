# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the facts without a module; sends the module where that is not possible."""

from __future__ import annotations

from typing import Any, Dict, Optional

from ansible_collections.gpufleet.inference.plugins.modules import gpu_facts
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import RemoteFunction


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.gpu_facts"
    FUNCTION = RemoteFunction("gpu.facts", "report", gpu_facts.argument_spec(), facts=("gpu",))

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        """The facts; ``-v`` does not print them, 70 lines for each GPU."""
        return dict(super().run(tmp, task_vars), _ansible_verbose_override=True)
