# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each known problem leads to its own row and to no other; a healthy host has none."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.doctor import pains
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import model

UNIT = "ollama.service"
D = "/etc/systemd/system/ollama.service.d/"
HEALTHY = {
    "ActiveState": "active",
    "NRestarts": "0",
    "NeedDaemonReload": "no",
    "KillMode": "control-group",
    "LimitMEMLOCK": "infinity",
    "DropInPaths": D + "override.conf " + D + "zz-gpufleet.conf",
}


def device(**leaves: Any) -> Any:
    made = model.blank(0, "not asked")
    for path, value in {"serial": "1234", "persistence_mode": True, "processes": [], **leaves}.items():
        model.put(made, path, value)
    return made


def seen(unit: Any = None, facts: Any = None, **more: Any) -> pains.Seen:
    known = {"fault": None, "count": 1, "devices": [device()], "findings": [], "rdma": [], **(facts or {})}
    rest = {"modules": ["nvidia"], "nodes": ["nvidia-uvm"], "disks": {"/": 50}, "reboot": False, **more}
    rest = {"ports": {"mlx5_0/1": {"link_downed": 1}}, "stuck": {}, **rest}
    return pains.Seen(known, {UNIT: {**HEALTHY, **(unit or {})}}, **rest)


FINDING = {"gpu": 0, "check": "hot", "text": "it is hot", "line": "GPU 0: hot: it is hot", "remedy": "look into it"}
HOLDER = {"pid": 7, "name": "python3", "unit": "jupyter.service"}
CASES = [
    ("stuck_in_driver", {"stuck": {7: "python3"}}, "process 7 (python3) hangs"),
    ("rdma_errors", {"ports": {"mlx5_0/1": {"link_downed": 3, "symbol_error": 2}}}, "symbol_error 2, link_downed 3"),
    ("no_peermem", {"facts": {"rdma": [{}]}}, "nvidia_peermem is not loaded"),
    ("no_uvm", {"nodes": []}, "/dev/nvidia-uvm"),
    ("nouveau", {"modules": ["nouveau"]}, "nouveau is loaded"),
    ("reboot_required", {"reboot": True}, "reboot"),
    ("persistence_off", {"facts": {"devices": [device(persistence_mode=False)]}}, "off on GPU 0"),
    ("failed", {"unit": {"ActiveState": "failed"}}, "ollama.service has failed"),
    ("restart_loop", {"unit": {"NRestarts": "3"}}, "was restarted 3 times"),
    ("not_loaded", {"unit": {"NeedDaemonReload": "yes"}}, "changed since systemd read them"),
    ("later_drop_in", {"unit": {"DropInPaths": D + "zz-gpufleet.conf " + D + "zzz.conf"}}, "wins: " + D + "zzz.conf"),
    ("orphans", {"unit": {"KillMode": "process"}}, "KillMode=process"),
    (
        "memlock",
        {"unit": {"LimitMEMLOCK": "65536"}, "facts": {"rdma": [{}]}, "modules": ["nvidia_peermem"]},
        "may lock 65536 bytes",
    ),
    ("foreign_holder", {"facts": {"devices": [device(processes=[HOLDER])]}}, "process 7 (python3, jupyter.service)"),
    ("disk_full", {"disks": {"/srv": 97}}, "/srv is 97 % full"),
]


def test_a_healthy_host_has_none() -> None:
    assert pains.check(seen()) == []
    assert pains.check(seen({"LimitMEMLOCK": "65536"})) == [], "without RDMA, it is enough"


@pytest.mark.parametrize(("name", "case", "said"), CASES, ids=[name for name, _case, _said in CASES])
def test_a_problem(name: str, case: Any, said: str) -> None:
    found = pains.check(seen(**case))
    assert [one["pain"] for one in found] == [name] and said in found[0]["text"] and found[0]["fix"]


def test_a_finding_keeps_its_name() -> None:
    (found,) = pains.check(seen(facts={"findings": [FINDING]}))
    assert found == {"pain": "hot", "text": "GPU 0: it is hot", "fix": "look into it"}


def test_every_problem_has_a_test() -> None:
    assert [pain.name for pain in pains.PAINS] == [name for name, _case, _said in CASES]


def test_what_a_vendor_asks_for() -> None:
    gone = dict(FINDING, gpu=None, check="xid_79", text="Xid 79")
    facts = seen(facts={"findings": [FINDING, gone], "driver": {"version": "580.1"}}).facts
    said = pains.support(facts, "gpu1", "2026-11-30T08:00:00Z")
    assert "serial number: 1234" in said and "  found: hot: it is hot" in said and "driver: 580.1" in said
    assert "of the host, or a GPU that is gone: xid_79: Xid 79" in said
