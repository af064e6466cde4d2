# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether a host has the model; sends the module where it does not."""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import source
from ansible_collections.gpufleet.inference.plugins.modules import model_source
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction, RemoteFunction


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.model_source"
    FUNCTION = RemoteFunction("model_source.source", "converge", model_source.argument_spec())

    def secrets(self, arguments: Mapping[str, Any]) -> Iterable[str]:
        return source.secrets(arguments)
