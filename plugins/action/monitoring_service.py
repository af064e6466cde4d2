# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether the monitoring is in its declared state; sends the module where it is not."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.modules import monitoring_service
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction, RemoteFunction


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.monitoring_service"
    FUNCTION = RemoteFunction("monitoring.service", "check", monitoring_service.argument_spec())
