# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin passes the engines' keys in an option that is logged nowhere."""

from __future__ import annotations

import re

import pytest
from ansible.errors import AnsibleActionFail

from ansible_collections.gpufleet.inference.plugins.action import gateway_service

ROW = {"host": "gpu1", "address": "192.0.2.1", "port": 8000, "engine": "vllm", "unit": "vllm@chat", "api": "openai"}


def test_the_keys_of_engines_leave_the_pools(sending):
    act = sending(gateway_service)
    row = dict(ROW)
    pools = {"a": [dict(row, key="sesame"), dict(row, host="gpu2", key="")], "b": [dict(row, key="sesame")]}
    act({"pools": pools}, [{"changed": True}])
    (sent,) = act.calls
    assert sent["engine_keys"] == {"gpu1 vllm@chat": "sesame"}
    assert "sesame" not in str(sent["pools"]) and sent["pools"]["a"][0] == row
    assert pools["a"][0]["key"] == "sesame", "the task's own arguments stay as they are"
    act({"state": "absent"}, [{"changed": False}])
    assert act.calls == [{"state": "absent", "pools": {}, "engine_keys": {}}]


@pytest.mark.parametrize(
    "arguments, wrong",
    [
        ({"pools": "sesame"}, "pools: expected a dictionary"),
        ({"pools": {"a": [dict(ROW, key="sesame")]}, "engine_keys": "sesame"}, "engine_keys: expected a dictionary"),
        ({"pools": {"a": {"key": "sesame"}}}, "pools[a]: expected a list of servers"),
        ({"pools": {"a": [ROW], "b": ["sesame"]}}, "pools[b][0] lacks host, address, port, engine, unit, api;"),
        ({"pools": {"a": [ROW, {"host": "gpu2", "key": "sesame"}]}}, "pools[a][1] lacks address, port, engine, unit,"),
    ],
)
def test_pools_of_the_wrong_form(sending, arguments, wrong):
    act = sending(gateway_service)
    with pytest.raises(AnsibleActionFail, match=re.escape(wrong)) as error:
        act(arguments, [])
    assert "sesame" not in str(error.value) and act.calls == []
