# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: one controller's rollout has a host, another one's is refused until the host is released."""

from __future__ import annotations

import json

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.serving import reservation
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import lock
from ansible_collections.gpufleet.inference.plugins.modules import host_reservation

OURS = {"holder": "f1", "run": "r1", "by": "root@ctl1"}
THEIRS = {"holder": "f2", "run": "r2", "by": "ada@ctl2"}


@pytest.fixture
def host(run_module, monkeypatch, tmp_path):
    """`host(state)` runs the module; `host.place` is its record."""

    def call(state="reserved", check=False, **more):
        return run_module(host_reservation.main, {"state": state, **OURS, **more}, check=check)

    call.place = tmp_path / "gpufleet/rollout.json"
    monkeypatch.setattr(reservation, "PLACE", str(call.place))
    return call


def test_a_host_is_reserved_for_one_controller(host):
    assert host()["reserved"] and (host.place.stat().st_mode & 0o777) == 0o600
    refused = host(**THEIRS)
    assert not refused["reserved"] and not refused["failed"]
    assert refused["msg"].startswith("rollout r1 of root@ctl1 has reserved this host since 20")
    assert not host("released", **THEIRS)["changed"] and host.place.exists(), "it is not theirs"
    assert host("released")["changed"] and not host.place.exists()
    assert host(**THEIRS)["reserved"] and not host()["reserved"]


def test_the_same_controller_resumes_its_run_or_begins_another_one(host):
    assert host()["changed"] and not host()["changed"]
    assert host(run="r3")["reserved"] and json.loads(host.place.read_text())["run"] == "r3"
    assert not host("released", holder="f2")["changed"] and host("released")["changed"]
    assert not host("released")["changed"]


def test_a_person_takes_over_what_a_lost_controller_has_left(host):
    host(**THEIRS)
    assert host(take_over=True)["reserved"] and json.loads(host.place.read_text())["holder"] == "f1"
    assert not host(**THEIRS)["reserved"]


@pytest.mark.parametrize("left", ["", "{", "[1]", '{"run": "r9"}'])
def test_a_damaged_record_reserves_nothing(host, left):
    host.place.parent.mkdir()
    host.place.write_text(left)
    assert host()["reserved"] and json.loads(host.place.read_text())["holder"] == "f1"


def test_check_mode_writes_nothing(host):
    assert host(check=True)["changed"] and not host.place.exists()
    host()
    assert host("released", check=True)["changed"] and host.place.exists()


def test_check_mode_takes_no_lock(host, monkeypatch):
    monkeypatch.setattr(lock, "held", None)
    assert host(check=True)["reserved"]


def test_only_the_first_reservation_is_new(host):
    assert host()["new"] and not host()["new"] and not host(**THEIRS)["new"] and not host("released")["new"]
    host(**THEIRS)
    assert host(take_over=True)["new"], "as it was not ours before"


def test_two_controllers_take_turns(host, monkeypatch):
    monkeypatch.setattr(reservation, "_WAIT", 0.0)
    with lock.held("rollout", 0.0):
        refused = host()
    assert (
        refused["failed"]
        and "is still busy with the reservation of this host" in refused["msg"]
        and not host.place.exists()
    )
