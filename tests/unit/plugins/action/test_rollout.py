# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps of a rollout that a playbook cannot show."""

from __future__ import annotations

import getpass
import os

import pytest

from ansible_collections.gpufleet.inference.plugins.action.rollout import ActionModule
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.journal import Journal


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("no user name")])
def test_a_controller_whose_user_has_no_name(monkeypatch, tmp_path, error):
    def nameless():
        raise error

    monkeypatch.setattr(getpass, "getuser", nameless)
    step = ActionModule.__new__(ActionModule)
    step.journal = Journal(str(tmp_path / "state"))
    step.journal.begin("r1")
    found = step.step_holder()
    assert found["by"].startswith("uid %d@" % os.getuid()) and found["run"] == "r1" and found["holder"]
