# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""torchrun jobs over three hosts with a real PyTorch: torchrun_facts, the plan, torchrun_job, and what may go wrong.

FAULTS_TABLE=path    write the table of docs/faults.md
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from faults_table import Row

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("gpu1", "gpu2", "gpu3")
PRINTS = """
import os, time
print("RANKS rank=%(RANK)s local=%(LOCAL_RANK)s world=%(WORLD_SIZE)s node=%(GROUP_RANK)s" % os.environ, flush=True)
"""
"""Without an import of PyTorch, which takes 2 s of CPU time in each process."""
# a job that does not end by itself
WAITS = PRINTS + "time.sleep(600)\n"
LOST = (
    PRINTS
    + """
import torch.distributed
os.environ["GLOO_SOCKET_IFNAME"] = "nosuch0"
torch.distributed.init_process_group("gloo")
"""
)
DIES = (
    PRINTS
    + """
if os.environ["RANK"] != "3":
    # the others do not end by themselves
    time.sleep(600)
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    raise ValueError('no data for me')
main()
"""
)
PATIENCE = 300
"""Seconds that a busy machine may take for what goes well; a fault has its verdict from elsewhere."""


@pytest.fixture(scope="module")
def venv():
    made = [sys.executable, str(ROOT / "tests/lab/torch/environment.py"), "path"]
    return subprocess.run(made, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@pytest.fixture
def clean(lab):
    """No job on any host, also where a test failed in the midst of one."""

    def end():
        for host in HOSTS:
            lab.sh(host, "systemctl stop 'torchrun@*' gpufleet-torchrun-listen.service; systemctl reset-failed;"
                         " rm -rf /etc/gpufleet/torchrun /etc/systemd/system/torchrun@* /var/lib/gpufleet/torchrun"
                         " /var/log/torchrun; systemctl daemon-reload", check=False)  # fmt: skip

    yield
    end()


@pytest.fixture
def net(lab):
    """`net(host, command)` in the host's network, undone by what was given as `undo` at the test's end."""
    undone = []

    def run(host, command, undo=None, check=True):
        if undo:
            undone.append((host, undo))
        return lab.lab("net", host, "--", "sh", "-c", command, check=check).stdout

    yield run
    for host, command in reversed(undone):
        lab.lab("net", host, "--", "sh", "-c", command, check=False)


@pytest.fixture
def play(lab, venv, clean):
    """`play(name, variables)` runs a playbook of the collection."""

    def run(name="torchrun", ok=True, words=(), **variables):
        given = {"torchrun_venv": venv, "torchrun_nproc_per_node": 2, "torchrun_join_timeout": 300, "torchrun_gpus": []}
        given.update({"torchrun_" + key: value for key, value in variables.items()})
        given = {name: value for name, value in given.items() if value is not None}
        playbook = str(ROOT / "playbooks" / (name + ".yml"))
        return lab.playbook(playbook, "-e", json.dumps(given), *words, ok=ok, warnings=True)

    return run


@pytest.fixture
def before_torchrun(lab, venv):
    """`before_torchrun(gpu1="sleep 5")`: an environment whose Python first does that on that host; its path."""

    def make(**lines):
        for host in HOSTS:
            program = '#!/bin/sh\n%s\nexec %s/bin/python "$@"\n' % (lines.get(host, ""), venv)
            lab.sh(host, "mkdir -p /opt/odd/bin; ln -sfn %s/lib /opt/odd/lib; printf '%%s' '%s' >/opt/odd/bin/python;"
                         " chmod +x /opt/odd/bin/python" % (venv, program))  # fmt: skip
        return "/opt/odd"

    yield make
    for host in HOSTS:
        lab.sh(host, "rm -rf /opt/odd")


def job_of(run, host=None):
    """What the module answered; it is asked again while a job runs, and passed over once it has ended."""
    return [one for one in run.of("torchrun_job", host) if "msg" in one]


def verdict(run):
    """The lines of the verdict."""
    return next(iter(run.of("assert")))["msg"]


@pytest.fixture
def seen(rows):
    """`seen(fault, run, after)`: a line of the table, of what the run said; gives it back."""

    def add(fault, run, after="all hosts stopped"):
        failed = [one["msg"] for one in job_of(run) if one["failed"]]
        said = [one["msg"] for one in run.of("assert") if "msg" in one]
        line = said[0][0] if said else failed[0]
        rows.append(Row(fault, line, run.seconds, after))
        return line

    return add


def test_who_reaches_whom_and_how_fast(play, lab):
    run = play("torchrun_check", check_mib=[1, 4], check_iterations=3, check_timeout=PATIENCE)
    lines = verdict(run)
    assert lines[0] == "verdict: ok"
    assert lines[1].startswith("all-reduce of 4 MiB: ") and lines[1].endswith("over socket")
    page = run.of("debug")[0]["msg"]
    assert page[0].startswith("3 hosts, 6 processes, rendezvous static at ")
    assert page.count("gpu3        ok    ok    -") == 1
    ended = [[one for one in job_of(run, host) if one.get("seen_ranks")][-1] for host in HOSTS]
    seen = sorted((who["rank"], who["node"], who["local"]) for one in ended for who in one["seen_ranks"])
    assert seen == [(node * 2 + local, node, local) for node in range(3) for local in range(2)]
    figures = [figure for one in ended for figure in one["allreduce"]]
    assert [figure["sum_ok"] for figure in figures] == [True, True]
    assert sorted((pair["a"], pair["b"]) for one in ended for pair in one["pairs"]) == [(0, 1), (0, 2), (1, 2)]
    # nothing stays
    for host in HOSTS:
        assert "check" not in lab.sh(host, "ls /etc/systemd/system /etc/gpufleet/torchrun /var/log/torchrun 2>&1 || :")


def test_below_the_floor_the_slow_host_is_named(play, net, seen):
    net(
        "gpu3",
        "tc qdisc add dev eth0 root tbf rate 200mbit burst 64kb latency 100ms",
        undo="tc qdisc del dev eth0 root",
    )
    check = {"check_mib": [1], "check_iterations": 1, "check_timeout": PATIENCE, "check_floor_gbps": 1000}
    run = play("torchrun_check", ok=False, nproc_per_node=1, **check)
    line = seen("check: gpu3 sends 200 Mbit/s at most", run, "nothing left")
    assert run.rc and line.startswith("verdict: slow · bus bandwidth ")
    assert "expected at least 1000.0 GB/s; the outlier is gpu3: 0.0" in line


@pytest.fixture
def wheels(lab, venv, tmp_path):
    """A folder with a wheel of PyTorch that leads to the shared one; what is made of it is removed."""
    shared = venv + "/lib/python3.11/site-packages"
    info = "torch-2.13.0+cpu.dist-info/"
    members = {
        "torch/version.py": lab.sh("gpu1", "cat %s/torch/version.py" % shared),
        "torch_shared.pth": "import sys; sys.path.insert(0, %r)\n" % shared,
        info + "METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n",
        info + "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members[info + "RECORD"] = "".join("%s,,\n" % name for name in [*members, info + "RECORD"])
    with zipfile.ZipFile(tmp_path / "torch-2.13.0+cpu-py3-none-any.whl", "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    yield str(tmp_path)
    for host in HOSTS:
        lab.sh(host, "rm -rf /opt/gpufleet/torch")


def test_the_second_run_changes_nothing(play, lab, wheels):
    """In an environment that the role makes."""
    job = {"job_name": "who", "content": PRINTS, "state": "finished", "timeout": PATIENCE}
    job.update(venv=None, version="2.13.0", cuda="cpu", wheels=wheels)
    first = play(**job)
    assert [one["changed"] for one in first.of("python_environment")] == [True] * 3
    assert first.changed and "finished" in job_of(first, "gpu1")[-1]["msg"]
    invocation = lab.sh("gpu2", "cat /var/lib/gpufleet/torchrun/who/ended")
    second = play(**job)
    assert second.changed == 0
    assert lab.sh("gpu2", "cat /var/lib/gpufleet/torchrun/who/ended") == invocation
    unit = lab.sh("gpu2", "systemctl cat torchrun@who")
    assert "ExecStart=/opt/gpufleet/torch/2.13.0-cpu-" in unit
    assert "node 1 of 3, ranks 2 to 3 of 6" in unit and "LimitMEMLOCK=infinity" in unit
    checked = play(words=["--check"], **job)
    assert checked.changed == 0
    play(job_name="who", state="absent")
    assert lab.sh("gpu2", "systemctl cat torchrun@who", check=False).startswith("No files found")


def test_nothing_of_a_users_job_runs_as_root(play, lab, before_torchrun):
    """Each process that gets the job's variables leaves a file: the dynamic linker is told so by them."""
    user, state = "daemon", "/var/lib/gpufleet/torchrun/users"
    job = {"job_name": "users", "user": user, "state": "finished", "timeout": PATIENCE, "nproc_per_node": 1}
    job.update(venv=before_torchrun(**dict.fromkeys(HOSTS, "exit 0")), content="", secret_environment={"KEY": "hidden"})
    job.update(environment={"LD_DEBUG": "statistics", "LD_DEBUG_OUTPUT": "/var/tmp/torchrun-seen"})
    lab.sh(
        "gpu2",
        "mkdir -p /srv/users; chown %s: /srv/users; runuser -u %s -- ln -sfn /etc /srv/users/runs" % (user, user),
    )
    before = lab.sh("gpu2", "stat -c '%u %a' /etc; ls -A /etc")
    run = play(ok=False, log_dir="/srv/users/runs/deeper", **job)
    assert "log_dir: /srv/users/runs/deeper: runs is a symbolic link" in job_of(run, "gpu2")[-1]["msg"]
    assert lab.sh("gpu2", "stat -c '%u %a' /etc; ls -A /etc") == before
    try:
        assert verdict(play(**job))[0] == "verdict: ok"
        owners = lab.sh("gpu2", "stat -c %U /var/tmp/torchrun-seen*").split()
        assert owners == [user, user]  # the job, and the shell that says how it ended
    finally:
        for host in HOSTS:
            lab.sh(host, "rm -rf /srv/users /var/tmp/torchrun-seen*")
    owners = lab.sh("gpu2", "stat -c '%%U %%a' %s %s/ended /var/log/torchrun/users" % (state, state)).split()
    assert owners == ["root", "755", user, "644", user, "755"]
    assert " success exited 0 " in lab.sh("gpu2", "cat %s/ended" % state)


def test_two_networks_whose_names_differ(play, net, lab):
    """A second network that leads nowhere, with a better name and the same subnet everywhere; eth0 has another name."""
    for number, host in enumerate(HOSTS, 1):
        net(
            host,
            "ip link add aaa0 type veth peer name aaa1 && ip link set aaa1 up && ip link set aaa0 up"
            " && ip addr add 10.99.0.%d/24 dev aaa0" % number,
            undo="ip link del aaa0",
        )
    gateway = net("gpu2", "ip -o route show default").split()[2]
    rename = "ip link set {0} down; ip link set {0} name {1}; ip link set {1} up; ip route add default via %s" % gateway
    net("gpu2", rename.format("eth0", "ens1f1np1"), undo=rename.format("ens1f1np1", "eth0"))
    lab.sh(
        "gpu3",
        "cp /etc/hosts /etc/hosts.was; (echo 127.0.1.1 gpu3; cat /etc/hosts.was) > /tmp/hosts;"
        " cat /tmp/hosts > /etc/hosts",
    )
    try:
        run = play("torchrun_check", nproc_per_node=1, check_mib=[1], check_iterations=2, check_timeout=PATIENCE)
    finally:
        lab.sh("gpu3", "cat /etc/hosts.was > /etc/hosts")
    assert verdict(run)[0] == "verdict: ok"
    page = "\n".join(run.of("debug")[0]["msg"])
    assert [line.split()[4] for line in page.splitlines()[2:5]] == ["eth0", "ens1f1np1", "eth0"]
    assert "gpu2: NCCL_SOCKET_IFNAME==ens1f1np1" in page and "ens1f1np1 (" in page
    assert "gpu3: GLOO_SOCKET_IFNAME=eth0" in page
    assert "gpu3 resolves to 127.0.1.1" in page


def test_a_firewall_before_the_rendezvous(play, net, lab, seen):
    job = {"job_name": "wall", "content": PRINTS, "state": "finished", "timeout": PATIENCE}
    drop = "iptables %s INPUT -p tcp --dport 29500 -j DROP"
    net("gpu1", drop % "-I", undo=drop % "-D")
    run = play(ok=False, **job)
    seen("a firewall before the master's port", run, "untouched")
    failed = [one["msg"] for one in job_of(run) if one["failed"]]
    assert failed and all("does not reach the rendezvous" in text and "a firewall" in text for text in failed)
    assert "gpu2 does not reach" in failed[0] and "gpu3 does not reach" in failed[0]
    assert lab.sh("gpu1", "ls /etc/systemd/system | grep -c torchrun", check=False).strip() == "0"
    net("gpu1", drop % "-D")
    assert "verdict: ok" in verdict(play(**job))


def test_a_peer_without_sshd(play, lab, seen):
    job = {"job_name": "mute", "content": PRINTS, "state": "finished", "timeout": PATIENCE}
    lab.sh("gpu3", "systemctl stop ssh.service ssh.socket 2>/dev/null; pkill -x sshd; true", check=False)
    try:
        run = play(ok=False, **job)
    finally:
        lab.sh("gpu3", "systemctl start ssh.service")
    seen("a host without sshd", run, "untouched")
    failed = [one["msg"] for one in job_of(run) if one["failed"]]
    assert failed and all("gpu3 has no facts from this run: it was not reached" in text for text in failed)
    assert "verdict: ok" in verdict(play(**job))


def test_a_rank_that_dies_at_its_start(play, seen):
    job = {"job_name": "dies", "state": "finished", "timeout": PATIENCE}
    run = play(ok=False, content=DIES, **job)
    first = seen("a process dies at its start", run)
    assert first.startswith("verdict: worker_failed · gpu2: first failed rank 3 (local rank 1) exited with status 1")
    assert "ValueError: no data for me" in first
    assert verdict(play(content=PRINTS, **job))[0] == "verdict: ok"


@pytest.mark.parametrize("name", ["NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"])
def test_an_interface_that_is_not_there_is_refused(play, seen, name):
    run = play(ok=False, job_name="iface", content=PRINTS, environment={name: "nosuch0"})
    seen("%s names a missing interface" % name, run, "untouched")
    failed = [one["msg"] for one in job_of(run) if one["failed"]]
    assert len(failed) == 3 and all("this host has no interface nosuch0; there are:" in text for text in failed)


def test_an_interface_that_only_the_script_knows(play, seen):
    """What cannot be seen beforehand is told from the log."""
    run = play(ok=False, job_name="iface", content=LOST, nproc_per_node=1, state="finished", timeout=PATIENCE)
    line = seen("the script itself names a missing interface", run)
    assert line.startswith("verdict: bad_interface · gpu") and "there is no network interface nosuch0" in line


def test_a_changed_job_is_started_anew_on_all_hosts(play, lab, before_torchrun):
    """The master's torchrun takes long to start: its hosts have met when the play ends, not only begun."""
    job = {"job_name": "long", "venv": before_torchrun(gpu1="sleep 5"), "content": WAITS}

    def invocations():
        return [lab.sh(host, "systemctl show -P InvocationID torchrun@long").strip() for host in HOSTS]

    run = play(**job)
    first = invocations()
    assert verdict(run)[0] == "verdict: ok" and [one["joined"] for one in job_of(run)[-3:]] == [True] * 3
    again = play(**job)
    assert again.changed == 0 and invocations() == first
    assert not [one for one in again.of("assert") if "msg" in one]  # there was nothing to wait for
    # all start as after a boot: the run in between leaves the master its port, and waits, too
    for host in HOSTS:
        lab.sh(host, "systemctl restart torchrun@long")
    run = play(**job)
    booted = invocations()
    assert run.changed == 0 and not set(booted) & set(first)
    assert [one["joined"] for one in job_of(run)[-3:]] == [True] * 3
    # one host declares another environment: all are started anew
    run = play(**job, environment="{{ {'ONLY': 'gpu2'} if inventory_hostname == 'gpu2' else {} }}")
    assert not set(invocations()) & set(booted)
    assert [one["stale"] for one in job_of(run)[:3]].count(True) == 1
    assert "ONLY=gpu2" in lab.sh("gpu2", "tr '\\0' '\\n' < /proc/$(systemctl show -P MainPID torchrun@long)/environ")
    play(job_name="long", state="stopped")
    assert lab.sh("gpu1", "systemctl is-active torchrun@long", check=False).strip() == "inactive"


def test_a_host_that_does_not_come_to_the_rendezvous_is_named(play, lab, before_torchrun, seen):
    """Its process hangs, or somebody stops it: the others say so within the time to join, and nothing goes on."""
    job = {"job_name": "alone", "content": WAITS, "join_timeout": 15}
    for fault, line, name in (
        ("torchrun of a host hangs before the rendezvous", "kill -STOP $$", "not_begun"),
        ("torchrun of a host is stopped before the rendezvous", "kill -TERM $$", "stopped"),
    ):
        run = play(ok=False, venv=before_torchrun(gpu3=line), **job)
        said = seen(fault, run)
        assert said.startswith("verdict: %s · gpu3: torchrun@alone.service: %s: " % (name, name))
        for host in HOSTS:
            active = lab.sh(host, "systemctl is-active torchrun@alone", check=False).strip()
            assert active in ("inactive", "failed"), host
    assert verdict(play(venv=before_torchrun(), **dict(job, join_timeout=300)))[0] == "verdict: ok"
