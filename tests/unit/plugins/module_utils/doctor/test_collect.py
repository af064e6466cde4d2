# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of a host beside its units: the kernel's counters, commands, processes in the driver."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.doctor import collect


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Dict[str, str]:
    """Content of files, in place of the host's."""
    known: Dict[str, str] = {}
    monkeypatch.setattr(collect, "_content", lambda path: known.get(path, ""))
    return known


def test_counters_of_ports(files: Any) -> None:
    files["/sys/class/infiniband/mlx5_0/ports/1/counters/link_downed"] = "2\n"
    files["/sys/class/infiniband/mlx5_0/ports/1/counters/symbol_error"] = "N/A\n"
    assert dict(collect._ports({"rdma": [{"name": "mlx5_0", "ports": [{"port": 1}]}]})) == {
        "mlx5_0/1": {"link_downed": 2}
    }


def test_processes_that_wait_in_the_driver(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect.os, "listdir", lambda path: ["7", "8", "9", "self"])
    files["/proc/7/stat"] = "7 (python3 (x)) D 1 7"
    files["/proc/7/stack"] = "[<0>] os_acquire_mutex+0x1/0x2 [nvidia]\n"
    files["/proc/8/stat"], files["/proc/8/stack"] = "8 (dd) D 1 8", "[<0>] io_schedule+0x1/0x2\n"
    files["/proc/9/stat"], files["/proc/9/stack"] = "9 (a) S 1 9", files["/proc/7/stack"]
    assert collect._in_driver() == {7: "python3 (x)"}


def test_only_who_stays_in_the_driver_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{7: "a", 8: "b"}, {8: "b", 9: "c"}])
    monkeypatch.setattr(collect, "_in_driver", lambda: next(looks))
    monkeypatch.setattr(collect.time, "sleep", lambda seconds: None)
    assert collect._stuck() == {8: "b"}


def test_commands() -> None:
    assert collect.run(("echo", "a b")) == "a b\n" and collect.run(("no-such-program",)) == ""
    assert "usage" in collect.run(("sh", "-c", "echo usage >&2; exit 3"))
