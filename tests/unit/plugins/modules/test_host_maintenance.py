# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: a maintenance is begun, its GPUs are waited for, it ends; a killed run resumes where it was."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.serving import maintenance
from ansible_collections.gpufleet.inference.plugins.modules import host_maintenance


@pytest.fixture
def host(run_module, monkeypatch, tmp_path):
    """`host(state)` runs the module; `host.gpus` is how many GPUs the host has."""

    def gather(timeout):
        call.looks += 1
        gpus = [{"index": n, "uuid": "GPU-%d" % n, "pci_bus_id": "0000:0%d:00.0" % n} for n in range(call.gpus)]
        driver = {"version": "580.95.05"}
        return {"devices": gpus, "count": len(gpus), "fault": None, "findings": [], "driver": driver}

    def call(state, name="driver-580", check=False, **more):
        return run_module(host_maintenance.main, {"name": name, "state": state, **more}, check=check)

    call.gpus, call.looks, call.place = 2, 0, tmp_path / "gpufleet/maintenance.json"
    monkeypatch.setattr(maintenance, "PLACE", str(call.place))
    monkeypatch.setattr(maintenance, "_PAUSE", 0.01)
    monkeypatch.setattr(maintenance.gpu_facts, "gather_for", gather)
    return call


def test_a_host_goes_through_a_maintenance_once(host):
    due = host("begun", check=True)
    assert due["changed"] and not due["stopped"] and not due["work"] and not host.place.exists()
    begun = host("begun")
    assert begun["changed"] and begun["stopped"] and begun["work"] and begun["reasons"] == ["driver-580"]
    assert host("returned")["msg"] == "2 GPUs as before, driver 580.95.05"
    ended = host("ended")
    assert ended["changed"] and ended["restarted"] and ended["downtime_ms"] >= 0
    assert host("begun")["ended"] and not host("begun")["changed"] and not host("ended")["changed"]
    assert host("begun", name="kernel")["work"] and host("begun")["ended"]


def test_a_killed_run_goes_on_where_it_was(host):
    host("begun")
    host.gpus = 1
    assert host("begun")["work"], "the work had not ended"
    failed = host("returned", timeout=0)
    assert failed["failed"] and "1 GPUs, and 2 before" in failed["msg"]
    again = host("begun")
    assert again["stopped"] and not again["work"], "the work has ended, the GPUs are not back"
    host.gpus = 2
    assert not host("returned", timeout=0)["failed"]


def test_gpus_that_are_slow_to_return_are_waited_for(host, monkeypatch):
    host("begun")
    host.gpus, before = 1, host.looks
    monkeypatch.setattr(maintenance.time, "sleep", lambda seconds: setattr(host, "gpus", host.looks - before))
    assert not host("returned")["failed"] and host.looks == before + 3


def test_a_new_name_keeps_what_was_recorded_before_an_unfinished_one(host):
    host("begun")
    host.gpus = 1
    assert host("begun", name="driver-580b")["work"]
    assert host("returned", name="driver-580b", timeout=0)["failed"]
    assert "was not begun on this host" in host("ended")["msg"]
