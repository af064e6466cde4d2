# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether a host's part of a job is in its declared state; sends the module where it is not."""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.gpufleet.inference.plugins.modules import torchrun_job
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import RemoteFunction


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.torchrun_job"
    FUNCTION = RemoteFunction("torchrun.job", "converge", torchrun_job.argument_spec())

    def checks_first(self, arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> bool:
        """Not where the module is to wait for something, which a check does not."""
        waits = arguments.get("state") in ("joined", "finished") or arguments.get("restart")
        return not waits and super().checks_first(arguments, variables)
