# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each fault of a vLLM on the lab, by its double: the verdict, how soon it is known, and that all is as it was.

FAULTS_TABLE=path    write the table of docs/faults.md
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/vllm"))

import vllmdouble
from faults_table import BACK, DECLARED, UNTOUCHED, Row
from vllmdouble import sh

UNIT = "vllm@chat"
CHANGED = "max-num-seqs=7"  # a fault on this condition strikes the changed instance, not the former one
GOOD = {
    "instances": [{"name": "chat"}],
    "venv": vllmdouble.VENV,
    "model": "/srv/models/m8b",
    "served_model_name": ["chat"],
    "visible_devices": [0, 1],
    "gpu_memory_utilization": 0.5,
    "timeout": 120,
    "stall_timeout": 60,
    "token_timeout": 60,
    "drain_timeout": 2,
    "release_timeout": 30,
}


@pytest.fixture(scope="module")
def served(lab):
    """A host with four H200s, on two of which an instance serves."""
    host = lab.reset("gpu2")
    vllmdouble.uninstall(host)
    vllmdouble.install(host)
    vllmdouble.add_model(host, "m8b")
    done = lab.module(host, "vllm_service", GOOD)
    assert not done["failed"], done["msg"]
    yield host
    vllmdouble.uninstall(host)
    lab.reset(host)


@pytest.fixture
def change(lab, served):
    """`change(**options)` changes the instance; faults are gone afterwards, and it serves."""

    def change(**options):
        done = lab.module(served, "vllm_service", {**GOOD, "max_num_seqs": 7, **options})
        return {**done.get("instances", {}).get(UNIT + ".service", {}), **done}

    yield change
    vllmdouble.clear(served)
    back = lab.module(served, "vllm_service", GOOD)
    assert not back["failed"], back["msg"]


def state(host):
    """What a change that failed must leave as it was."""
    return sh(
        host,
        "timeout 60 sh -c 'until curl -fs -o /dev/null http://127.0.0.1:8000/v1/models; do sleep 0.1; done';"
        "systemctl show %s -p ActiveState,SubState,UnitFileState,NeedDaemonReload,Environment;"
        "cat /etc/gpufleet/vllm/chat.yaml /etc/systemd/system/vllm@chat.service.d/*; ls -A /etc/gpufleet/*;"
        "pgrep VLLM::Worker | wc -l; curl -fsS --max-time 5 http://127.0.0.1:8000/v1/models" % UNIT,
    )


@pytest.fixture
def seen(rows):
    """`seen(fault, result, after)` notes what a user saw."""

    def note(fault, result, after):
        print("%s: known after %.1f s: %s" % (fault, result["seconds"], result["msg"]))
        rows.append(Row(fault, result["msg"], result["seconds"], after))

    return note


def told(result, verdict, words):
    assert result["failed"] and not result["changed"]
    assert result.get("verdict") == verdict, result["msg"]
    assert words in result["msg"]


@pytest.mark.parametrize(
    ("fault", "verdict", "words"),
    [
        ("oom", "out_of_memory", "CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("hung-start", "stalled", "taken no more GPU memory and not answered"),
        ("cpu", "cpu_fallback", "none of its processes uses memory on any GPU"),
        ("dead-engine", "stalled", "generated none within 3 s"),
        ("liar", "no_progress", "counter of generated tokens"),
    ],
)
def test_a_fault_of_the_changed_instance_is_taken_back(served, change, seen, fault, verdict, words):
    before = state(served)
    vllmdouble.fault(served, "%s %s" % (fault, CHANGED))
    limits = {"hung-start": {"stall_timeout": 6}, "dead-engine": {"token_timeout": 3}}
    result = change(**limits.get(fault, {}))
    seen(fault, result, BACK)
    told(result, verdict, words)
    assert "The previous state is restored. The unit runs again" in result["msg"] and result["rolled_back"]
    assert state(served) == before


def test_a_slow_start_is_waited_for(served, change, seen):
    """Longer than silence is allowed to last: it logs, and takes memory."""
    vllmdouble.fault(served, "slow-start:10 " + CHANGED)
    result = change(stall_timeout=6)
    seen("slow-start:10", result, DECLARED)
    assert not result["failed"], result["msg"]
    assert result["downtime_ms"] > 9000
    assert result["evidence"]["ready_seconds"] > 9


def test_a_hang_at_the_stop_is_ended_by_systemd_and_the_change_goes_on(served, change, seen):
    vllmdouble.fault(served, "deaf max-num-seqs=8")
    assert not change(max_num_seqs=8)["failed"]
    result = change(max_num_seqs=9)
    seen("deaf", result, DECLARED)
    assert not result["failed"], result["msg"]
    assert result["downtime_ms"] > 29000, "TimeoutStopSec is 30 s"
    assert "max-num-seqs: 9" in sh(served, "cat /etc/gpufleet/vllm/chat.yaml")
    assert sh(served, "pgrep VLLM::Worker | wc -l").strip() == "2"


def test_an_orphan_that_holds_the_memory_is_named_before_anything_is_touched(served, change, seen):
    before = state(served)
    vllmdouble.hold(served, 1, 60000)
    result = change(gpu_memory_utilization=0.9)
    seen("an orphan holds GPU memory", result, UNTOUCHED)
    assert result["failed"] and "nothing was changed" in result["msg"]
    assert "vram-holder.service) holds 58.6 GiB on GPU 1" in result["msg"], result["msg"]
    assert "set gpu_memory_utilization to" in result["msg"]
    assert state(served) == before
    assert sh(served, "systemctl is-active vram-holder").strip() == "active", "it is left alone"


def test_a_port_of_somebody_else(served, change, seen):
    before = state(served)
    vllmdouble.take_port(served, 8005)
    result = change(port=8005)
    seen("another process listens on the new port", result, UNTOUCHED)
    assert result["failed"] and "nothing was changed" in result["msg"]
    assert "taken by process" in result["msg"] and "python3" in result["msg"]
    assert state(served) == before


def test_a_port_that_is_taken_while_it_was_down(served, change, seen):
    """It is the instance's own port, so nothing tells before the start; then its last words do."""
    sh(served, "systemctl stop %s" % UNIT)
    vllmdouble.take_port(served, 8000)
    result = change()
    seen("another process took the port of a stopped instance", result, "stopped, as before")
    told(result, "port_taken", "Address already in use")
    assert "The unit was not running before and is stopped." in result["msg"]


def test_an_engine_that_dies_later_is_started_again_by_systemd(served, change):
    """Its front end ends with status 0, upon which Restart=on-failure would do nothing."""
    assert not change()["failed"]
    sh(served, "pkill -KILL VLLM::Worker")
    sh(
        served,
        "timeout 90 sh -c 'until [ $(systemctl show -p NRestarts --value %s) -ge 1 ] && curl -fs -o /dev/null "
        "http://127.0.0.1:8000/v1/models; do sleep 0.2; done'" % UNIT,
        timeout=120,
    )
    again = change()
    assert not again["failed"] and not again["changed"], again["msg"]


def test_a_killed_controller_leaves_what_the_next_run_finishes(lab, served, change):
    """The module is killed while it waits for the changed instance; another run proves it."""
    before = sh(served, "systemctl show -p InvocationID --value %s" % UNIT).strip()
    vllmdouble.fault(served, "slow-start:45 " + CHANGED)
    arguments = json.dumps({**GOOD, "max_num_seqs": 7})
    words = ["ansible", served, "--become", "-m", "gpufleet.inference.vllm_service", "-a", arguments]
    controller = subprocess.Popen(
        [str(Path(sys.executable).parent / words[0]), "-i", lab.inventory, *words[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    former, lock = "/etc/gpufleet/vllm/.chat.yaml.previous", "/run/gpufleet/%s.service.lock" % UNIT
    again = "[ -e %s ] && ! systemctl show -p InvocationID --value %s | grep -qx %s" % (former, UNIT, before)
    sh(served, "timeout 90 sh -c 'until %s && systemctl is-active -q %s; do sleep 0.1; done'" % (again, UNIT))
    controller.kill()
    controller.wait()
    sh(served, "kill -KILL $(cat %s)" % lock)  # the module itself: a controller that is gone does not end it at once
    vllmdouble.clear(served)
    assert sh(served, "ls %s" % former), "the change was interrupted"
    result = change()
    assert not result["failed"], result["msg"]
    assert "an earlier run was interrupted before it could prove its change" in result["reasons"]
    assert sh(served, "pgrep VLLM::Worker | wc -l; systemctl show -p NRestarts --value %s" % UNIT).split() == ["2", "0"]
    assert sh(served, "find /etc/gpufleet /etc/systemd/system -name '.*'") == ""
    assert not change()["changed"]
