# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of an action that sends no module."""

from __future__ import annotations

import yaml

from ansible_collections.gpufleet.inference.plugins.action.host_check import ARGUMENT_SPEC
from ansible_collections.gpufleet.inference.plugins.modules import host_check


def test_it_names_the_options() -> None:
    documented = yaml.safe_load(host_check.DOCUMENTATION)["options"]
    keys = ("type", "elements", "choices", "required")
    assert {name: {key: row[key] for key in keys} for name, row in documented.items()} == ARGUMENT_SPEC
