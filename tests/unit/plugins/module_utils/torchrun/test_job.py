# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way of a job on one host, with a systemd in memory."""

from __future__ import annotations

import json
import os

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.placement import claims
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import trusted
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import command, job, plan

UNIT = "torchrun@train.service"


def test_present_writes_and_starts_nothing(bring, system):
    result = bring("present")
    assert (result["changed"], result["started"], result["ready"]) == (True, False, False)
    assert system.calls == ["reload"]
    assert "+++" not in result["diff"]["after"] and "ExecStart=" in result["diff"]["after"]
    assert bring("present")["changed"] is False
    assert system.calls == ["reload"]


def test_started_and_again(bring, system):
    result = bring()
    assert (result["changed"], result["started"], result["running"]) == (True, True, True)
    assert system.calls == ["reload", "stop gpufleet-torchrun-listen.service", "start"]
    assert result["msg"] == "torchrun@train.service: started · node 0 of 2 · ranks 0-0 of 2"
    again = bring()
    assert (again["changed"], again["started"], again["ready"]) == (False, False, True)
    assert again["msg"].startswith("torchrun@train.service: running")


def test_check_mode_writes_nothing(bring, system):
    result = bring(check=True)
    assert result["changed"] is True and system.calls == []
    assert not system.path("/etc").exists()
    assert result["msg"].startswith("torchrun@train.service: would start")
    bring()
    assert bring(check=True)["changed"] is False
    assert bring(check=True, arguments=["-x"])["changed"] is True


def test_a_changed_job_is_stopped_and_started(bring, system):
    bring()
    present = bring("present", arguments=["--more"])
    assert (present["stale"], present["ready"], system.up) == (True, False, True)
    result = bring(arguments=["--more"])
    assert (result["stopped"], result["started"]) == (True, True)
    assert bring(arguments=["--more"])["changed"] is False


def test_a_new_secret_starts_it_anew_and_shows_nowhere(bring, system):
    bring(secret_environment={"KEY": "old-secret"})
    result = bring(secret_environment={"KEY": "new-secret"})
    assert result["started"] is True
    assert "secret" not in json.dumps(result).replace(".secrets", "").replace("<secret", "")
    assert system.path("/etc/gpufleet/torchrun/train.secrets").stat().st_mode & 0o777 == 0o600
    bring()
    assert not system.path("/etc/gpufleet/torchrun/train.secrets").exists()


def test_finished(bring, system):
    result = bring("finished")
    assert (result["verdict"], result["exit_status"], result["running"]) == ("ok", 0, False)
    assert result["msg"].startswith("torchrun@train.service: finished")
    # what has ended well is not run again
    for state in ("started", "finished", "joined"):
        again = bring(state)
        assert (again["changed"], again["started"]) == (False, False)
        assert "finished" in again["msg"]
    assert bring(restart=True)["started"] is True


def test_what_has_failed_is_run_again(bring, system):
    system.ends = ("exit-code", "exited", "1")
    with pytest.raises(Failed):
        bring("finished")
    system.ends = ("success", "exited", "0")
    assert bring("present")["ready"] is False
    assert bring("started")["started"] is True


def test_a_wait_starts_nothing(bring, system):
    """A host that is started alone is of no use to the others, which have gone on, or ended."""
    bring()
    system.end("exit-code", "exited", "1")
    del system.calls[:]
    for state in ("joined", "finished"):
        with pytest.raises(Failed, match="it has failed"):
            bring.bare(state)
    assert system.calls == []
    system.path("/var/lib/gpufleet/torchrun/train/ended").unlink()
    with pytest.raises(Failed, match="stopped: it does not run"):
        bring.bare("finished")
    bring()
    with pytest.raises(Refused, match="another definition of the job"):
        bring.bare("joined", arguments=["--more"])


def test_one_whose_end_systemd_has_not_seen_yet(bring, system, monkeypatch):
    """torchrun is gone, and for a moment systemd calls it active, with its PID."""
    bring()
    system.ends = None
    state = dict(system.show(UNIT))
    monkeypatch.setattr(system, "show", lambda unit: state)
    monkeypatch.setattr(type(system.process(7)), "ended_within", lambda self, limit: True)

    def end(_seconds):
        system.end("success", "exited", "0")
        state.update(ActiveState="inactive", MainPID="0")

    monkeypatch.setattr(job.time, "sleep", end)
    assert (bring.bare("finished")["verdict"], state["ActiveState"]) == ("ok", "inactive")


@pytest.mark.parametrize("state", ["present", "finished"])
def test_one_that_is_about_to_have_ended(bring, system, monkeypatch, state):
    """torchrun is gone, and systemd has not yet written how it ended: that is no other definition of the job."""
    bring()
    shown = {"ActiveState": "deactivating", "MainPID": "0", "LoadState": "loaded"}
    monkeypatch.setattr(system, "show", lambda unit: shown)

    def end(_seconds):
        system.end("success", "exited", "0")
        shown["ActiveState"] = "inactive"

    monkeypatch.setattr(job.time, "sleep", end)
    result = bring.bare(state)
    assert (result["ready"], result["stale"], result["changed"]) == (True, False, False)


def test_joined(bring, system):
    """It has met the others once torchrun has started processes, which it does not do before."""
    bring()
    assert bring("present")["joined"] is False
    with pytest.raises(Failed, match="not_begun: its hosts have not met in time; it keeps running"):
        bring("joined", timeout=0)
    system.lines = ["[default] Rendezvous'ing worker group"]
    with pytest.raises(Failed, match="peer_missing: its hosts have not met in time"):
        bring("joined", timeout=0)
    system.processes = {8: {command.OF_TORCHRUN: "x"}}
    result = bring("joined", timeout=0)
    assert (result["joined"], result["running"], result["verdict"], result["changed"]) == (True, True, "ok", False)
    assert bring("present")["joined"] is True
    assert bring(restart=True)["joined"] is False


@pytest.mark.parametrize("state", ["present", "finished", "joined"])
def test_one_that_has_ended_before_systemd_knows(bring, system, state):
    """The unit is active and its main process has no environment any more: no other definition of the job either."""
    bring()
    system.buried = 3
    result = bring.bare(state)
    assert (result["ready"], result["stale"], result["changed"]) == (True, False, False)


def test_one_that_is_just_being_executed_is_no_other_job(bring, system):
    """Type=exec: systemd calls the unit active a moment after the kernel has executed torchrun."""
    bring()
    system.late = [{"ActiveState": "activating"}] * 2
    result = bring("present")
    assert (result["ready"], result["stale"]) == (True, False) and not system.late


@pytest.mark.parametrize(
    "late", [[{"ActiveState": "active", "MainPID": "7"}] * 3, [{"ActiveState": "deactivating", "MainPID": "0"}] * 3]
)
def test_one_that_ends_at_once_before_systemd_is_done_with_it(bring, system, late):
    system.dies, system.late = ("exit-code", "exited", "1"), list(late)
    with pytest.raises(Failed, match="it ended at once"):
        bring()
    assert not system.late


def test_what_an_earlier_run_has_left_says_nothing_of_one_that_met_nobody(bring, system):
    """torchrun makes the folder of a run once the hosts have met."""
    bring()
    leave(system, 0, 1, error="ValueError: no data for me")
    system.end("exit-code", "exited", "1")
    with pytest.raises(Failed, match="no data for me"):
        bring.bare("finished")
    system.dies = ("exit-code", "exited", "1")
    with pytest.raises(Failed) as caught:
        bring(restart=True)
    assert "no data for me" not in str(caught.value) and caught.value.result["failures"] == []


@pytest.mark.parametrize("status, text", [("TERM", "ended by SIGTERM"), ("KILL", "ended by SIGKILL")])
def test_one_that_was_stopped_has_not_ended_well(bring, system, status, text):
    """systemd calls a process that SIGTERM ends a success."""
    bring()
    system.end("success" if status == "TERM" else "signal", "killed", status)
    assert bring("present")["ready"] is False
    with pytest.raises(Failed, match="stopped: it has failed. it was " + text):
        bring.bare("finished")
    assert bring()["started"] is True


@pytest.mark.parametrize(
    "declared, told, waits",
    [(30, "", 50), (600, "45s", 620), (30, "10min 15s", 620)],  # a longer one is still loaded
)
def test_a_stop_is_given_the_time_that_the_unit_has(bring, system, declared, told, waits):
    bring()
    show, limits = system.show, []
    system.show = lambda unit: dict(show(unit), TimeoutStopUSec=told)
    stop = system.stop
    system.stop = lambda unit, limit: limits.append(limit) or stop(unit, limit)
    bring("stopped", stop_timeout=declared)
    assert limits == [waits]


@pytest.mark.parametrize(
    "name, words",
    [
        ("GLOO_IB_DISABLE", "reads GLOO_IB_DISABLE: leave it out, or use NCCL_IB_DISABLE (Gloo uses TCP alone)"),
        ("NCCL_IFNAME", "or use NCCL_SOCKET_IFNAME"),
        ("GLOO_IFNAME", "or use one of GLOO_SOCKET_IFNAME, "),
        ("GLOO_ENABLE_RANK_AS_SEQUENCE_NUMBER", None),
        ("GLOO_DEVICE_TRANSPORT_TCP_TLS_PKEY", None),
        ("NCCL_IB_DISABLE", None),
        ("NCCL_OF_A_PLUGIN", None),
    ],
)
@pytest.mark.parametrize("option", ["environment", "secret_environment"])
def test_a_variable_that_nothing_reads_is_told_at_the_start(bring, option, name, words):
    said = []
    bring(warnings=said, **{option: {name: "1"}})
    told = [text for text in said if "neither NCCL, Gloo" in text]
    assert len(told) == (words is not None) and all(words in text for text in told)
    bring(warnings=said, **{option: {name: "1"}})
    assert [text for text in said if "neither NCCL, Gloo" in text] == told  # it runs by now


def leave(system, attempt, rank, error=None, stderr="", stdout=""):
    folder = system.path("/var/log/torchrun/train/train-1_x/attempt_%d/%d" % (attempt, rank))
    folder.mkdir(parents=True)
    (folder / "stdout.log").write_text(stdout)
    (folder / "stderr.log").write_text(stderr)
    if error:
        told = {"message": error, "extraInfo": {"timestamp": "1795357234"}}
        (folder / "error.json").write_text(json.dumps({"message": told}))


def test_why_it_failed(bring, system):
    system.ends = ("exit-code", "exited", "1")
    bring()
    leave(system, 0, 0, error="ValueError: bad batch")
    with pytest.raises(Failed, match="worker_failed: it has failed. rank 0 .* ValueError: bad batch") as raised:
        bring("finished")
    result = raised.value.result
    assert result["exit_status"] == 1
    assert result["failures"] == [
        {"host": "a", "rank": 0, "local_rank": 0, "attempt": 0, "exit_code": None, "time": 1795357234.0,
         "message": "ValueError: bad batch", "fault": None}
    ]  # fmt: skip


def test_a_cause_without_an_error_file(bring, system, log):
    system.ends = ("exit-code", "exited", "1")
    system.lines = log("too-many").splitlines()
    with pytest.raises(Failed, match="too_many_processes: it has failed. more processes than GPUs") as raised:
        bring("finished")
    assert [(one["rank"], one["exit_code"]) for one in raised.value.result["failures"]] == [(4, 1)]


def test_a_process_that_the_watchdog_ended_is_told_with_its_line(bring, system):
    system.ends = ("exit-code", "exited", "1")
    bring()
    words = "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=125, OpType=ALLREDUCE, NumelIn=1)"
    leave(system, 0, 0, stderr="all is well\n[rank0]:[E1129 ProcessGroupNCCL.cpp:685] %s\nterminate called\n" % words)
    with pytest.raises(
        Failed, match="collective_timeout: it has failed. not all processes came to operation 125"
    ) as raised:
        bring("finished")
    (failure,) = raised.value.result["failures"]
    assert failure["fault"] == "collective_timeout" and words in failure["message"]


def test_a_restart_is_told(bring, system):
    bring()
    leave(system, 0, 0, error="RuntimeError: killed")
    leave(system, 1, 0, stdout="RANKS rank=0 local=0 world=2 node=0 master=a\n")
    result = bring("finished")
    assert result["restarts"] == 1 and " · 1 restart" in result["msg"]
    assert [one["message"] for one in result["failures"]] == ["RuntimeError: killed"]


def test_a_process_that_was_killed_leaves_no_word_but_is_told(bring, system, log):
    leave(system, 0, 0)
    leave(system, 1, 0)
    system.lines = log("restarted").splitlines()
    result = bring("finished")
    assert [(one["rank"], one["attempt"], one["exit_code"]) for one in result["failures"]] == [(1, 0, -9), (1, 1, 1)]
    assert (result["restarts"], result["rounds"][-1]["nodes"]) == (3, 2)


def test_one_that_does_not_end(bring, system):
    system.ends = None
    with pytest.raises(Failed, match="not_begun: it has not ended in time; it keeps running") as raised:
        bring("finished", timeout=0)
    assert raised.value.result["running"] is True and system.up


def test_one_that_dies_at_once(bring, system):
    system.dies = ("exit-code", "exited", "2")
    system.lines = ["python: can't open file '/srv/train.py': [Errno 13]"]
    with pytest.raises(Failed, match="no_script: it ended at once. there is no script /srv/train.py"):
        bring()


@pytest.mark.parametrize(
    "more, message",
    [
        ({"venv": "/opt/none"}, "there is no /opt/none/bin/python: install the environment first"),
        ({"script": "/srv/none.py"}, "there is no script /srv/none.py on this host"),
        ({"user": "nobody-here"}, "there is no user nobody-here"),
        ({"working_directory": "/none"}, "there is no working_directory /none"),
        (
            {"environment": {"NCCL_SOCKET_IFNAME": "=nosuch0"}},
            "this host has no interface nosuch0; there are: eth0, lo",
        ),
        ({"environment": {"NCCL_SOCKET_IFNAME": "nosuch"}}, "no interface nosuch"),
        ({"environment": {"GLOO_SOCKET_IFNAME": "eth"}}, "no interface eth;"),
        ({"options": {"nnodes": 3}}, "the job would not run: the group has 2 hosts"),
        ({"name": "a b"}, "name: 'a b'"),
    ],
)
def test_what_is_known_to_fail_is_refused(bring, system, more, message):
    with pytest.raises(Refused, match=message):
        bring(**more)
    assert system.calls == []


@pytest.mark.parametrize("value", ["eth", "^docker", "=eth0,nosuch0,"])
def test_interfaces_that_are_there(bring, value):
    if "nosuch" in value:
        with pytest.raises(Refused):
            bring(environment={"NCCL_SOCKET_IFNAME": value})
    else:
        assert bring(environment={"NCCL_SOCKET_IFNAME": value})["started"]


def test_a_plan_is_needed(params, system):
    with pytest.raises(Refused, match="plan: expected the result of the lookup"):
        job.converge(params(), False, print, system)


def test_a_host_that_is_not_in_the_plan(params, system, node):
    with pytest.raises(Refused, match="the plan has no part for host z: its hosts are a"):
        job.converge(params(plan=dict(plan.make({"a": node("a")}), host="z")), False, print, system)


def test_findings_are_warnings(bring, monkeypatch):
    monkeypatch.setattr(trusted, "trusted", lambda path: True)  # /tmp is everybody's
    warnings = []
    bring(warnings=warnings)
    assert warnings == [
        "not_tried: no host has tried to reach another: run torchrun_facts with peers to find out before the job does"
    ]


def test_stopped_and_absent(bring, system):
    bring()
    assert bring("stopped", check=True)["changed"] is True and system.up
    result = bring("stopped")
    assert (result["changed"], result["stopped"], system.up) == (True, True, False)
    assert bring("stopped")["changed"] is False
    assert bring("absent")["changed"] is True
    left = [name for _folder, _folders, files in os.walk(system.path("/etc")) for name in files]
    assert left == [] and not system.path("/var/lib/gpufleet/torchrun/train").exists()
    assert bring("absent")["changed"] is False


def test_old_logs_are_removed_at_a_start(bring, system):
    for number in range(6):
        folder = system.path("/var/log/torchrun/train/train-1_%d/attempt_0" % number)
        folder.mkdir(parents=True)
        os.utime(folder.parent, (number, number))
    system.path("/var/log/torchrun/train/mine").mkdir()
    bring(keep_logs=3)
    assert sorted(path.name for path in system.path("/var/log/torchrun/train").iterdir()) == [
        "mine",
        "train-1_4",
        "train-1_5",
    ]


def test_a_changed_script_restarts_the_job(bring, system):
    bring(code={"digest": "one"})
    assert bring(code={"digest": "one"})["changed"] is False
    assert bring("present", code={"digest": "two"})["stale"] is True
    assert bring(code={"digest": "two"})["started"] is True


# --- torchrun's own options


@pytest.fixture
def torchrun(system):
    """The environment's torchrun, which has two options of those that may be declared."""
    source = system.path("/opt/torch/lib/python3.11/site-packages/torch/distributed/run.py")
    source.parent.mkdir(parents=True)
    source.write_text('add_argument("--tee", help="see --other")\nadd_argument("--numa-binding")\n')


def test_an_option_that_this_torchrun_does_not_have(bring, system, torchrun):
    with pytest.raises(Refused, match="options: the torchrun of /opt/torch has no option other"):
        bring("present", own={"other": 1, "tee": 3})
    assert system.calls == []
    bring("present", own={"tee": 3})


@pytest.mark.parametrize("gpus, said", [(0, "the job uses no GPU on this host"), (1, "numactl, which is not in PATH")])
def test_what_binding_to_numa_nodes_needs(bring, system, torchrun, gpus, said):
    with pytest.raises(Refused, match="options: numa-binding: .*" + said):
        bring(gpus=gpus, own={"numa_binding": "node"})
    path = system.path("/usr/bin/numactl")
    path.parent.mkdir(parents=True)
    path.write_text("")
    path.chmod(0o755)
    bring(gpus=1, own={"numa_binding": "node"})
    assert system.up


# --- the claim on the GPUs

CLAIM = "/etc/systemd/system/torchrun@train.service.d/zz-gpufleet.conf"


def a_service(system, monkeypatch, **state):
    """An instance of vLLM on this host that has claimed GPU 1."""
    name = "/etc/systemd/system/vllm@chat.service.d/zz-gpufleet.conf"
    system.path(name).parent.mkdir(parents=True)
    system.path(name).write_text("[X-Gpufleet]\nExclusive=yes\nGPU=GPU-1 0.9\n")
    state = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled", **state}
    show = system.show
    monkeypatch.setattr(system, "show", lambda unit: state if unit == "vllm@chat.service" else show(unit))


def test_a_job_claims_its_gpus(bring, system):
    bring(gpus=2, options={"gpus": [1]})
    assert system.path(CLAIM).read_text().endswith("\n[X-Gpufleet]\nExclusive=yes\nGPU=GPU-1\n")
    assert bring(gpus=2, options={"gpus": [1]})["changed"] is False
    bring(gpus=2, options={"gpus": []})
    assert not system.path(CLAIM).parent.exists()
    bring(gpus=2)
    assert [claim.gpus for claim in claims.held(system)] == [{"GPU-0": None, "GPU-1": None}]
    bring("absent")
    assert not system.path(CLAIM).parent.exists()


@pytest.mark.parametrize("state", ["present", "started"])
@pytest.mark.parametrize("check", [True, False])
def test_a_job_is_refused_where_a_service_has_the_gpu(bring, system, monkeypatch, state, check):
    a_service(system, monkeypatch)
    with pytest.raises(Refused) as caught:
        bring(state, check, gpus=2)
    assert "torchrun@train.service and vllm@chat.service both claim GPU 1 (GPU-1), and each for itself" in str(
        caught.value
    )
    assert system.calls == [] and not system.path(CLAIM).exists()
    bring(gpus=2, options={"gpus": [0]})
    assert system.up


def test_a_service_that_is_down_has_no_gpu(bring, system, monkeypatch):
    a_service(system, monkeypatch, ActiveState="inactive", UnitFileState="disabled")
    bring(gpus=2)
    assert system.up


def test_a_service_that_comes_between_the_check_and_the_start(bring, system, monkeypatch):
    monkeypatch.setattr(system, "reset_failed", lambda unit: a_service(system, monkeypatch))
    with pytest.raises(Failed) as caught:
        bring(gpus=2)
    assert "vllm@chat.service both claim GPU 1" in str(caught.value) and not system.up


@pytest.mark.parametrize("ended", [True, False])
def test_a_service_is_refused_as_long_as_the_job_runs(bring, system, ended):
    bring(gpus=2)
    if ended:
        system.end("signal", "killed", "KILL")
        claims.check([claims.Claim("vllm@chat.service", {"GPU-1": 0.9})], system)
        return
    with pytest.raises(Refused, match="torchrun@train.service both claim GPU GPU-1"):
        claims.check([claims.Claim("vllm@chat.service", {"GPU-1": 0.9})], system)


def test_how_a_job_failed_is_told_also_when_a_service_has_its_gpus_by_then(bring, system, monkeypatch):
    bring(gpus=2)
    system.end("exit-code", "exited", "1")
    a_service(system, monkeypatch)
    with pytest.raises(Failed, match="it has failed"):
        bring.bare("finished", gpus=2)
