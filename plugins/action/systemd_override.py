# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks by a bare script whether a unit is as declared; sends the module where it is not."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.modules import systemd_override
from ansible_collections.gpufleet.inference.plugins.plugin_utils.ask import Asking, Work


class ActionModule(Asking):
    MODULE = "gpufleet.inference.systemd_override"
    WORK = Work("converge.override_module", "bring", systemd_override.argument_spec())
