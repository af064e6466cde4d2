# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: what is recorded of each service, and nothing else that lies there."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.fingerprint import Recorded, Token
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import fingerprint
from ansible_collections.gpufleet.inference.plugins.modules import fingerprints_info


def test_what_is_recorded_is_returned(run_module, monkeypatch, tmp_path):
    monkeypatch.setattr(fingerprint, "FOLDER", str(tmp_path / "fingerprints"))
    assert run_module(fingerprints_info.main)["fingerprints"] == {}
    recorded = Recorded("m", ["Hi"], [[Token("yes", -0.1, {"yes": -0.1})]], 0.1)
    fingerprint.keep("e@one.service", recorded, print)
    (tmp_path / "fingerprints/e@two.service.json").write_text("{")
    (tmp_path / "fingerprints/.e@one.service.json.new").write_text("{}")
    found = run_module(fingerprints_info.main)
    assert found["msg"] == "recorded answers of 1 service" and not found["changed"]
    assert fingerprint.recorded_in(found["fingerprints"]["e@one.service"]) == recorded
