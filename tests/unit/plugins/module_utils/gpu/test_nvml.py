# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read through NVML: recorded hosts, other kinds of cards, and cards that fail."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import model, nvml

NOT_SUPPORTED = {"nvml_error": 3}
FABRIC = {"state": 3, "status": 0, "cliqueId": 5, "clusterUuid": list(range(16))}

H200 = {
    "index": 1,
    "uuid": "GPU-00000002-0000-4000-8000-000000000002",
    "name": "NVIDIA H200",
    "pci_bus_id": "0000:00:07.0",
    "pci_device_id": "10de:2335",
    "minor": 1,
    "device_node": None,  # comes with the join
    "serial": "1650000000002",
    "board_part_number": "692-2G520-0282-001",
    "vbios_version": "96.00.CF.00.0C",
    "gsp_firmware_version": "580.159.04",
    "brand": "NVIDIA",
    "architecture": "Hopper",
    "compute_capability": "9.0",
    "module_id": 4,
    "virtualization_mode": "pass-through",
    "memory": {"total_bytes": 150754820096, "used_bytes": 0, "free_bytes": 150109880320, "reserved_bytes": 644939776},
    "bar1": {"total_bytes": 274877906944, "used_bytes": 1703936, "free_bytes": 274876203008},
    "ecc": {
        "enabled": True,
        "pending": True,
        "sram_threshold_exceeded": None,
        "volatile": {"corrected": 0, "uncorrected": 0},
        "aggregate": {"corrected": 0, "uncorrected": 0},
    },
    "remapped_rows": {
        "corrected": 0,
        "uncorrected": 0,
        "pending": False,
        "failure": False,
        "spare_banks": {"full": 3072, "high": 0, "partial": 0, "low": 0, "none": 0},
    },
    "retired_pages": {"single_bit": None, "double_bit": None, "pending": None},
    "repair": {"channel_pending": False, "tpc_pending": False},
    "unrepairable_memory": False,
    "recovery_action": None,
    "mig": {"enabled": False, "pending": False, "max_instances": 0},
    "power": {
        "usage_watts": 82.14,
        "limit_watts": 700.0,
        "enforced_limit_watts": 700.0,
        "default_limit_watts": 700.0,
        "min_limit_watts": 200.0,
        "max_limit_watts": 700.0,
        "energy_joules": 3171.102,
    },
    "clocks": {
        "graphics_mhz": 345,
        "sm_mhz": 345,
        "memory_mhz": 3201,
        "video_mhz": 765,
        "max_graphics_mhz": 1980,
        "max_sm_mhz": 1980,
        "max_memory_mhz": 3201,
        "max_video_mhz": 1545,
    },
    "clocks_event_reasons": ["gpu_idle"],
    "utilization": {"gpu_percent": 0, "memory_percent": 0},
    "temperature": {
        "gpu_celsius": None,
        "memory_celsius": None,
        "margin_celsius": 52,
        "shutdown_celsius": 95,
        "slowdown_celsius": 89,
        "memory_max_celsius": 95,
        "gpu_max_celsius": 87,
    },
    "fan_speed_percent": None,
    "persistence_mode": True,
    "compute_mode": "default",
    "performance_state": "P0",
    "display_active": False,
    "pcie": {
        "generation": 5,
        "width": 16,
        "max_generation": 5,
        "max_width": 16,
        "replay_count": 0,
        "uncorrectable_errors": None,
        "acs_redirects": None,
    },
    "nvlink": {"link_count": 18, "active_count": 18, "recovery_errors": None},
    "slowdown": {"thermal_seconds": None, "power_brake_seconds": None},
    "inforom_corrupt": None,
    "fabric": {"state": None, "status": None, "clique_id": None, "cluster_uuid": None, "problems": None},
    "numa_node": None,
    "cpu_affinity": "0-31",
    "processes": [],
}
FOR_THE_DOCTOR = {"inforom_corrupt", "slowdown.thermal_seconds", "slowdown.power_brake_seconds"}
OF_SYSFS = ("pcie.uncorrectable_errors", "pcie.acs_redirects")
# what the recording does not hold, or says that the card does not have
H200_UNSUPPORTED = {
    "retired_pages.single_bit", "retired_pages.double_bit", "retired_pages.pending", "recovery_action",
    "temperature.gpu_celsius", "temperature.memory_celsius", "fan_speed_percent", "fabric.state", "fabric.status",
    "fabric.clique_id", "fabric.cluster_uuid", "fabric.problems", "numa_node", "ecc.sram_threshold_exceeded",
    "nvlink.recovery_errors",
}  # fmt: skip


@pytest.fixture
def read(binding, tmp_path):
    """`read(state, thorough=False)` is every part that the reader emits, by name in lists."""

    def run(state, thorough=False):
        told = {}
        nvml.read(binding(state), lambda name, data: told.setdefault(name, []).append(data), str(tmp_path), thorough)
        return told

    return run


def test_recorded_h200s(recording, read):
    told = read(recording("h200x2"))
    device, gone = told["device"][1]
    assert gone is None
    unavailable = device.pop("unavailable")
    assert device == H200
    assert unavailable.pop("device_node")
    assert {unavailable.pop(leaf) for leaf in FOR_THE_DOCTOR} == {model.SLOW}
    for leaf in OF_SYSFS:
        del unavailable[leaf]  # comes with the join, too
    assert set(unavailable) == H200_UNSUPPORTED and set(unavailable.values()) == {"unsupported"}
    assert told["driver"] == [
        {
            "version": "580.159.04",
            "nvml_version": "13.580.159.04",
            "cuda_version": "13.0",
            "branch": "r582_49",
            "confidential_compute": False,
        }
    ]
    assert told["pairs"] == [[[0, 1, {"level": 30, "read": 0, "nvlink": 0}]]]
    assert told["link_ends"] == [[0, {"ffffffff:ff:ff.0": 18}], [1, {"ffffffff:ff:ff.0": 18}]]
    assert told["step"] == ["starting NVML", "reading GPU 0", "reading GPU 1", "reading how the GPUs are linked"]
    assert "fault" not in told and "mig_device" not in told


def test_recorded_four_differ_only_where_cards_and_hosts_do(recording, read):
    told = read(recording("h200x4"))
    assert [device["index"] for device, gone in told["device"]] == [0, 1, 2, 3]
    for device, gone in told["device"]:
        assert gone is None
        assert device["cpu_affinity"] == "0-63" and device["vbios_version"] == "96.00.A5.00.1A"
        same = set(H200) - {
            "index", "uuid", "pci_bus_id", "minor", "device_node", "serial", "vbios_version", "module_id", "power",
            "temperature", "cpu_affinity",
        }  # fmt: skip
        assert {key: device[key] for key in same} == {key: H200[key] for key in same}
        assert set(device["unavailable"]) == H200_UNSUPPORTED | {"device_node", *FOR_THE_DOCTOR, *OF_SYSFS}
    assert len(told["pairs"][0]) == 6


def test_what_a_newer_driver_tells(recording, read):
    state = recording("h200x2")
    state["devices"][0].update(
        {
            "nvmlDeviceGetTemperatureV[0]": {"ok": 34},
            "nvmlDeviceGetTemperature[0]": {"ok": 99},
            "field[82]": {"ok": 41},
            "field[91]": {"ok": 12},
            "field[162,4294967295]": {"ok": 2},
            "field[59]": {"ok": 9},
            "field[230]": {"ok": 4},
            "fabric": {"ok": dict(FABRIC, healthMask=0b10_10_0101_10_01_10_01)},
            "sram": {"ok": 1},
            "nvmlDeviceGetNumaNodeId": {"ok": 1},
        }
    )
    device = read(state)["device"][0][0]
    assert device["temperature"]["gpu_celsius"] == 34 and device["temperature"]["memory_celsius"] == 41
    assert device["recovery_action"] == "drain_and_reset"
    assert device["nvlink"] == {"link_count": 12, "active_count": 12, "recovery_errors": 2}
    assert device["numa_node"] == 1
    assert device["fabric"] == {
        "state": "completed",
        "status": "success",
        "clique_id": 5,
        "cluster_uuid": "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "problems": ["degraded_bandwidth", "route_unhealthy", "too_few_nvlinks", "manager_disconnected"],
    }
    assert device["ecc"]["sram_threshold_exceeded"] is True


def test_an_older_gpu_counts_recoveries_in_another_field(recording, read):
    state = recording("h200x2")
    state["devices"][0]["field[59]"] = {"ok": 3}
    assert read(state)["device"][0][0]["nvlink"]["recovery_errors"] == 3


@pytest.mark.parametrize(
    "answer, found", [({"ok": None}, False), ({"nvml_error": 14}, True), ({"nvml_error": 3}, None)]
)
def test_the_inforom_is_validated_where_there_is_time(recording, read, answer, found):
    state = recording("h200x2")
    state["devices"][0]["nvmlDeviceValidateInforom"] = answer
    assert read(state, thorough=True)["device"][0][0]["inforom_corrupt"] is found


def test_how_long_it_was_slow_since_the_driver_was_loaded_is_for_the_doctor_alone(recording, read):
    """Ten minutes of a hot day would else be a finding until the next reboot."""
    state = recording("h200x2")
    state["devices"][0].update({"field[270]": {"ok": 720_040_000_000}, "field[271]": {"ok": 0}})
    assert read(state)["device"][0][0]["slowdown"] == {"thermal_seconds": None, "power_brake_seconds": None}
    device = read(state, thorough=True)["device"][0][0]
    assert device["slowdown"] == {"thermal_seconds": 720.0, "power_brake_seconds": 0.0}


def test_fabric_that_is_none_and_one_that_failed(recording, read):
    state = recording("h200x2")
    state["devices"][0]["fabric"] = {"ok": dict(FABRIC, state=0)}
    state["devices"][1]["fabric"] = {"ok": dict(FABRIC, state=3, status=999)}
    none, failed = (device for device, gone in read(state)["device"])
    assert none["fabric"]["state"] is None and none["unavailable"]["fabric.state"] == "unsupported"
    assert failed["fabric"]["status"] == "Unknown Error"
    assert failed["fabric"]["problems"] is None and failed["unavailable"]["fabric.problems"] == "unsupported"


def test_what_an_older_driver_tells(recording, read):
    """No event reasons under their new name, no second form of the memory, none of the newer functions."""
    state = recording("h200x2")
    for device in state["devices"]:
        device["nvmlDeviceGetMemoryInfo_v2"] = {"nvml_error": 25}
        device["nvmlDeviceGetTemperature[0]"] = {"ok": 36}
        for name in (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetMarginTemperature",
            "nvmlDeviceGetNumaNodeId",
        ):
            del device[name]
    device = read(state)["device"][0][0]
    assert device["memory"] == {
        "total_bytes": 150754820096,
        "used_bytes": 644939776,
        "free_bytes": 150109880320,
        "reserved_bytes": None,
    }
    assert device["unavailable"]["memory.reserved_bytes"] == "unsupported"
    assert device["clocks_event_reasons"] == ["gpu_idle"]
    assert device["temperature"]["gpu_celsius"] == 36
    assert device["unavailable"]["temperature.margin_celsius"] == "unsupported"


def test_old_binding(recording, binding, tmp_path):
    """A binding from before nvmlMemory_v2 that gives bytes for text, and knows less."""
    library = binding(recording("h200x2"))
    del library.nvmlMemory_v2
    library.nvmlDeviceGetName = lambda handle: b"NVIDIA H200"
    library.nvmlSystemGetProcessName = lambda pid: b"/usr/bin/python3"
    library.nvmlDeviceGetGpuFabricInfoV = None
    library.nvmlDeviceGetPowerUsage = lambda: 1
    device, handle, gone, ends = nvml.read_device(nvml.Library(_started(library)), 0, str(tmp_path))
    assert gone is None and device["name"] == "NVIDIA H200"
    assert device["memory"]["reserved_bytes"] is None and device["memory"]["used_bytes"] == 644939776
    assert "TypeError" in device["unavailable"]["fabric.state"]
    assert "TypeError" in device["unavailable"]["power.usage_watts"]


def _started(library):
    library.nvmlInit()
    return library


def consumer(state):
    """Turns recorded H200s into cards without ECC, NVLink and much else, with a fan and a display."""
    for device in state["devices"]:
        for name in list(device):
            if name.startswith(
                (
                    "nvmlDeviceGetEcc", "nvmlDeviceGetTotalEcc", "nvmlDeviceGetRemapped", "nvmlDeviceGetRowRemapper",
                    "nvmlDeviceGetRetired", "nvmlDeviceGetRepair", "nvmlDeviceGetMig", "nvmlDeviceGetMaxMig",
                    "nvmlDeviceGetNvLink", "nvmlDeviceGetSerial", "nvmlDeviceGetBoardPart", "nvmlDeviceGetModuleId",
                    "nvmlDeviceGetMargin",
                )
            ):  # fmt: skip
                device[name] = NOT_SUPPORTED
        for peer in range(state["count"]):
            device["nvmlDeviceGetP2PStatus[%d,2]" % peer] = {"ok": 5}
            device["nvmlDeviceGetP2PStatus[%d,0]" % peer] = {"ok": 1}
        device.update(
            {
                "nvmlDeviceGetName": {"ok": "NVIDIA GeForce RTX 4090"},
                "nvmlDeviceGetBrand": {"ok": 5},
                "nvmlDeviceGetArchitecture": {"ok": 8},
                "nvmlDeviceGetCudaComputeCapability": {"ok": [8, 9]},
                "nvmlDeviceGetFanSpeed": {"ok": 30},
                "nvmlDeviceGetDisplayActive": {"ok": 1},
                "nvmlDeviceGetPerformanceState": {"ok": 8},
                "nvmlDeviceGetPersistenceMode": {"ok": 0},
                "nvmlDeviceGetComputeMode": {"ok": 3},
                "nvmlDeviceGetVirtualizationMode": {"ok": 0},
            }
        )
    return state


def test_consumer_cards(recording, read):
    told = read(consumer(recording("h200x4")))
    device, gone = told["device"][0]
    assert gone is None
    assert device["name"] == "NVIDIA GeForce RTX 4090"
    assert (device["brand"], device["architecture"], device["compute_capability"]) == ("GeForce", "Ada Lovelace", "8.9")
    assert (device["fan_speed_percent"], device["display_active"], device["persistence_mode"]) == (30, True, False)
    assert (device["performance_state"], device["compute_mode"]) == ("P8", "exclusive_process")
    assert device["virtualization_mode"] == "none"
    for leaf in (
        "serial", "ecc.enabled", "ecc.volatile.uncorrected", "remapped_rows.pending", "mig.enabled",
        "nvlink.link_count", "nvlink.active_count", "repair.tpc_pending", "module_id",
    ):  # fmt: skip
        assert device["unavailable"][leaf] == "unsupported", leaf
    assert device["nvlink"] == {"link_count": None, "active_count": None, "recovery_errors": None}
    assert told["link_ends"][0] == [0, {}]
    assert told["pairs"][0][0] == [0, 1, {"level": 30, "read": 1, "nvlink": 5}]


def test_names_that_are_not_known_yet(recording, read):
    state = recording("h200x2")
    state["devices"][0].update({"nvmlDeviceGetArchitecture": {"ok": 77}, "nvmlDeviceGetBrand": {"ok": 99}})
    device = read(state)["device"][0][0]
    assert (device["architecture"], device["brand"]) == ("unknown (77)", "unknown (99)")


def instance(number, **more):
    entries = {
        "nvmlDeviceGetUUID": {"ok": "MIG-%08d-0000-5000-8000-000000000001" % number},
        "nvmlDeviceGetName": {"ok": "NVIDIA A100-SXM4-80GB MIG 3g.40gb"},
        "nvmlDeviceGetMemoryInfo": {"ok": {"total": 42949672960, "used": 1024, "free": 42949671936}},
        "nvmlDeviceGetGpuInstanceId": {"ok": number},
        "nvmlDeviceGetComputeInstanceId": {"ok": 0},
    }
    entries.update(more)
    return entries


def test_mig(recording, read):
    state = recording("h200x2")
    state["devices"][0].update(
        {
            "nvmlDeviceGetMigMode": {"ok": [1, 1]},
            "nvmlDeviceGetMaxMigDeviceCount": {"ok": 4},
            "nvmlDeviceGetUtilizationRates": NOT_SUPPORTED,
            "mig": [instance(1), None, instance(2), dict.fromkeys(instance(3), NOT_SUPPORTED)],
        }
    )
    told = read(state)
    assert told["device"][0][0]["mig"] == {"enabled": True, "pending": True, "max_instances": 4}
    assert told["mig_device"][:2] == [
        {
            "uuid": "MIG-%08d-0000-5000-8000-000000000001" % number,
            "name": "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
            "gpu_uuid": "GPU-00000001-0000-4000-8000-000000000001",
            "gpu_instance_id": number,
            "compute_instance_id": 0,
            "memory": {"total_bytes": 42949672960, "used_bytes": 1024, "free_bytes": 42949671936},
        }
        for number in (1, 2)
    ]
    assert told["mig_device"][2] == {
        "uuid": None,
        "name": None,
        "gpu_uuid": "GPU-00000001-0000-4000-8000-000000000001",
        "gpu_instance_id": None,
        "compute_instance_id": None,
        "memory": {"total_bytes": None, "used_bytes": None, "free_bytes": None},
    }


def process(pid, used):
    return {"pid": pid, "usedGpuMemory": used}


def test_processes(recording, read, tmp_path):
    state = recording("h200x2")
    state["processes"] = {"7151": "/usr/lib/ollama/llama-server --api-key hidden", "900": "/usr/lib/xorg/Xorg"}
    state["devices"][0].update(
        {
            "nvmlDeviceGetComputeRunningProcesses": {"ok": [process(7151, 44990201856), process(900, None)]},
            "nvmlDeviceGetGraphicsRunningProcesses": {"ok": [process(900, 4096), process(3, 1)]},
        }
    )
    state["devices"][1]["nvmlDeviceGetComputeRunningProcesses"] = {"nvml_error": 4}
    (tmp_path / "proc" / "7151").mkdir(parents=True)
    (tmp_path / "proc" / "7151" / "cgroup").write_text("0::/system.slice/ollama.service\n")
    told = read(state)
    assert told["device"][0][0]["processes"] == [
        {"pid": 3, "name": None, "type": "graphics", "used_bytes": 1, "unit": None},
        {"pid": 900, "name": "/usr/lib/xorg/Xorg", "type": "compute+graphics", "used_bytes": 4096, "unit": None},
        {
            "pid": 7151,
            "name": "/usr/lib/ollama/llama-server",
            "type": "compute",
            "used_bytes": 44990201856,
            "unit": "ollama.service",
        },
    ]
    assert told["device"][1][0]["processes"] is None
    assert told["device"][1][0]["unavailable"]["processes"] == "Insufficient Permissions"


def test_process_listed_twice_keeps_its_type(recording, read):
    state = recording("h200x2")
    state["devices"][0]["nvmlDeviceGetComputeRunningProcesses"] = {"ok": [process(5, 10), process(5, 30)]}
    (found,) = read(state)["device"][0][0]["processes"]
    assert (found["type"], found["used_bytes"]) == ("compute", 30)


@pytest.mark.parametrize(
    "code, fault",
    [
        (9, {"code": "driver_not_loaded", "text": "NVML does not start: Driver Not Loaded"}),
        (12, {"code": "library_missing", "text": "NVML does not start: NVML Shared Library Not Found"}),
        (18, {"code": "driver_mismatch", "text": "NVML does not start: Driver/library version mismatch"}),
        (999, {"code": "nvml_error", "text": "NVML does not start: Unknown Error"}),
        (4, {"code": "nvml_error", "text": "NVML does not start: Insufficient Permissions"}),
    ],
)
def test_nvml_does_not_start(recording, read, code, fault):
    told = read(dict(recording("h200x2"), init_error=code))
    assert {key: told["fault"][0][key] for key in ("code", "text")} == fault
    assert told["fault"][0]["remedy"]
    assert told["driver"] == [{"nvml_version": "13.580.159.04"}]
    assert "device" not in told


def test_count_is_refused(recording, binding):
    library = binding(recording("h200x2"))

    def refuse():
        raise library.NVMLError(999)

    library.nvmlDeviceGetCount = refuse
    told = {}
    nvml.read(library, lambda name, data: told.setdefault(name, []).append(data))
    assert told["fault"][0]["code"] == "nvml_error"


@pytest.mark.parametrize(
    "code, text, fault_code",
    [
        (15, "GPU is lost", "gpu_lost"),
        (16, "GPU requires restart", "nvml_error"),
        (999, "Unknown Error", "nvml_error"),
        (3, "unsupported", "nvml_error"),
    ],
)
def test_gpu_without_a_handle(recording, read, code, text, fault_code):
    state = recording("h200x4")
    state["devices"][1]["handle_error"] = code
    told = read(state)
    device, gone = told["device"][1]
    assert (gone["code"], gone["text"]) == (fault_code, text)
    assert device["uuid"] is None and device["unavailable"]["uuid"] == "the GPU does not answer"
    assert [gone for device, gone in told["device"]].count(None) == 3
    assert [ends[0] for ends in told["link_ends"]] == [0, 2, 3]
    assert [pair[:2] for pair in told["pairs"][0]] == [[0, 2], [0, 3], [2, 3]]


def test_gpu_that_is_lost_while_it_is_read(recording, read):
    state = recording("h200x2")
    state["devices"][0]["nvmlDeviceGetPowerUsage"] = {"nvml_error": 15}
    device, gone = read(state)["device"][0]
    assert gone["code"] == "gpu_lost"
    assert device["name"] == "NVIDIA H200" and device["ecc"]["enabled"] is True
    assert device["clocks"]["sm_mhz"] is None
    assert device["unavailable"]["clocks.sm_mhz"] == "the GPU does not answer"


@pytest.mark.parametrize("function", ["nvmlDeviceGetNvLinkState[0]", "nvmlDeviceGetComputeRunningProcesses"])
def test_gpu_that_is_lost_after_its_own_values_were_read(recording, read, function):
    state = recording("h200x2")
    state["devices"][0][function] = {"nvml_error": 15}
    device, gone = read(state)["device"][0]
    assert gone["code"] == "gpu_lost" and device["clocks"]["sm_mhz"] is not None


def test_gpu_that_is_lost_after_it_was_read(recording, read):
    state = recording("h200x2")
    state["devices"][0]["nvmlDeviceGetTopologyCommonAncestor[1]"] = {"nvml_error": 15}
    assert read(state)["pairs"] == [[[0, 1, {"level": None, "read": 0, "nvlink": 0}]]]


def test_errors_of_single_data_keep_their_text(recording, read):
    state = recording("h200x2")
    state["devices"][0]["nvmlDeviceGetSerial"] = {"nvml_error": 4}
    state["devices"][0]["nvmlDeviceGetFanSpeed"] = {"nvml_error": 27}
    state["devices"][0]["nvmlDeviceGetVbiosVersion"] = {"nvml_error": 13}
    state["devices"][0]["nvmlDeviceGetMinorNumber"] = {"nvml_error": 6}
    unavailable = read(state)["device"][0][0]["unavailable"]
    assert unavailable["serial"] == "Insufficient Permissions"
    assert unavailable["fan_speed_percent"] == "System is not in ready state"
    assert unavailable["vbios_version"] == "unsupported"
    assert unavailable["minor"] == "Not Found"


def test_link_whose_other_end_is_not_told(recording, read):
    state = recording("h200x2")
    state["devices"][0]["nvmlDeviceGetNvLinkRemotePciInfo[0]"] = NOT_SUPPORTED
    state["devices"][0]["nvmlDeviceGetNvLinkState[1]"] = {"ok": 0}
    told = read(state)
    assert told["device"][0][0]["nvlink"]["active_count"] == 17
    assert told["link_ends"][0] == [0, {"ffffffff:ff:ff.0": 16}]


def test_links_that_have_no_state(recording, read):
    state = recording("h200x2")
    state["devices"][0].update({"field[91]": {"ok": 18}, "nvmlDeviceGetNvLinkState[0]": NOT_SUPPORTED})
    state["devices"][1]["field[91]"] = {"ok": 0}
    first, second = (device for device, gone in read(state)["device"])
    assert (first["nvlink"]["link_count"], first["nvlink"]["active_count"]) == (18, None)
    assert (second["nvlink"]["link_count"], second["nvlink"]["active_count"]) == (0, 0)


def test_every_leaf_has_a_function():
    """Else a leaf would never be anything but None."""
    told = {leaf for row in nvml.DATA + nvml.THOROUGH for leaf in row[0].split()}
    assert set(model.LEAVES) - told == {"index", "device_node", "nvlink.active_count", "processes", *OF_SYSFS}
    assert told <= set(model.LEAVES)
