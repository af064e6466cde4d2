# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a job."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import parse_environment_file
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import command, plan


@pytest.fixture
def job(node, interface, params):
    """`job(host="b", planned={...}, **params)` is the part of one of two hosts, a and b."""

    def make(host="a", planned=None, **more):
        facts = {
            "a": node("a", interface("eth0", "10.1.0.1/24"), names=["127.0.1.1"]),
            "b": node("b", interface("ens1", "10.1.0.2/24")),
        }
        return command.Job(params(**more), dict(plan.make(facts, nproc_per_node=2, **(planned or {})), host=host))

    return make


def test_static(job):
    assert job("b").command() == [
        *("/opt/torch/bin/python", "-m", "torch.distributed.run", "--nproc-per-node=2", "--nnodes=2"),
        *("--rdzv-id=" + job("a").rendezvous_id, "--node-rank=1", "--master-addr=10.1.0.1", "--master-port=29500"),
        *("--local-addr=10.1.0.2", "--rdzv-conf=timeout=300", "--log-dir=/var/log/torchrun/train", "--redirects=3"),
        "/srv/train.py",
    ]


def test_free_options(job):
    words = job(options={"numa_binding": "node", "no-python": True, "tee": 3}, arguments=["--x"]).command()
    assert words[-6:] == ["--redirects=3", "--numa-binding=node", "--no-python", "--tee=3", "/srv/train.py", "--x"]
    assert job(options={"tee": 3}).generation != job().generation


def test_c10d(job):
    elastic = {"min_nodes": 1, "max_restarts": 3}
    words = job("a", elastic, rdzv_conf={"last_call_timeout": 5}, monitor_interval=1.0).command()
    assert "--nnodes=1:2" in words and "--max-restarts=3" in words and "--monitor-interval=1" in words
    assert "--rdzv-backend=c10d" in words and "--rdzv-endpoint=10.1.0.1:29500" in words
    assert "--rdzv-conf=join_timeout=300,read_timeout=60,is_host=true,last_call_timeout=5" in words
    assert any("is_host=false" in word for word in job("b", elastic).command())


def test_standalone_and_module(node, params):
    made = plan.make({"a": node("a", gpus=4)})
    words = command.Job(params(script=None, module="pkg.train", arguments=["-x"]), dict(made, host="a")).command()
    assert words[3:5] == ["--nproc-per-node=4", "--standalone"] and words[-3:] == ["--module", "pkg.train", "-x"]


def test_a_change_on_one_host_is_a_change_on_all(job, node, interface):
    before = [job("a").generation, job("b").generation]
    assert [job("a", {"master_port": 29501}).generation, job("b", {"master_port": 29501}).generation] != before
    assert job("a", script="/srv/other.py").rendezvous_id == job("b", script="/srv/other.py").rendezvous_id
    assert job("a", script="/srv/other.py").rendezvous_id != job("a").rendezvous_id
    # the network of b alone
    changed = {
        "a": node("a", interface("eth0", "10.1.0.1/24"), names=["127.0.1.1"]),
        "b": node("b", interface("ens1", "10.1.0.3/24")),
    }
    made = plan.make(changed, nproc_per_node=2)
    assert command.Job(job("a").params, dict(made, host="a")).generation != before[0]


def test_what_does_not_change_a_job(job):
    assert job(timeout=1, restart=True, keep_logs=1, state="present").generation == job().generation
    assert job(secret_environment={"A": "1"}).generation == job(secret_environment={"A": "2"}).generation


def test_environment_file(job):
    made = job(
        "a", environment={"NCCL_DEBUG": "INFO", "ODD": 'a "b" $c `d` \\ %'}, secret_environment={"KEY": "s3cr3t"}
    )
    files = made.files()
    text, mode = files["/etc/gpufleet/torchrun/train.env"]
    assert mode == 0o644 and "s3cr3t" not in text
    assert '# Gloo looks up the host\'s own name: a resolves to 127.0.1.1 here\nGLOO_SOCKET_IFNAME="eth0"\n' in text
    read = {name: value for name, (value, _line) in parse_environment_file(text.encode()).items()}
    assert read["ODD"] == 'a "b" $c `d` \\ %' and read["NCCL_DEBUG"] == "INFO"
    assert read["GPUFLEET_JOB"] == made.mark
    assert files["/etc/gpufleet/torchrun/train.secrets"] == ('KEY="s3cr3t"\n', 0o600)
    assert not any("s3cr3t" in text for path, (text, _mode) in files.items() if not path.endswith(".secrets"))


def test_unit(job):
    text = job(
        "b", arguments=["--prompt", '50% of $HOME "x"'], user="trainer", working_directory="/srv/a b"
    ).unit_text()
    assert "Description=torchrun job train, node 1 of 2, ranks 2 to 3 of 4\n" in text
    assert "User=trainer\nWorkingDirectory=/srv/a b\nEnvironmentFile=/etc/gpufleet/torchrun/train.env\n" in text
    assert '    /srv/train.py --prompt "50%% of $$HOME \\"x\\""\n' in text
    assert "LimitMEMLOCK=infinity\n" in text
    assert "secrets" not in text


@pytest.mark.parametrize(
    "more, folder",
    [
        ({}, "/srv"),
        ({"working_directory": "/data"}, "/data"),
        ({"script": None, "module": "pkg.train"}, "/"),
        ({"script": None, "content": "print(1)"}, "/"),
    ],
)
def test_a_job_runs_in_the_folder_of_its_script(job, more, folder):
    made = job(**more)
    assert "\nWorkingDirectory=%s\n" % folder in made.unit_text()
    assert "\ncd %s || exit 1\n" % folder in made.script_text()


def test_the_libraries_of_cuda_compat_come_first(job):
    made = job(environment={"LD_LIBRARY_PATH": "/opt/efa/lib"})
    assert made.environment["LD_LIBRARY_PATH"] == ("/opt/efa/lib", "declared")
    made.node["environment"]["LD_LIBRARY_PATH"] = "/opt/torch/cuda-compat"
    made.node["reasons"]["LD_LIBRARY_PATH"] = "needed"
    assert made._environment()["LD_LIBRARY_PATH"][0] == "/opt/torch/cuda-compat:/opt/efa/lib"


def test_programs_of_the_environment_are_found(job):
    path = job(venv="/opt/conda/envs/x").environment["PATH"][0]
    assert path.split(":")[:2] == ["/opt/conda/envs/x/bin", "/usr/local/cuda/bin"] and path.endswith(":/bin")
    assert job(environment={"PATH": "/own"}).environment["PATH"] == ("/own", "declared")


def test_the_stop_leaves_time_for_a_checkpoint(job):
    made = job(stop_timeout=600)
    assert made.environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"][0] == "600"
    assert "\nTimeoutStopSec=615\n" in made.unit_text()


def test_the_unit_of_an_elastic_job_does_not_change_with_its_hosts(job, node, interface, params):
    alone = plan.make({"a": node("a", interface("eth0", "10.1.0.1/24"), names=["127.0.1.1"]), "b": None}, min_nodes=1,
                      nproc_per_node=2)  # fmt: skip
    without = command.Job(params(), dict(alone, host="a"))
    assert without.files() == job("a", {"min_nodes": 1}).files()


def test_a_content_becomes_the_script(job):
    made = job(script=None, content="print(1)\n")
    assert made.files()["/var/lib/gpufleet/torchrun/train/script.py"] == ("print(1)\n", 0o644)
    assert made.command()[-1] == "/var/lib/gpufleet/torchrun/train/script.py"
    assert made.generation != job(script=None, content="print(2)\n").generation


def test_plain_script(job, tmp_path):
    argument = "it's $HOME"
    made = job("a", arguments=[argument], script_path="/root/launch.sh", environment={"ODD": "a'b\n$c"})
    text = made.script_text()
    # run it with a torchrun that says what it was given
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$ODD" "$GLOO_SOCKET_IFNAME" "$@"\n')
    fake.chmod(0o755)
    text = text.replace("/opt/torch/bin/python", shlex.quote(str(fake))).replace("ulimit -l unlimited\n", "")
    done = subprocess.run(["sh", "-c", text], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines() == ["a'b", "$c", "eth0", *made.command()[1:]]


@pytest.mark.parametrize(
    "more, message",
    [
        ({"name": "a/b"}, "name: 'a/b': expected letters"),
        ({"script": None}, "expected one of script, module and content, found none"),
        ({"module": "x"}, "found script and module"),
        ({"script": "train.py"}, "expected an absolute path"),
        ({"options": {"nproc_per_node": 2}}, "options: nproc_per_node is not free"),
        ({"options": {"rdzv-backend": "etcd"}}, "options: rdzv-backend is not free"),
        ({"options": {"r": 3}}, "options: 'r': expected a long name"),
        ({"options": {"tee": "3\n"}}, "options: tee: expected a value on one line"),
        ({"options": {"no-python": False}}, "options: no-python: expected a value on one line, or true"),
        ({"stop_timeout": -1}, "stop_timeout: -1: expected seconds, 0 or more"),
        ({"limits": {"memory": "1"}}, "limits: memory: expected some of as, core"),
        (
            {"environment": {"A": 1}, "secret_environment": {"A": 1}},
            "A is both in environment and in secret_environment",
        ),
        ({"environment": {"WANDB_API_KEY": "x"}}, "environment.WANDB_API_KEY: may be a secret"),
        ({"environment": {"A-B": 1}}, "environment: environment variable 'A-B': systemd drops a name"),
        ({"secret_environment": {"A": "a\0b"}}, "secret_environment: environment variable A: the value has a NUL byte"),
        (
            {"working_directory": "/srv\nExecStartPre=+/bin/sh"},
            "working_directory: '/srv\\nExecStartPre=+/bin/sh' has a line end",
        ),
        ({"limits": {"nofile": "1\nUser=root"}}, "limits: '1\\nUser=root' has a line end"),
    ],
)
def test_what_is_refused(params, more, message):
    assert any(message in text for text in command.check(params(**more)))


def test_nothing_to_refuse(params):
    assert command.check(params()) == []
