# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each finding of a GPU and each kind of drift has the same name in every view; a clean host has none in any."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Tuple

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.module_utils.doctor import pains
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import checks, faults, health, model, preparation
from ansible_collections.gpufleet.inference.plugins.module_utils.self_check import words
from ansible_collections.gpufleet.inference.plugins.plugin_utils.report import collect
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import look, overview

ROOT = Path(__file__).resolve().parents[5]
#: What each check takes for a finding: values of one of four GPUs.
SICK: Dict[str, Mapping[str, Any]] = {
    "ecc_uncorrected": {"ecc.volatile.uncorrected": 3},
    "remap_failed": {"remapped_rows.failure": True},
    "remap_pending": {"remapped_rows.pending": True},
    "retirement_pending": {"retired_pages.pending": True},
    "repair_pending": {"repair.tpc_pending": True},
    "recovery_requested": {"recovery_action": "reset"},
    "fabric_down": {"fabric.state": "in_progress"},
    "fabric_failed": {"fabric.state": "completed", "fabric.status": "Unknown Error"},
    "fabric_unhealthy": {"fabric.problems": ["route_unhealthy"]},
    "sram_threshold": {"ecc.sram_threshold_exceeded": True},
    "memory_unrepairable": {"unrepairable_memory": True},
    "fabric_degraded": {"fabric.problems": ["degraded_bandwidth"]},
    "hw_slowdown": {"clocks_event_reasons": ["hw_slowdown"]},
    "hw_thermal_slowdown": {"clocks_event_reasons": ["hw_thermal_slowdown"]},
    "hw_power_brake_slowdown": {"clocks_event_reasons": ["hw_power_brake_slowdown"]},
    "pcie_narrow": {"pcie.width": 8, "pcie.max_width": 16},
    "spare_rows_low": {"remapped_rows.spare_banks.low": 2},
    "nvlink_errors": {"nvlink.recovery_errors": 2},
    "slowed_by_heat": {"slowdown.thermal_seconds": 700.0},
    "slowed_by_power": {"slowdown.power_brake_seconds": 700.0},
    "inforom_corrupt": {"inforom_corrupt": True},
    "pcie_errors": {"pcie.uncorrectable_errors": 3},
    "acs_on": {"pcie.acs_redirects": ["0000:01:00.0"]},
    "hot": {"temperature.margin_celsius": 3},
}
OTHERS = ("unlike_twins", "xid_119", "gpu_missing", *faults.REMEDIES)
DRIFT = ("environment", "process", "override", "stopped", "disabled", "not_loaded", "leftovers", "cpu_fallback")


def facts_with(name: str) -> Dict[str, Any]:
    """The facts of a host with one finding; of a clean host for an empty name."""
    devices = [model.blank(index, "unsupported") for index in range(4)]
    for device in devices:
        model.put(device, "name", "NVIDIA H200")
        model.put(device, "pci_bus_id", "0000:%02x:00.0" % device["index"])
        model.put(device, "vbios_version", "96.00")
        model.put(device, "processes", [])
    changes = {"vbios_version": "95.00"} if name == "unlike_twins" else SICK.get(name, {})
    for path, value in changes.items():
        model.put(devices[2], path, value)
    for device in devices:
        device["health"] = health.health(device)
    xids = [{"pci_bus_id": "0000:02:00.0", "code": 119, "count": 1, "age_seconds": 9}] if name == "xid_119" else []
    fault = faults.fault(name, "no answer") if name in faults.REMEDIES else None
    found = health.findings(devices, xids, [(None, fault)] if fault else [])
    found += health.missing(4, 5 if name == "gpu_missing" else 0)
    return {"devices": devices, "findings": found, "fault": fault, "count": 4, "source": "nvml", "rdma": []}


def asked(gpu: Mapping[str, Any]) -> List[words.Check]:
    answer = {"state": "converged", "why": "", "result": {"changed": False, "ansible_facts": {"gpu": gpu}}}
    return words.judge([["a.gpu.facts", "report", {}]], [answer], [])


def of_the_metrics(gpu: Mapping[str, Any]) -> List[str]:
    return re.findall(r'gpufleet_finding\{.*?check="(\w+)"', words.metrics(asked(gpu), {}, 1.0, 0.1))


def of_the_plan(gpu: Mapping[str, Any]) -> List[str]:
    host = overview.host_row({"ansible_facts": {"gpu": gpu}}, {"state": "as declared", "msg": ""}, [], {})
    return named(host["risks"])


def of_the_report(gpu: Mapping[str, Any]) -> List[str]:
    read = {"report_gpus": {"ansible_facts": {"gpu": gpu}}}
    return named([one["text"] for one in collect.host("gpu1", read, {})["problems"]])


def of_the_journal(gpu: Mapping[str, Any]) -> List[str]:
    return named(words.line(asked(gpu)).partition("; found: ")[2].split("; "))


def of_the_doctor(gpu: Mapping[str, Any]) -> List[str]:
    seen = pains.Seen(gpu, {}, [], ["nvidia-uvm"], {}, False, {}, {})
    return [one["pain"] for one in pains.check(seen)]


def of_the_preflight(gpu: Mapping[str, Any]) -> List[str]:
    return named(preparation.missing(gpu, True, True, True, 0))


def named(lines: List[str]) -> List[str]:
    """Names out of lines of findings."""
    return [match[1] for match in (re.match(r"(?:GPU \d+: )?([a-z_0-9]+): ", line) for line in lines) if match]


ALL: Tuple[Callable[[Mapping[str, Any]], List[str]], ...] = (
    of_the_metrics,
    of_the_report,
    of_the_journal,
    of_the_doctor,
)


@pytest.mark.parametrize("view", ALL + (of_the_plan, of_the_preflight))
def test_a_clean_host_has_nothing_in_any_view(view: Any) -> None:
    assert view(facts_with("")) == []


@pytest.mark.parametrize("name", [*SICK, *OTHERS])
def test_a_finding_has_its_name_in_every_view(name: str) -> None:
    gpu = facts_with(name)
    assert [one["check"] for one in gpu["findings"]] == [name]
    assert {view.__name__: view(gpu) for view in ALL} == {view.__name__: [name] for view in ALL}
    (found,) = gpu["findings"]
    assert of_the_plan(gpu) == ([name] if health.matters(found) else [])
    of_the_host = name == health.MISSING  # whether it counts depends on the expected number, which is not given here
    assert of_the_preflight(gpu) == ([name] if found["effect"] == checks.UNFIT and not of_the_host else [])
    assert found["remedy"] and ("GPU 2: " in found["line"]) == (found["gpu"] == 2)


def test_no_check_is_left_out() -> None:
    assert list(SICK) == [check.name for check in checks.CHECKS]


@pytest.mark.parametrize("kind", DRIFT)
def test_a_kind_of_drift_has_its_name_in_every_view(kind: str) -> None:
    result = {"changed": True, "verdict": "ok", "msg": "would restart it", "reasons": ["it runs another"]}
    result.update(differs=[kind], restarted=True, unit_state={"n_restarts": 0})
    call = ["a.ollama.service", "service", {"name": "ollama"}]
    checked = words.judge([call], [{"state": "differs", "why": result["msg"], "result": result}], [])
    assert 'gpufleet_drift{kind="%s",unit="ollama.service"} 1\n' % kind in words.metrics(checked, {}, 1.0, 0.1)
    assert look.look({"ollama_result": result}).services[0]["why"].startswith(kind + ": ")
    (problem,) = collect.host("gpu1", {"report_gpus": {"x": 1}, "ollama_result": result}, {})["problems"]
    assert problem["text"].startswith(kind + ": ")


def test_alerts_carry_the_name() -> None:
    groups = yaml.safe_load((ROOT / "roles/monitoring/files/alerts.yml").read_text("utf-8"))["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    effects = {"GpuUnfit": "unfit", "GpuSlow": "slow", "GpuToBeLookedAt": "note"}
    for alert, effect in effects.items():
        assert 'gpufleet_finding{effect="%s"' % effect in rules[alert]["expr"]
        assert "{{ $labels.check }}" in rules[alert]["annotations"]["summary"]
    assert "{{ $labels.kind }}" in rules["ServiceDrift"]["annotations"]["summary"]


def test_every_name_is_documented() -> None:
    page = (ROOT / "docs/faults.md").read_text("utf-8")
    table = page.partition("\n## One name for each fault")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`([a-z_]+)`", table))
    wanted = {*SICK, *OTHERS} - {"xid_119"} | {*DRIFT[:-1], "settings", "files", "step", "interrupted", "running"}
    assert wanted <= documented, wanted - documented
