# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service that is stopped for a while: drained, stopped, disabled, and kept out of its load balancers."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Fault, ServiceError, Verdict
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import agent
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.model import Leaving, Service
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.stopped import stop
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import ManagerError

UNIT = "vllm@chat.service"


class System:
    def __init__(self):
        self.active, self.enabled, self.loaded, self.does, self.breaks = "active", "enabled", "loaded", [], ""

    def lock(self, unit, limit):
        return nullcontext()

    def show(self, unit):
        pid = "10" if self.active == "active" else "0"
        return {
            "ActiveState": self.active,
            "UnitFileState": self.enabled,
            "LoadState": self.loaded,
            "MainPID": pid,
            "TimeoutStopUSec": "30s",
            "ControlGroup": unit,
        }

    def environ(self, pid):
        return {}

    def process(self, pid):
        return pid

    def stop(self, unit, limit):
        self.does.append("stop")
        self.active = "inactive"

    def start(self, unit, limit):
        self.does.append("start")
        self.active = "active"

    def disable(self, unit, runtime=False):
        if self.breaks == "disable":
            raise ManagerError("no space left")
        self.does.append("disable --runtime" if runtime else "disable")
        self.enabled = "disabled"


class Hooks:
    def __init__(self, does, fault=None):
        self.does, self.fault, self.drained = does, fault, {"seconds": 1.0}

    def before_stop(self, running):
        if self.fault:
            raise self.fault
        self.does.append("drain")

    def after_stop(self):
        return Verdict("ok")


@pytest.fixture
def host(monkeypatch, tmp_path):
    """`host.stop(**options)` stops the service; gateways know it."""
    monkeypatch.setattr(agent, "MARKS", str(tmp_path / "marks"))
    monkeypatch.setattr(agent, "CONFIG", str(tmp_path / "agent.json"))
    (tmp_path / "agent.json").write_text(json.dumps({"port": 8405, "services": {UNIT: {}}, "gateways": {}}))
    made = SimpleNamespace(system=System(), check_mode=False, warn=print, fault=None, mark=tmp_path / "marks" / UNIT)
    given = {"drain_command": [], "drain_timeout": 120, "timeout": None, "undrain_command": []}

    def call(**options):
        service = Service(UNIT, "chat", dict(given, **options))
        return stop(Leaving(hooks=Hooks(made.system.does, made.fault)), service, made)

    made.stop = call
    return made


def test_a_service_is_drained_stopped_disabled_and_kept_out(host):
    result = host.stop()
    assert host.system.does == ["drain", "stop", "disable"]
    assert result["msg"] == "vllm@chat.service: stopped, disabled, taken out of its load balancers"
    assert result["changed"] and result["drain"] == {"seconds": 1.0} and not result["restarted"]
    assert json.loads(host.mark.read_text()) == {"state": "drain"}
    again = host.stop()
    assert not again["changed"] and again["msg"] == "vllm@chat.service: is stopped" and len(host.system.does) == 3


def test_check_mode_says_so_and_does_nothing(host):
    host.check_mode = True
    result = host.stop()
    assert result["changed"] and result["msg"].startswith("vllm@chat.service: would be stopped, disabled")
    assert result["diff"] == {"before": "active, enabled\n", "after": "inactive, disabled\n"}
    assert host.system.does == [] and not host.mark.exists()


def test_after_a_boot_it_is_taken_out_again_and_put_back_by_the_same_command(host):
    host.stop(drain_command=["/out"])
    host.mark.unlink()
    result = host.stop(drain_command=["/out"])
    assert result["msg"] == "vllm@chat.service: taken out of its load balancers"
    assert json.loads(host.mark.read_text()) == {"state": "drain", "command": True}


def test_a_boot_may_have_started_it(host):
    host.stop()
    host.system.active, host.system.enabled = "active", "enabled-runtime"
    assert host.stop()["changed"] and host.system.does[-2:] == ["stop", "disable --runtime"]


@pytest.mark.parametrize("loaded", ["loaded", "not-found"])
def test_without_load_balancers_there_is_no_mark(host, loaded, tmp_path):
    (tmp_path / "agent.json").unlink()
    host.system.loaded = loaded
    host.stop()
    assert not host.mark.exists()


@pytest.mark.parametrize("breaks", ["disable", "drain"])
def test_it_runs_on_where_it_cannot_be_stopped(host, breaks):
    host.system.breaks = breaks
    host.fault = Fault("not_drained", "the balancer refuses") if breaks == "drain" else None
    with pytest.raises(ServiceError, match="no space left|the balancer refuses"):
        host.stop()
    assert host.system.active == "active" and host.system.enabled == "enabled"
