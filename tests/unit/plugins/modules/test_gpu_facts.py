# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gpu_facts module: its result, its failures, its documentation."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.model import Host
from ansible_collections.gpufleet.inference.plugins.modules import gpu_facts

FAULT = {"code": "driver_mismatch", "text": "module 1, library 2", "remedy": "reboot"}
WARNING = "GPU fault driver_mismatch: module 1, library 2. What to do: reboot"


@pytest.fixture
def gathered(monkeypatch):
    """`gathered(count, fault)` decides what is found; gives the list of calls."""

    def decide(count=2, fault=None, findings=()):
        calls = []

        def gather(**arguments):
            calls.append(arguments)
            return {"source": "nvml", "count": count, "fault": fault, "findings": list(findings)}

        monkeypatch.setattr(facts, "gather", gather)
        monkeypatch.setattr(facts, "VENV", "/nonexistent")
        return calls

    return decide


@pytest.mark.parametrize("check", [False, True])
def test_facts(run_module, gathered, check):
    calls = gathered()
    result = run_module(gpu_facts.main, check=check)
    assert result["ansible_facts"] == {"gpu": {"source": "nvml", "count": 2, "fault": None, "findings": []}}
    assert (result["changed"], result["failed"]) == (False, False)
    assert calls == [{"timeout": 10.0, "python_paths": []}]


def test_a_check_of_several_functions_reads_the_gpus_once(gathered):
    calls = gathered()
    assert facts.first_look(3.0) is not facts.first_look(3.0), "nobody has reported them"
    reported = facts.report({"timeout": 10.0, "venv": None, "required": False}, True, print)["ansible_facts"]["gpu"]
    host = Host(None, True, print, 3.0)
    assert host.facts is reported and len(calls) == 3
    assert host.gather() is not reported and len(calls) == 4, "as they are now"


@pytest.fixture
def venv():
    """A virtual environment that only whoever runs the tests can change."""
    with tempfile.TemporaryDirectory(dir="/opt" if os.geteuid() == 0 else os.path.expanduser("~")) as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        yield Path(folder)


def test_options(run_module, gathered, venv):
    calls = gathered()
    run_module(gpu_facts.main, {"timeout": 2.5, "venv": str(venv), "required": True})
    assert calls == [{"timeout": 2.5, "python_paths": [str(venv / "lib/python3.11/site-packages")]}]


def test_a_gpu_that_is_missing_by_the_inventory_is_a_warning(run_module, gathered):
    gathered()
    said = (
        "gpu_missing: 6 of 8 GPUs are missing on the PCI bus. What to do: check their seat and power, and power-cycle "
        "the host"
    )
    result = run_module(gpu_facts.main, {"expected_count": 8}, warnings=(said,))
    assert [one["check"] for one in result["ansible_facts"]["gpu"]["findings"]] == ["gpu_missing"]


@pytest.mark.parametrize("place", ["", "lib", "lib/python3.11", "lib/python3.11/site-packages"])
@pytest.mark.parametrize("mode, owner", [(0o777, 0), (0o755, 40404)])
def test_root_runs_no_code_of_others(run_module, gathered, venv, place, mode, owner):
    if os.geteuid() != 0:
        pytest.skip("only root has something to lose")
    calls = gathered()
    (venv / place).chmod(mode)
    os.chown(venv / place, owner, -1)
    result = run_module(gpu_facts.main, {"venv": str(venv)})
    assert result["failed"] and result["msg"].startswith("venv %s: others than root may change %s/lib" % (venv, venv))
    assert calls == []


def test_the_role_s_own_venv_is_searched_without_being_named(run_module, gathered, tmp_path, monkeypatch):
    calls = gathered()
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    monkeypatch.setattr(facts, "VENV", str(tmp_path))
    run_module(gpu_facts.main)
    assert calls[0]["python_paths"] == [str(site)]


def test_fault_is_a_warning(run_module, gathered):
    gathered(fault=FAULT)
    result = run_module(gpu_facts.main, warnings=(WARNING,))
    assert not result["failed"] and result["ansible_facts"]["gpu"]["fault"] == FAULT


def test_no_gpu_is_a_fact(run_module, gathered):
    gathered(count=0)
    assert run_module(gpu_facts.main)["ansible_facts"]["gpu"]["count"] == 0


@pytest.mark.parametrize(
    "count, fault, message",
    [
        (0, None, "GPUs are required, but this host has none: no NVIDIA GPU on its PCI bus, none known to a driver"),
        (2, FAULT, WARNING),
    ],
)
def test_required(run_module, gathered, count, fault, message):
    gathered(count=count, fault=fault)
    result = run_module(gpu_facts.main, {"required": True})
    assert result["failed"] and result["msg"] == message
    assert result["ansible_facts"]["gpu"]["count"] == count


@pytest.mark.parametrize(
    "options, message",
    [
        ({"timeout": 0}, "timeout is 0; expected a number of seconds above 0"),
        ({"timeout": -1.5}, "timeout is -1.5; expected a number of seconds above 0"),
        ({"timeout": "soon"}, "we were unable to convert to float"),
        (
            {"venv": "/nonexistent"},
            "venv /nonexistent is not a virtual environment: there is no lib/python3*/site-packages in it; create it and "
            "install nvidia-ml-py, or leave the option out",
        ),
    ],
)
def test_refuses(run_module, gathered, options, message):
    calls = gathered()
    result = run_module(gpu_facts.main, options)
    assert result["failed"] and message in result["msg"]
    assert calls == []


def names(documented):
    """Dotted names of documented values, and of what they contain."""
    for name, entry in documented.items():
        yield name
        for inner in names(entry.get("contains", {})):
            yield "%s.%s" % (name, inner)


def found(data, known):
    """Dotted names of keys in data; lists are passed through, free dicts are named by `known`."""
    if isinstance(data, list):
        for part in data:
            yield from found(part, known)
    elif isinstance(data, dict):
        for name, inner in data.items():
            yield name
            if name not in known:
                for more in found(inner, known):
                    yield "%s.%s" % (name, more)


def test_what_somebody_has_to_act_upon_is_a_warning(run_module, gathered):
    text = "GPU 2: xid_119: Xid 119, the GSP: once, 5 s ago"
    one = {"check": "xid_119", "effect": "note", "action": "reset", "line": text, "remedy": "reset the GPU"}
    quiet = [dict(one, action=action) for action in ("look", "restart", "none")]
    gathered(findings=[one, *quiet, dict(one, effect="unfit"), one])
    assert not run_module(gpu_facts.main, warnings=(text + ". What to do: reset the GPU",) * 2)["failed"]
    told = dict(one, line="GPU 2: spare_rows_low: few are left: replace it", remedy="replace it")
    gathered(findings=[told])
    assert not run_module(gpu_facts.main, warnings=(told["line"],))["failed"], "it says so already"


def test_every_value_is_documented(monkeypatch):
    """What the facts hold and what RETURN says are the same; it stays so only because this looks."""
    port = dict.fromkeys(
        ("port", "state", "phys_state", "link_layer", "rate_gbps", "lid", "netdev", "roce_v2_gid_index")
    )
    device = {"name": "mlx5_0", "pci_bus_id": None, "path": [], "numa_node": None, "cpu_affinity": None, "netdevs": []}
    device.update(dict.fromkeys(("node_type", "node_guid", "hca_type", "board_id", "firmware_version")), ports=[port])
    process = dict.fromkeys(("pid", "name", "type", "used_bytes", "unit"))
    instance = dict.fromkeys(("uuid", "name", "gpu_uuid", "gpu_instance_id", "compute_instance_id"))
    instance["memory"] = dict.fromkeys(("total_bytes", "used_bytes", "free_bytes"))
    gpu_device = facts.model.blank(0, "unsupported")
    facts.model.put(gpu_device, "processes", [process])
    gone = facts.faults.fault("gpu_lost", "lost")
    parts = [("source", "nvml"), ("rdma", [device]), ("device", [gpu_device, gone]), ("mig_device", instance)]
    gpu = facts.assemble(parts, None, 10)
    documented = yaml.safe_load(gpu_facts.RETURN)["ansible_facts"]["contains"]["gpu"]["contains"]
    assert sorted(found(gpu, known=("unavailable",))) == sorted(names(documented))


def test_documented_options_are_those_it_takes(run_module, gathered):
    gathered()
    documented = yaml.safe_load(gpu_facts.DOCUMENTATION)["options"]
    assert set(documented) == {"timeout", "required", "expected_count", "venv"}
    assert not run_module(gpu_facts.main, {name: entry.get("default") for name, entry in documented.items()})["failed"]
