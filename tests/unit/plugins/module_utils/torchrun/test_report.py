# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One verdict from the results of all hosts."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import logs, plan, report


@pytest.fixture
def planned(node, interface):
    facts = {"gpu%d" % n: node("gpu%d" % n, interface("eth0", "10.1.0.%d/24" % n)) for n in (1, 2, 3)}
    return plan.make(facts, nproc_per_node=2)


@pytest.fixture
def good(planned):
    return {host: {"verdict": "ok", "msg": "finished", "restarts": 0, "failures": []} for host in planned["nodes"]}


def failure(host, rank, time, attempt=0, fault=None, message="RuntimeError: x"):
    return {
        "host": host, "rank": rank, "local_rank": rank % 2, "attempt": attempt, "exit_code": 1, "time": time,
        "message": message, "fault": fault,
    }  # fmt: skip


def test_all_well(good, planned):
    found = report.of_job(good, planned)
    assert (found["name"], found["first_failure"], found["outlier"]) == ("ok", None, None)
    assert found["lines"] == ["verdict: ok", "gpu1: finished", "gpu2: finished", "gpu3: finished"]


def test_who_failed_first(good, planned):
    good["gpu1"].update(verdict="connection_lost", failures=[failure("gpu1", 0, 10, fault="connection_lost")])
    good["gpu2"].update(verdict="worker_failed", failures=[failure("gpu2", 3, 11, message="ValueError: bad batch")])
    good["gpu3"].update(verdict="connection_lost", failures=[failure("gpu3", 5, 10, fault="connection_lost")])
    found = report.of_job(good, planned)
    assert found["name"] == "worker_failed"
    assert found["text"] == "gpu2: first failed rank 3 (local rank 1) exited with status 1: ValueError: bad batch"


def test_the_process_that_did_not_come(good, planned):
    late = [failure("gpu1", 0, 10, fault="collective_timeout", message="timed out")]
    good["gpu1"].update(verdict="collective_timeout", failures=late, enqueued={"0": 126, "1": 126})
    good["gpu2"].update(verdict="collective_timeout", enqueued={"2": 126, "3": 124})
    good["gpu3"].update(enqueued={"4": 126})  # rank 5 was ended before it could say
    found = report.of_job(good, planned)
    assert found["late"] == [{"rank": 3, "host": "gpu2", "work": 124, "others": 126}]
    assert "rank 3 on gpu2 was behind: its last operation was 124, the others had come to 126" in found["lines"]
    good["gpu2"]["enqueued"]["3"] = 126
    found = report.of_job(good, planned)
    assert found["late"] == [{"rank": 5, "host": "gpu3", "work": None, "others": 126}]
    assert "rank 5 on gpu3 reported no operation, the others had come to 126" in found["lines"]
    good["gpu3"]["enqueued"]["5"] = 126
    assert report.of_job(good, planned)["late"] == []


def test_a_host_that_was_not_reached(good, planned):
    good["gpu3"] = {}
    found = report.of_job(good, planned)
    assert (found["name"], found["text"]) == ("unreachable", "gpu3: not reached")


def test_a_host_that_has_ended_comes_before_those_that_are_slow(good, planned):
    good["gpu1"] = {"verdict": "not_begun", "msg": "imports", "running": True}
    good["gpu2"] = {"verdict": "peer_missing", "msg": "waits", "running": True}
    good["gpu3"] = {"verdict": "stopped", "msg": "gone", "running": False}
    assert report.of_job(good, planned)["text"] == "gpu3: gone"
    good["gpu3"] = good["gpu1"]
    good["gpu1"] = {"verdict": "peer_missing", "msg": "2/3 came", "running": False}
    assert report.of_job(good, planned)["text"] == "gpu3: imports"


def test_an_elastic_job_that_lost_a_host(good, planned):
    planned["min_nodes"] = 2
    good["gpu3"] = {"verdict": "failed", "msg": "gone"}
    for host in ("gpu1", "gpu2"):
        good[host].update(restarts=1, rounds=[{"restarts": 1, "nodes": 2, "world_size": 4, "ranks": []}])
    found = report.of_job(good, planned)
    assert (found["name"], found["restarts"], found["nodes"]) == ("ok", 1, 2)
    assert "restarted 1 time" in found["lines"] and "ended with 2 of 3 hosts" in found["lines"]
    good["gpu2"]["verdict"] = "failed"
    assert report.of_job(good, planned)["name"] == "failed"


def test_a_restart_and_its_reason(good, planned):
    good["gpu2"].update(restarts=1, failures=[failure("gpu2", 3, 11)])
    lines = report.of_job(good, planned)["lines"]
    assert "restarted 1 time after rank 3 (local rank 1) exited with status 1: RuntimeError: x on gpu2" in lines


@pytest.fixture
def measured(log, planned):
    """`measured("nvlink-2")`: a check of one host that left that log."""

    def make(name):
        said = logs.read(log(name))
        nccl = {key: said[key] for key in ("version", "interfaces", "network", "via", "set", "warnings")}
        return {"gpu1": {"verdict": "ok", "msg": "finished", "allreduce": said["allreduce"], "nccl": nccl}}

    return make


def test_figures(measured, planned):
    found = report.of_job(measured("nvlink-2"), planned, {"gpu1": {"nvlink": True}}, floor_gbps=320)
    assert found["name"] == "ok"
    assert found["lines"][1] == "all-reduce of 1024 MiB: 3.276 ms, algorithm 327.80 GB/s, bus 327.80 GB/s, over NVLink"


def test_below_the_floor_and_why(measured, planned):
    found = report.of_job(measured("no-p2p"), planned, {"gpu1": {"nvlink": True}}, floor_gbps=300)
    assert found["name"] == "slow"
    assert found["text"] == (
        "bus bandwidth 25.9 GB/s, expected at least 300.0 GB/s; gpu1: the GPUs have NVLink, but NCCL uses the"
        " host's memory (SHM); set: NCCL_P2P_DISABLE=1"
    )


def test_the_outlier_is_named(good, planned):
    figures = {"MiB": 64.0, "s": 0.5, "algbw": 0.1, "busbw": 0.2, "sum_ok": True, "backend": "gloo"}
    pairs = [{"a": 0.0, "b": 1.0, "gbps": 9.0}, {"a": 0.0, "b": 2.0, "gbps": 0.1}]
    good["gpu1"].update(allreduce=[figures], pairs=pairs)
    good["gpu2"]["pairs"] = [{"a": 1.0, "b": 2.0, "gbps": 0.1}]
    found = report.of_job(good, planned, floor_gbps=1)
    assert found["outlier"] == {"host": "gpu3", "gbps": 0.1, "others": 9.0}
    assert "the outlier is gpu3: 0.10 GB/s to the others, which have 9.00 GB/s among them" in found["text"]
    assert found["transports"] == {"gpu1": ["socket"], "gpu2": ["socket"], "gpu3": ["socket"]}


def test_a_wrong_sum(good, planned):
    good["gpu1"]["allreduce"] = [{"MiB": 1.0, "s": 1.0, "algbw": 1.0, "busbw": 1.0, "sum_ok": False}]
    assert report.of_job(good, planned)["name"] == "wrong_sum"
