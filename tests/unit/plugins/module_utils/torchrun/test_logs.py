# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded logs and the verdicts on them."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import logs


@pytest.mark.parametrize(
    "name, ranks, verdict",
    [
        ("nvlink-all", 4, "ok"),
        ("nvlink-2", 2, "ok"),
        ("static", 2, "ok"),
        ("no-p2p", 4, "ok"),
        ("sockets", 4, "ok"),
        ("bad-interface", 4, "bad_interface"),
        ("too-many", 5, "too_many_processes"),
        ("peer-missing", 2, "peer_missing"),
        ("gloo-bad-interface", 2, "bad_interface"),
        ("dead-at-init", 2, "worker_failed"),
        ("peer-missing-static", 1, "peer_missing"),
        ("peer-missing-c10d", 1, "peer_missing"),
        ("master-refused-c10d", 1, "master_unreachable"),
        ("stranger-at-port", 1, "stranger_at_port"),
    ],
)
def test_verdicts(log, name, ranks, verdict):
    assert logs.verdict(logs.read(log(name)), ranks, running=name == "peer-missing")["name"] == verdict


@pytest.mark.parametrize(
    "name, ways, suspicion",
    [
        ("nvlink-all", ["NVLink"], None),
        ("nvlink-2", ["NVLink"], None),
        ("no-p2p", ["SHM"], "NCCL uses the host's memory (SHM); set: NCCL_P2P_DISABLE=1"),
        ("sockets", ["socket"], "but NCCL uses sockets; set: NCCL_P2P_DISABLE=1, NCCL_SHM_DISABLE=1"),
    ],
)
def test_transports(log, name, ways, suspicion):
    said = logs.read(log(name))
    assert logs.transport(said, nvlink=True) == ways
    found = logs.suspicious(said, nvlink=True, rdma=False, one_host=True)
    assert found is None if suspicion is None else suspicion in found


def test_p2p_without_nvlink_is_pcie(log):
    assert logs.transport(logs.read(log("nvlink-2")), nvlink=False) == ["PCIe P2P"]


def test_infiniband_and_what_goes_beside_it():
    text = "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA\n"
    text += "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM\n"
    assert logs.transport(logs.read(text), nvlink=True) == ["IB GDRDMA", "NVLink"]
    text += "h:1:1 [0] NCCL INFO Channel 01/0 : 0[0] -> 8[0] [send] via NET/Socket/1\n"
    said = logs.read(text)
    assert logs.transport(said, nvlink=True)[0] == "socket"
    assert logs.suspicious(said, True, rdma=True, one_host=False) == "the hosts have RDMA, but NCCL uses sockets"
    assert logs.suspicious(said, True, rdma=False, one_host=False) is None


def test_what_a_log_tells(log):
    said = logs.read(log("sockets"))
    assert said["version"] == "2.28.9"
    assert said["interfaces"] == {"lo": "127.0.0.1"}
    assert said["network"] == "Socket"
    assert said["via"] == {"NET/Socket/0": 32}
    assert said["set"]["NCCL_SHM_DISABLE"] == "1"
    assert [one["rank"] for one in said["ranks"]] == [0, 1, 2, 3]
    assert said["allreduce"][-1] == {"MiB": 1024, "s": 0.451019, "algbw": 2.4, "busbw": 3.6, "sum_ok": True}
    assert logs.read(log("bad-interface"))["warnings"] == ["Bootstrap : no socket interface found"]


def test_the_line_that_shows_a_fault(log):
    assert logs.fault(log("too-many"))["line"] == "[rank4]: torch.AcceleratorError: CUDA error: invalid device ordinal"
    assert logs.fault(log("peer-missing-static"))["text"].startswith("only 1/2 hosts came to the rendezvous within 9 s")
    assert "127.0.0.1 port 29613" in logs.fault(log("master-refused-c10d"))["text"]
    assert "no network interface nosuch0" in logs.fault(log("gloo-bad-interface"))["text"]
    assert logs.fault(log("nvlink-all")) is None


WATCHDOG = (
    "[rank0]:[E1129 10:00:00.1 ProcessGroupNCCL.cpp:685] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL("
    "SeqNum=125, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600021 milliseconds before timing out.\n"
    "terminate called after throwing an instance of 'c10::DistBackendError'\n"
)


@pytest.mark.parametrize(
    "line, name, words",
    [
        (WATCHDOG, "collective_timeout", "not all processes came to operation 125, ALLREDUCE, in time"),
        ("[F1129 ProcessGroupNCCL.cpp:1556] due to ProcessGroupNCCL watchdog hang.", "collective_timeout", "in time"),
        ("RuntimeError: Timed out waiting 1800000ms for recv operation to complete", "collective_timeout", "in time"),
        ("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", "gpu_memory_error", "replace it"),
        ("CUDA error: no kernel image is available for execution on the device", "no_kernel", "supports it"),
        ("CUDA error: unspecified launch failure", "kernel_failed", "failed (unspecified launch failure)"),
        ("worker (pid 7) is killed by signal: Bus error. … are out of shared memory.", "shared_memory", "/dev/shm"),
        ("OSError: [Errno 28] No space left on device", "disk_full", "is full"),
        ("ncclSystemError: System call … failed.\nLast error:\nCall to ibv_reg_mr failed", "locked_memory", "memlock"),
        (
            "[rank1]: ncclSystemError: System call … failed.\n[rank1]: Last error:\n[rank1]: Too many open files",
            "nccl_system_error",
            "refused NCCL something, Too many open files:",
        ),
    ],
)
def test_faults_of_a_running_job(line, name, words):
    found = logs.fault("all is well\n" + line)
    assert found["name"] == name and words in found["text"]


def test_how_far_the_processes_had_come():
    line = "[rank3]:[E808 ProcessGroupNCCL.cpp:2299] [PG ID %d PG GUID 0(default_pg) Rank 3]  failure detected by watchdog "
    line += "at work sequence id: 5 PG status: last enqueued work: %d, last completed work: 4\n"
    assert logs.read(line % (0, 6) + line % (1, 99))["enqueued"] == {3: 6}
    told = (
        "[rank7]:[E703 15:37:17.178 ProcessGroupNCCL.cpp:1987] [PG ID 0 PG GUID 0(default_pg) Rank 7] Received a dump signal"
        " due to a collective timeout from  rank 3 and we will try our best to dump the debug info. Last enqueued NCCL work:"
        " %d, last completed NCCL work: -1.This is most likely caused by incorrect usages\n"
    )
    assert logs.read(line % (0, 6) + told % 5)["enqueued"] == {3: 6, 7: 5}
    assert logs.read(told % -1)["enqueued"] == {7: -1}
    assert logs.read("all is well\n")["enqueued"] == {}


def test_a_timeout_follows_from_the_process_that_failed():
    late = {"host": "a", "rank": 0, "exit_code": -6, "time": 1.0, "fault": "collective_timeout"}
    cause = {"host": "b", "rank": 2, "exit_code": 1, "time": 2.0, "fault": None}
    assert logs.first_failure([late, cause])["rank"] == 2


def test_root_cause(log):
    assert logs.read(log("dead-at-init"))["root_cause"] == {
        "rank": 1,
        "local_rank": 1,
        "exit_code": 1,
        "time": "2026-11-22_14:20:34",
        "message": "RuntimeError: dead at init on purpose",
    }
    assert logs.read(log("too-many"))["root_cause"]["rank"] == 4
    assert logs.read(log("nvlink-all"))["root_cause"] is None


def test_a_wrong_sum_is_no_success(log):
    said = logs.read(log("nvlink-2").replace("sum_ok=True", "sum_ok=False"))
    assert logs.verdict(said, 2, running=False)["name"] == "wrong_sum"


def test_begun_and_not_ended(log):
    said = logs.read("RANKS rank=0 local=0 world=2 node=0 master=a\n")
    assert logs.verdict(said, 1, running=True)["name"] == "stalled"
    assert logs.verdict(said, 1, running=False)["name"] == "ok"
    assert logs.verdict(said, 2, running=False)["name"] == "stalled"


def test_rounds(log):
    """A process was killed, its host came back to the others, and then another host was lost."""
    own = [2, 3]
    assert logs.rounds(log("restarted")) == [
        {"restarts": 0, "nodes": 3, "world_size": 6, "ranks": own},
        {"restarts": 1, "nodes": 3, "world_size": 6, "ranks": own},
        {"restarts": 1, "nodes": 3, "world_size": 6, "ranks": own},
        {"restarts": 2, "nodes": 2, "world_size": 4, "ranks": own},
    ]


def test_deaths(log):
    assert logs.deaths(log("too-many")) == [{"attempt": 0, "local_rank": 4, "exit_code": 1}]
    assert logs.deaths(log("restarted")) == [
        {"attempt": 0, "local_rank": 1, "exit_code": -9},
        {"attempt": 1, "local_rank": 1, "exit_code": 1},
    ]


def test_the_cause_comes_before_what_follows_from_it():
    lost = {"host": "a", "rank": 0, "exit_code": 1, "time": 99.0, "fault": "connection_lost"}
    ended = {"host": "a", "rank": 1, "exit_code": -15, "time": 98.0, "fault": None}
    cause = {"host": "b", "rank": 2, "exit_code": 1, "time": 100.0, "fault": None}
    later = {"host": "b", "rank": 3, "exit_code": 1, "time": None, "fault": "out_of_memory"}
    assert logs.first_failure([lost, ended, later, cause])["rank"] == 2
    assert logs.first_failure([lost, ended])["rank"] == 1
    assert logs.first_failure([]) is None


@pytest.mark.parametrize(
    "code, words", [(17, "exited with status 17"), (-9, "was killed by signal 9"), (None, "failed")]
)
def test_failures_in_words(code, words):
    failure = {"rank": 3, "local_rank": 1, "exit_code": code, "message": "RuntimeError: x"}
    assert logs.describe(failure) == "rank 3 (local rank 1) %s: RuntimeError: x" % words


def links(**speeds):
    return [{"a": pair[0], "b": pair[1], "gbps": speed} for pair, speed in speeds.items()]


def test_the_outlier():
    assert logs.outlier(links(ab=10, ac=9, bc=11)) is None
    assert logs.outlier(links(ab=10, ac=1, bc=1)) == {"host": "c", "gbps": 1, "others": 10}
    # one slow link of four hosts is not a slow host
    assert logs.outlier(links(ab=1, ac=10, ad=10, bc=10, bd=10, cd=10)) is None
    assert logs.outlier(links(ab=1)) is None


def test_last_words():
    text = "Traceback (most recent call last):\n  File x\nValueError: one\n[rank0]: KeyError: 'two'\n"
    assert logs.last_words(text) == "KeyError: 'two'"
    assert logs.last_words("all is well\n") is None
