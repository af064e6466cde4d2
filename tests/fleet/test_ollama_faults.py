# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each fault of an Ollama on the lab: the verdict, how soon it is known, and that the host is back as it was.

A fault of the worker strikes while a changed setting is proven, one of the server comes with a new release.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/ollama"))

import archive
import faults
import hostsetup

SHORT = {"timeout": 20}  # seconds that a service has to be proven, where it will not be
GOOD = {
    "visible_devices": "all",
    "sched_spread": True,
    "keep_alive": "-1",
    "no_cloud": True,
    "context_length": 4096,
    "timeout": 90,
}


@pytest.fixture(scope="module")
def served(lab):
    """A host with four H200s, an Ollama of ours, and a model."""
    host = lab.reset("gpu2")
    hostsetup.uninstall(host)
    done = lab.module(host, "ollama_service", dict(GOOD, archive=str(archive.path())))
    assert not done["failed"], done["msg"]
    hostsetup.add_models(host, "m8b")
    yield host
    faults.clear(host)
    hostsetup.uninstall(host)
    lab.reset(host)


@pytest.fixture
def change(lab, served):
    """`change(**options)` changes the service and proves it with the model; faults are gone afterwards."""
    yield lambda **options: lab.module(served, "ollama_service", {**GOOD, "prove_model": "m8b", **options})
    faults.clear(served)


@pytest.fixture(scope="module")
def broken_release(tmp_path_factory):
    """A release whose server has the fault that faults.py names on the host."""
    path = tmp_path_factory.mktemp("release") / "ollama-linux-amd64.tgz"
    wrapper = (Path(faults.__file__).parent / "serverwrap").read_bytes()
    server = archive.server(archive.VERSION).read_bytes()
    archive.write(path, {"bin/ollama": (wrapper, 0o755), "bin/ollama.real": (server, 0o755), **archive.stand_in()})
    return str(path)


def state(host):
    """What a change that failed must leave as it was."""
    return hostsetup.sh(
        host,
        "timeout 60 sh -c 'until curl -fs -o /dev/null http://127.0.0.1:11434/api/version; do sleep 0.1; done';"
        "systemctl show ollama -p Environment,ActiveState,SubState,NRestarts,NeedDaemonReload;"
        "readlink /usr/local/bin/ollama /usr/local/lib/ollama; ls /usr/local/lib/gpufleet;"
        "cat /etc/systemd/system/ollama.service.d/*; curl -fsS --max-time 5 http://127.0.0.1:11434/api/version",
    )


def put_back(result, verdict, words, host, before):
    """The change failed with this verdict, and nothing is left of it."""
    print("%-16s known after %5.1f s: %s" % (verdict, result["seconds"], result["msg"].splitlines()[0]))
    assert result["failed"]
    assert result["verdict"] == verdict, result["msg"]
    assert words in result["msg"]
    assert "The previous state is restored. The unit runs again" in result["msg"]
    assert result["rolled_back"]
    assert not result["changed"]
    assert state(host) == before


@pytest.mark.parametrize(
    ("fault", "verdict", "words"),
    [
        ("die-at-load", "load_failed", "error loading model: told to die at load"),
        ("out-of-memory", "load_failed", "cudaMalloc failed: out of memory"),
        ("partial-offload", "partial_offload", "the rest runs on the CPU"),
        ("stall", "stalled", "generated none within"),
    ],
)
def test_a_worker_that_fails(served, change, fault, verdict, words):
    before = state(served)
    faults.worker(served, fault)
    result = change(keep_alive="1h", **(SHORT if verdict == "stalled" else {}))
    put_back(result, verdict, words, served, before)


def test_a_worker_that_takes_its_time(served, change):
    faults.worker(served, "slow-load:3,slow-token:0.5")
    result = change(keep_alive="2h")
    assert not result["failed"], result["msg"]
    assert "m8b on 4 GPUs" in result["msg"]


@pytest.mark.parametrize(
    ("fault", "verdict", "words"),
    [
        ("crash-loop:0.2", "crash_loop", "the server"),
        ("serves-nothing", "unproven", "this unit's own start log has no line with 'server config'"),
        ("slow-start:60", "not_ready", "the process runs but does not answer within"),
    ],
)
def test_a_release_whose_server_fails(served, change, broken_release, fault, verdict, words):
    before = state(served)
    hostsetup.sh(served, "mkdir -p /etc/nvidia-sim; echo %s >/etc/nvidia-sim/server" % fault)
    result = change(archive=broken_release, **(SHORT if verdict == "not_ready" else {}))
    put_back(result, verdict, words, served, before)


def test_a_release_whose_server_starts_slowly(served, change, broken_release):
    hostsetup.sh(served, "mkdir -p /etc/nvidia-sim; echo slow-start:3 >/etc/nvidia-sim/server")
    result = change(archive=broken_release)
    assert not result["failed"], result["msg"]
    back = change(archive=str(archive.path()))
    assert not back["failed"], back["msg"]
    assert "ReleaseStep" in back["reasons"]


def test_a_worker_that_died_is_no_witness(lab, served, change):
    """/api/ps goes on naming its model: only the process list tells. A token has it loaded anew, the server stays.

    So it is with a server that runs for long, the log of whose start is gone.
    """
    assert not change(keep_alive="3h")["failed"]
    hostsetup.sh(served, "pkill -KILL -x llama-server; timeout 60 sh -c 'while pgrep -x llama-server; do :; done' || :")
    assert [one["model"] for one in hostsetup.api(served, "/api/ps")["models"]] == ["m8b:latest"]
    hostsetup.sh(served, "journalctl --rotate --vacuum-size=1 2>/dev/null; ! journalctl | grep 'server config'")
    server = hostsetup.sh(served, "systemctl show ollama -p MainPID,InvocationID")
    declared = dict(GOOD, prove_model="m8b", keep_alive="3h")
    foretold = lab.module(served, "ollama_service", declared, check=True)
    assert not foretold["failed"] and foretold["changed"] and foretold["verdict"] == "vram_missing"
    assert "would load it again: vram_missing" in foretold["msg"] and "its worker is dead" in foretold["msg"]
    assert not any(hostsetup.held(served)), "check mode loaded it"
    result = change(keep_alive="3h")
    assert not result["failed"] and result["changed"] and not result["restarted"], result["msg"]
    assert "· m8b on 4 GPUs ·" in result["msg"] and result["msg"].endswith(" · was vram_missing")
    assert all(hostsetup.held(served)), "the worker that was loaded anew"
    assert hostsetup.sh(served, "systemctl show ollama -p MainPID,InvocationID") == server
    assert not change(keep_alive="3h")["changed"]


def test_others_hold_the_memory(served, change):
    """So much that the model does not fit: told before the change, or proven by it; the other process is left alone."""
    hostsetup.api(served, "/api/generate", {"model": "m8b", "keep_alive": 0})
    faults.memory(served, "600")
    before = state(served)
    refused = change(keep_alive="4h")
    assert refused["failed"] and refused["verdict"] == "refused", refused["msg"]
    assert "m8b does not fit" in refused["msg"] and "free are 0.6 + 0.6 + 0.6 + 0.6 GiB on 4 GPUs" in refused["msg"]
    assert state(served) == before
    result = change(keep_alive="4h", prove_fit="ignore")
    put_back(result, "load_failed", "out of memory", served, before)
    assert hostsetup.sh(served, "systemctl is-active memory-holder").strip() == "active"


def test_others_make_a_spread_uneven(lab, served, change):
    """They hold most of one GPU: the model is served, but its spread is not what was declared."""
    hostsetup.api(served, "/api/generate", {"model": "m8b", "keep_alive": 0})
    faults.memory(served, "8192", "1")
    before = state(served)
    two = dict(visible_devices=[0, 1], keep_alive="5h")
    result = change(**two)
    put_back(
        result,
        "uneven_spread",
        "process %s" % hostsetup.sh(served, "systemctl show -p MainPID --value memory-holder").strip(),
        served,
        before,
    )
    assert "of memory-holder.service" in result["msg"] and "uneven_spread: warn" in result["msg"]
    options = json.dumps({**GOOD, "prove_model": "m8b", "uneven_spread": "warn", **two})
    words = ["ansible", served, "--become", "-m", "gpufleet.inference.ollama_service", "-a", options]
    accepted = lab.ansible(*words)
    assert accepted.rc == 0 and accepted.results[0]["result"]["verdict"] == "ok", accepted.output
    assert "ofmemory-holder.service" in "".join(accepted.output.split()), "a warning, on lines of any length"
    assert [len(gpu) for gpu in hostsetup.held(served)] == [1, 1, 0, 0]
    again = change(**two)
    assert again["failed"] and again["verdict"] == "uneven_spread" and not again["changed"], again["msg"]
    hostsetup.sh(served, "systemctl stop memory-holder")
    assert not change(**two)["failed"]
