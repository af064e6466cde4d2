# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks by a bare script whether a host's part of a job is as declared; sends the module where it is not."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from ansible_collections.gpufleet.inference.plugins.modules import torchrun_job
from ansible_collections.gpufleet.inference.plugins.plugin_utils.ask import Asking, Work


class ActionModule(Asking):
    """Asks, but for a wait: its answer is not there at once."""

    MODULE = "gpufleet.inference.torchrun_job"
    WORK = Work("torchrun.job", "bring", torchrun_job.argument_spec())

    def ask(self, arguments: Mapping[str, Any], task_vars: Optional[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
        waits = arguments.get("state") in ("joined", "finished") or arguments.get("restart")
        return None if waits else super().ask(arguments, task_vars)
