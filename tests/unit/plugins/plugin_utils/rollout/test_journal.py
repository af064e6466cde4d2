# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal on a disk: whole lines, torn lines, a new run, locks between processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import journal as journals
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import state


@pytest.fixture
def journal(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "_held", None)
    found = journals.Journal(str(tmp_path / "state"))
    found.begin("r1")
    return found


def test_every_prefix_of_a_journal_can_be_read(journal):
    for number in range(20):
        journal.append("failed", host="gpu%d" % number, why="it is broken")
    with open(journal.path, "rb") as file:
        whole = file.read()
    for length in range(len(whole)):
        with open(journal.path, "wb") as file:
            file.write(whole[:length])
        known = journal.events()
        assert len(known) == whole[:length].count(b"\n")
        journal.append("done", host="gpu0")
        assert journal.events()[:-1] == known and journal.events()[-1]["event"] == "done", "a torn line is ended first"


@pytest.mark.parametrize("rubbish", [b"\0\0\0\n", b"[1]\n", b'"x"\n', b"\xff{}\n"])
def test_a_damaged_line_is_skipped(journal, rubbish):
    with open(journal.path, "ab") as file:
        file.write(rubbish)
    journal.append("done", host="gpu0")
    assert [event["event"] for event in journal.events()] == ["begin", "done"]
    assert journal.state().hosts["gpu0"].status == "done"


def test_an_event_that_does_not_fit_on_the_disk_is_an_error(journal, monkeypatch):
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:9]))
        with pytest.raises(OSError, match="No space left on device"):
            journal.append("admitted", hosts=["gpu0"], ready={})
    journal.append("done", host="gpu1")
    assert [event["event"] for event in journal.events()] == ["begin", "done"]


def test_a_folder_that_others_write_to_is_refused(journal, monkeypatch):
    os.chmod(journal.folder, 0o777)
    for action in (journal.lock, lambda: journal.request("stop"), lambda: journal.begin("r2")):
        with pytest.raises(PermissionError, match="expected a folder that only its user writes to"):
            action()
    os.chmod(journal.folder, 0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError):
        journal.lock()


def test_a_new_run_keeps_what_was_measured_and_who_was_lost(journal):
    journal.append("applied", host="gpu1", measured={"ollama": 2.0})
    journal.append("done", host="gpu1")
    journal.append("lost", host="gpu2", why="unreachable")
    journal.append("admitted", hosts=["gpu3"], generations={}, ready={})
    journal.begin("r2")
    found = journal.state()
    assert (found.run, found.hosts, found.measured) == ("r2", {}, {"gpu1": {"ollama": [2.0]}})
    assert found.away == ["gpu2", "gpu3"], "nobody knows of gpu3 whether it serves"
    assert oct(os.stat(journal.folder).st_mode)[-3:] == "700" and oct(os.stat(journal.path).st_mode)[-3:] == "600"


def test_all_runs_of_a_folder_reserve_hosts_in_the_same_name(journal, tmp_path):
    holder = journal.state().holder
    journal.begin("r2")
    other = journals.Journal(str(tmp_path / "other"))
    other.begin("r1")
    assert holder == journal.state().holder != other.state().holder


def test_reserved_hosts_stay_known_until_they_are_released(journal):
    empty = {"units": [], "pools": {}, "width": 1, "failures": 0, "in_a_row": None, "canary": [], "as_declared": []}
    planned = {**empty, "services": {}, "gateways": [], "traffic": {}}
    journal.append("plan", **planned, reserve=["gpu1", "gpu2"])
    journal.begin("r2")
    journal.append("plan", **planned, reserve=["gpu2", "gpu3"])
    assert journal.state().reserved == ["gpu1", "gpu2", "gpu3"] and journal.state().plan.reserve == ["gpu2", "gpu3"]
    journal.append("released", hosts=["gpu1", "gpu3"])
    journal.resume()
    assert journal.state().reserved == ["gpu2"]


def test_the_lock_is_held_until_the_last_child_of_a_run_has_ended(journal, monkeypatch):
    """A worker outlives its controller, if that is killed."""
    assert journal.lock() == "" and journal.lock() == "", "twice in one process is once"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[journals._held])
    os.close(journals._held)
    monkeypatch.setattr(journals, "_held", None)
    assert journal.lock(wait=0) == "process %d" % os.getpid()
    child.communicate(b"\n")
    assert journal.lock() == ""


def test_a_run_does_not_follow_the_plan_of_another_one(journal, monkeypatch):
    monkeypatch.setattr(journals, "PROCESS", "another")
    assert journal.state().run == "r1" and journal.own() == state.State(), "as its own plan has failed"
    journal.resume()
    assert journal.own().run == "r1"


def test_a_new_journal_is_on_the_disk_with_its_name(journal, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append(os.readlink("/proc/self/fd/%d" % number)) or sync(number)
    )
    journal.begin("r2")
    assert synced == [journal.path + ".new", journal.folder]


def test_requests_are_files_that_anybody_can_create(journal):
    assert journal.requested() == ""
    journal.request("pause")
    assert journal.requested() == "pause"
    open(os.path.join(journal.folder, "stop"), "w").close()
    assert journal.requested() == "stop"
    journal.withdraw("stop")
    journal.withdraw("pause")
    journal.withdraw("pause")
    assert journal.requested() == ""


def test_the_tasks_of_a_killed_run_are_named(journal, monkeypatch):
    assert journal.lock() == ""
    task = subprocess.Popen(["sleep", "60"], pass_fds=[journals._held])
    os.ftruncate(journals._held, 0)
    os.pwrite(journals._held, b"process 999999999", 0)  # larger than any process's
    os.close(journals._held)
    monkeypatch.setattr(journals, "_held", None)
    said = "process 999999999, which was killed; its tasks still run as process %d: end them if they hang" % task.pid
    assert journal.running() == said == journal.lock(wait=0)
    task.kill()
    task.wait()
    assert journal.lock() == ""


def test_a_request_to_stop_is_for_the_run_that_has_the_lock(journal):
    journal.request("stop")
    assert journal.lock() == "" and journal.requested() == "", "it was for another run"
    journal.request("stop")
    journal.begin("r2")
    assert journal.lock() == "" and journal.requested() == "stop", "a run is also stopped while it checks the hosts"


def test_each_inventory_has_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet").mkdir()
    here = journals.default_folder(["fleet"])
    assert here.startswith("~/.local/state/gpufleet/rollout/fleet-")
    assert here == journals.default_folder([str(tmp_path / "fleet")]) != journals.default_folder(["gpu1,"])
    assert journals.default_folder([]).startswith("~/.local/state/gpufleet/rollout/inventory-")
