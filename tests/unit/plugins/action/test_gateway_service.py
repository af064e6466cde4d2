# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin passes the engines' keys in an option that is logged nowhere."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.action import gateway_service


def test_the_keys_of_engines_leave_the_pools(sending):
    act = sending(gateway_service)
    row = {"host": "gpu1", "unit": "vllm@chat", "port": 8000}
    pools = {"a": [dict(row, key="sesame"), dict(row, host="gpu2", key="")], "b": [dict(row, key="sesame")]}
    act({"pools": pools}, [{"changed": True}])
    (sent,) = act.calls
    assert sent["engine_keys"] == {"gpu1 vllm@chat": "sesame"}
    assert "sesame" not in str(sent["pools"]) and sent["pools"]["a"][0] == row
    assert pools["a"][0]["key"] == "sesame", "the task's own arguments stay as they are"
    wrong = {"a": ["x", {"key": "sesame"}], "b": "y", "c": None}
    act({"pools": wrong}, [{"changed": True}])
    assert act.calls[-1]["pools"] == dict(wrong, a=["x", {}]), "the module says what is wrong with it"
    act({"state": "absent"}, [{"changed": False}])
    assert act.calls == [{"state": "absent", "pools": {}, "engine_keys": {}}]
