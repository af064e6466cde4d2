# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What nvidia-smi prints: recorded hosts agree with NVML field by field; other cards, other versions, failures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import model, nvml, smi

MIB = 1024 * 1024


@pytest.fixture
def comparison():
    """The script that holds facts to nvidia-smi on real machines."""
    path = Path(__file__).parents[4] / "gpu" / "compare_facts.py"
    spec = importlib.util.spec_from_file_location("compare_facts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def devices(parts):
    return [data[0] for name, data in parts if name == "device"]


def value(device, path):
    for name in path.split("."):
        device = device[name]
    return device


def shown(text, element, old, new):
    """The text with one element's value changed, on the first GPU only."""
    before, after = "<%s>%s</%s>" % (element, old, element), "<%s>%s</%s>" % (element, new, element)
    assert before in text
    return text.replace(before, after, 1)


@pytest.mark.parametrize("name, count", [("h200x2", 2), ("h200x4", 4)])
def test_agrees_with_nvml_on_recorded_hosts(name, count, recording, recorded_xml, binding, comparison):
    parts = []
    nvml.read(binding(recording(name)), lambda *part: parts.append(part))
    rows = comparison.compare(model, devices(parts), devices(smi.parse(recorded_xml(name))))
    assert len(rows) == count * len(model.LEAVES)
    shared = [row for row in rows if row[4] != "not in nvidia-smi -q"]
    # of these the recordings of NVML hold nothing: they need arguments
    not_recorded = {
        "recovery_action", "temperature.gpu_celsius", "temperature.memory_celsius", "fabric.state", "fabric.status",
        "fabric.clique_id", "fabric.cluster_uuid", "ecc.sram_threshold_exceeded",
    }  # fmt: skip
    assert {row[1] for row in shared if row[4] == "DIFFERENT"} == not_recorded
    tolerated = {row[1] for row in shared if row[4] == "within tolerance"}
    assert tolerated <= {
        "memory.free_bytes", "memory.reserved_bytes", "bar1.used_bytes", "bar1.free_bytes", "power.usage_watts"
    }  # fmt: skip
    assert sum(row[4] == "equal" for row in shared) == len(shared) - count * len(not_recorded) - sum(
        row[4] == "within tolerance" for row in shared
    )
    assert len({row[1] for row in shared}) == 82


def test_the_comparison_finds_a_difference(recorded_xml, comparison):
    text = recorded_xml("h200x2")
    whole = devices(smi.parse(text))
    for element, old, new, path in (
        ("serial", "1650000000001", "1650000000009", "serial"),
        ("persistence_mode", "Enabled", "Disabled", "persistence_mode"),
        ("gpu_temp", "35 C", "45 C", "temperature.gpu_celsius"),
        ("fan_speed", "N/A", "30 %", "fan_speed_percent"),
    ):
        rows = comparison.compare(model, whole, devices(smi.parse(shown(text, element, old, new))))
        assert [row[:2] for row in rows if row[4] == "DIFFERENT"] == [(0, path)]
    rows = comparison.compare(model, whole, devices(smi.parse(shown(text, "gpu_temp", "35 C", "37 C"))))
    assert {row[4] for row in rows} == {"equal", "within tolerance", "not in nvidia-smi -q"}
    one = [{"pid": 1, "name": "a", "type": "compute", "used_bytes": 5 * MIB, "unit": None}]
    for other, verdict in (
        ([dict(one[0], used_bytes=None)], "within tolerance"),
        ([dict(one[0], used_bytes=500 * MIB)], "DIFFERENT"),
        ([dict(one[0], pid=2)], "DIFFERENT"),
        ([], "DIFFERENT"),
    ):
        assert comparison._verdict("processes", one, other) == verdict
    assert comparison._verdict("performance_state", "P0", "P8") == "moving"


def test_recorded_host(recorded_xml):
    parts = smi.parse(recorded_xml("h200x4"))
    assert parts[0] == ("driver", {"version": "580.159.04", "cuda_version": "13.0"})
    assert [name for name, data in parts] == ["driver"] + 4 * ["device"]
    device, gone = parts[2][1]
    assert gone is None
    assert device["uuid"] == "GPU-00000002-0000-4000-8000-000000000002"
    assert device["memory"] == {
        "total_bytes": 143771 * MIB,
        "used_bytes": 0,
        "free_bytes": 143156 * MIB,
        "reserved_bytes": 616 * MIB,
    }
    assert device["recovery_action"] == "none"
    assert device["fabric"]["state"] == "completed" and device["fabric"]["status"] == "success"
    assert device["clocks_event_reasons"] == ["gpu_idle"]
    assert device["unavailable"]["compute_capability"] == "not printed by nvidia-smi -q"
    assert device["unavailable"]["fan_speed_percent"] == "unsupported"


PROCESSES = """<processes>
  <process_info><gpu_instance_id>N/A</gpu_instance_id><pid>7151</pid><type>C</type>
    <process_name>/usr/lib/ollama/llama-server --api-key hidden</process_name><used_memory>42906 MiB</used_memory>
  </process_info>
  <process_info><pid>900</pid><type>G</type><process_name>/usr/lib/xorg/Xorg</process_name>
    <used_memory>4 MiB</used_memory></process_info>
  <process_info><pid>901</pid><type>C+G</type><process_name>[Not Found]</process_name>
    <used_memory>N/A</used_memory></process_info>
</processes>"""


def test_processes(recorded_xml, tmp_path):
    (tmp_path / "proc" / "7151").mkdir(parents=True)
    (tmp_path / "proc" / "7151" / "cgroup").write_text("0::/system.slice/ollama.service\n")
    text = recorded_xml("h200x2").replace("<processes>\n\t\t</processes>", PROCESSES, 1)
    text = text.replace("<processes>\n\t\t</processes>", "<processes>N/A</processes>", 1)
    first, second = devices(smi.parse(text, str(tmp_path)))
    assert first["processes"] == [
        {"pid": 900, "name": "/usr/lib/xorg/Xorg", "type": "graphics", "used_bytes": 4 * MIB, "unit": None},
        {"pid": 901, "name": None, "type": "compute+graphics", "used_bytes": None, "unit": None},
        {
            "pid": 7151,
            "name": "/usr/lib/ollama/llama-server",
            "type": "compute",
            "used_bytes": 42906 * MIB,
            "unit": "ollama.service",
        },
    ]
    assert second["processes"] is None and second["unavailable"]["processes"] == "unsupported"


@pytest.mark.parametrize(
    "element, old, new, path, expected",
    [
        ("compute_mode", "Default", "Exclusive_Process", "compute_mode", "exclusive_process"),
        ("gpu_recovery_action", "None", "Drain and Reset", "recovery_action", "drain_and_reset"),
        ("virtualization_mode", "Pass-Through", "Host VGPU", "virtualization_mode", "host_vgpu"),
        ("fan_speed", "N/A", "30 %", "fan_speed_percent", 30),
        ("remapped_row_pending", "No", "Yes", "remapped_rows.pending", True),
        ("pending_retirement", "N/A", "Yes", "retired_pages.pending", True),
        ("dram_uncorrectable", "0", "7", "ecc.volatile.uncorrected", 7),
        ("sram_correctable", "0", "2", "ecc.volatile.corrected", 2),
        ("state", "Completed", "In Progress", "fabric.state", "in_progress"),
        ("gpu_temp", "35 C", "-5 C", "temperature.gpu_celsius", -5),
    ],
)
def test_values(recorded_xml, element, old, new, path, expected):
    assert value(devices(smi.parse(shown(recorded_xml("h200x2"), element, old, new)))[0], path) == expected


@pytest.mark.parametrize(
    "element, old, new, path, reason",
    [
        ("gpu_temp", "35 C", "Unknown Error", "temperature.gpu_celsius", "Unknown Error"),
        ("persistence_mode", "Enabled", "ERR!", "persistence_mode", "ERR!"),
        ("serial", "1650000000001", "[Not Supported]", "serial", "unsupported"),
        ("current_link_width", "16x", "", "pcie.width", "unsupported"),
        ("sram_correctable", "0", "N/A", "ecc.volatile.corrected", "unsupported"),
        ("current_ecc", "Enabled", "[GPU requires reset]", "ecc.enabled", "[GPU requires reset]"),
    ],
)
def test_values_that_are_none(recorded_xml, element, old, new, path, reason):
    device = devices(smi.parse(shown(recorded_xml("h200x2"), element, old, new)))[0]
    assert value(device, path) is None and device["unavailable"][path] == reason


def test_card_without_fabric(recorded_xml):
    device = devices(smi.parse(shown(recorded_xml("h200x2"), "state", "Completed", "Not Supported")))[0]
    assert device["unavailable"]["fabric.state"] == "unsupported"
    text = shown(recorded_xml("h200x2"), "state", "Completed", "not_supported")
    device = devices(smi.parse(text))[0]
    assert device["fabric"] == {
        "state": None,
        "status": None,
        "clique_id": None,
        "cluster_uuid": None,
        "problems": None,
    }


def test_lost_gpu(recorded_xml):
    text = shown(recorded_xml("h200x4"), "fan_speed", "N/A", "GPU is lost")
    parts = [data for name, data in smi.parse(text) if name == "device"]
    assert (parts[0][1]["code"], parts[0][1]["text"]) == ("gpu_lost", "GPU is lost")
    assert parts[0][0]["uuid"] == "GPU-00000001-0000-4000-8000-000000000001"
    assert [gone for device, gone in parts[1:]] == [None, None, None]


OLD = """<?xml version="1.0" ?>
<nvidia_smi_log>
  <driver_version>470.256.02</driver_version><cuda_version>11.4</cuda_version><attached_gpus>1</attached_gpus>
  <gpu id="00000000:3B:00.0">
    <product_name>Tesla V100-PCIE-16GB</product_name>
    <uuid>GPU-1</uuid>
    <minor_number>0</minor_number>
    <fb_memory_usage><total>16160 MiB</total><used>3 MiB</used><free>16157 MiB</free></fb_memory_usage>
    <pci><pci_bus_id>00000000:3B:00.0</pci_bus_id></pci>
    <clocks_throttle_reasons>
      <clocks_throttle_reason_gpu_idle>Active</clocks_throttle_reason_gpu_idle>
      <clocks_throttle_reason_hw_slowdown>Active</clocks_throttle_reason_hw_slowdown>
    </clocks_throttle_reasons>
    <ecc_errors>
      <volatile><single_bit><total>4</total></single_bit><double_bit><total>1</total></double_bit></volatile>
    </ecc_errors>
    <retired_pages>
      <multiple_single_bit_retirement><retired_count>2</retired_count></multiple_single_bit_retirement>
      <double_bit_retirement><retired_count>0</retired_count></double_bit_retirement>
      <pending_retirement>No</pending_retirement>
    </retired_pages>
    <temperature><gpu_temp>40 C</gpu_temp><gpu_temp_max_threshold>90 C</gpu_temp_max_threshold></temperature>
    <power_readings><power_draw>25.50 W</power_draw><power_limit>250.00 W</power_limit></power_readings>
  </gpu>
</nvidia_smi_log>"""


def test_old_version():
    ((name, data), (device_name, (device, gone))) = smi.parse(OLD)
    assert data == {"version": "470.256.02", "cuda_version": "11.4"}
    assert device["pci_bus_id"] == "0000:3b:00.0"
    assert device["clocks_event_reasons"] == ["gpu_idle", "hw_slowdown"]
    assert device["ecc"]["volatile"] == {"corrected": 4, "uncorrected": 1}
    assert device["ecc"]["aggregate"] == {"corrected": None, "uncorrected": None}
    assert device["retired_pages"] == {"single_bit": 2, "double_bit": 0, "pending": False}
    assert (device["power"]["usage_watts"], device["power"]["limit_watts"]) == (25.5, 250.0)
    assert device["temperature"]["shutdown_celsius"] == 90
    assert device["processes"] is None


MIG = """<mig_devices>
  <mig_device><index>0</index><gpu_instance_id>1</gpu_instance_id><compute_instance_id>0</compute_instance_id>
    <fb_memory_usage><total>40192 MiB</total><used>19 MiB</used><free>40172 MiB</free></fb_memory_usage></mig_device>
  <mig_device><index>1</index></mig_device>
</mig_devices>"""


def test_mig(recorded_xml):
    text = shown(recorded_xml("h200x2"), "current_mig", "Disabled", "Enabled")
    text = text.replace("<mig_devices>\n\t\t\tNone\n\t\t</mig_devices>", MIG, 1)
    parts = smi.parse(text)
    assert devices(parts)[0]["mig"]["enabled"] is True
    instances = [data for name, data in parts if name == "mig_device"]
    assert instances[0]["memory"] == {"total_bytes": 40192 * MIB, "used_bytes": 19 * MIB, "free_bytes": 40172 * MIB}
    assert instances[0]["gpu_uuid"] == "GPU-00000001-0000-4000-8000-000000000001"
    assert (instances[0]["gpu_instance_id"], instances[0]["compute_instance_id"]) == (1, 0)
    assert instances[1]["memory"]["total_bytes"] is None and instances[1]["gpu_instance_id"] is None


@pytest.mark.parametrize("text", ["", "NVIDIA-SMI has failed", "<a><b></a>"])
def test_no_xml(text):
    with pytest.raises(ValueError, match="nvidia-smi -q -x printed something that is not XML"):
        smi.parse(text)


@pytest.mark.parametrize(
    "status, output, code",
    [
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "driver_not_loaded"),
        (12, "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.", "library_missing"),
        (15, "Unable to determine the device handle for GPU0000:05:00.0: GPU is lost.", "gpu_lost"),
        (
            18,
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.159",
            "driver_mismatch",
        ),
        (255, "Failed to initialize NVML: Unknown Error", "nvml_error"),
    ],
)
def test_failures(status, output, code):
    fault = smi.fault_of_failure(status, output)
    assert fault["code"] == code
    assert fault["text"] == "nvidia-smi failed (exit status %d): %s" % (status, output.replace("\n", " "))


def test_no_devices_is_no_fault():
    assert smi.fault_of_failure(6, "No devices were found\n") is None


def test_every_row_is_for_a_leaf():
    assert {row[0] for row in smi.DATA} <= set(model.LEAVES)
