#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for nvidia-smi on a lab host: says of the simulated GPUs what the real one says, in its words.

Speaks ``-L``, ``-q -x``, ``--query-gpu=… --format=csv[,noheader][,nounits]``, ``--query-compute-apps=…``, ``-pm 0|1``,
``topo -m``, each but the last with ``-i GPU``. All comes through libnvidia-ml.so.1, so faults and invisible GPUs show
as they do to any program. The exit status is NVML's code, as the real one's.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from ctypes import byref, c_uint, create_string_buffer
from xml.sax.saxutils import escape

sys.path.insert(1, "/usr/local/lib/nvidia-sim")
import nvml_sim
from nvml_sim import MIB, NvmlError

BRANDS = {1: "Quadro", 2: "Tesla", 5: "GeForce", 6: "Titan", 13: "NVIDIA RTX", 14: "NVIDIA"}
ARCHITECTURES = {5: "Volta", 6: "Turing", 7: "Ampere", 8: "Ada Lovelace", 9: "Hopper", 10: "Blackwell"}
COMPUTE_MODES = ("Default", "Exclusive_Thread", "Prohibited", "Exclusive_Process")
FABRIC_STATES = ("N/A", "Not Started", "In Progress", "Completed")
RECOVERY = ("None", "Reset", "Reboot", "Drain P2P", "Drain and Reset")
VIRTUALIZATION = ("None", "Pass-Through", "VGPU", "Host VGPU", "Host VSGA")
TOPOLOGY = {0: "X", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
EVENT_REASONS = {
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "display_clocks_setting": 0x100,
}


# -- one GPU's data: functions of a device that give nvidia-smi's words -------------------------------------------


def word(function, index=0, form="%s"):
    """A word of what nvmlDeviceGet… gives, in a form."""
    return lambda gpu: form % gpu.get("nvmlDeviceGet" + function)[index]


def number(function, index=0):
    return lambda gpu: int(gpu.get("nvmlDeviceGet" + function)[index], 0)


def named(names, source):
    return lambda gpu: names[source(gpu)]


def on(function, index=0):
    return named(("Disabled", "Enabled"), number(function, index))


def yes(function, index=0):
    return named(("No", "Yes"), number(function, index))


def watts(function, index=0):
    return lambda gpu: "%.2f W" % (number(function, index)(gpu) / 1000)


def mib(function, index, round_to_whole=math.ceil):
    return lambda gpu: "%d MiB" % round_to_whole(number(function, index)(gpu) / MIB)


def framebuffer(part):
    return lambda gpu: "%d MiB" % math.ceil(gpu.memory[part] / MIB)


def field(identifier, form="%s"):
    return word("FieldValues[%d]" % identifier, 1, form)


def recorded(path):
    """What only nvidia-smi told: the state has it by its place in the report."""
    return lambda gpu: gpu.get("smi." + path)[0]


def threshold(index):
    """In degrees, by cards that have no thresholds as a margin."""

    def source(gpu):
        try:
            gpu.get("nvmlDeviceGetFieldValues[193]")
        except NvmlError:
            return word("TemperatureThreshold[%d]" % index, form="%s C")(gpu)
        raise NvmlError(3, "Not Supported")

    return source


def pci(index, form):
    return lambda gpu: form % number("PciInfo_v3", index)(gpu)


def pci_class(digit):
    return lambda gpu: str(int(gpu.get("sysfs.class")[0][2 + 2 * digit : 4 + 2 * digit], 16))


def event_reason(bit):
    return lambda gpu: "Active" if number("CurrentClocksEventReasons")(gpu) & bit else "Not Active"


def cluster(gpu):
    digits = "".join("%02x" % int(word) for word in gpu.get("nvmlDeviceGetGpuFabricInfo")[:16])
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def sram_counters(path, fields):
    """Rows of ecc_errors: an index each into nvmlDeviceGetSramEccErrorStatus."""
    return [(path + name, word("SramEccErrorStatus", index)) for name, index in fields]


def constant(text):
    return lambda gpu: text


#: The report on a GPU: path of the element, and its words. A path with ? is left out where the card has no such datum.
FIELDS = [
    ("product_name", word("Name")),
    ("product_brand", named(BRANDS, number("Brand"))),
    ("product_architecture", named(ARCHITECTURES, number("Architecture"))),
    ("display_mode", constant("Requested functionality has been deprecated")),
    ("display_attached", yes("DisplayMode")),
    ("display_active", on("DisplayActive")),
    ("persistence_mode", on("PersistenceMode")),
    ("addressing_mode", named(("None", "HMM", "ATS"), number("AddressingMode"))),
    ("mig_mode/current_mig", on("MigMode", 0)),
    ("mig_mode/pending_mig", on("MigMode", 1)),
    ("mig_devices", None),
    ("accounting_mode", on("AccountingMode")),
    ("accounting_mode_buffer_size", word("AccountingBufferSize")),
    ("driver_model/current_dm", None),
    ("driver_model/pending_dm", None),
    ("serial", word("Serial")),
    ("uuid", word("UUID")),
    ("pdi", lambda gpu: "0x%x" % number("Pdi")(gpu)),
    ("minor_number", word("MinorNumber")),
    ("vbios_version", word("VbiosVersion")),
    ("multigpu_board", yes("MultiGpuBoard")),
    ("board_id", lambda gpu: "0x%x" % number("BoardId")(gpu)),
    ("board_part_number", word("BoardPartNumber")),
    ("gpu_part_number", None),
    ("gpu_fru_part_number", None),
    ("platformInfo/chassis_serial_number", None),
    ("platformInfo/slot_number", None),
    ("platformInfo/tray_index", None),
    ("platformInfo/host_id", None),
    ("platformInfo/peer_type", None),
    ("platformInfo/module_id", word("ModuleId")),
    ("platformInfo/gpu_fabric_guid", None),
    ("inforom_version/img_version", word("InforomImageVersion")),
    ("inforom_version/oem_object", word("InforomVersion[0]")),
    ("inforom_version/ecc_object", word("InforomVersion[1]")),
    ("inforom_version/pwr_object", word("InforomVersion[2]")),
    ("inforom_bbx_flush/latest_timestamp", word("LastBBXFlushTime", 0)),
    ("inforom_bbx_flush/latest_duration", word("LastBBXFlushTime", 1)),
    ("gpu_operation_mode/current_gom", None),
    ("gpu_operation_mode/pending_gom", None),
    ("c2c_mode", on("C2cModeInfoV")),
    ("gpu_virtualization_mode/virtualization_mode", named(VIRTUALIZATION, number("VirtualizationMode"))),
    ("gpu_virtualization_mode/host_vgpu_mode", None),
    ("gpu_virtualization_mode/vgpu_heterogeneous_mode", None),
    ("gpu_recovery_action", named(RECOVERY, number("FieldValues[230]", 1))),
    ("gsp_firmware_version", word("GspFirmwareVersion")),
    ("ibmnpu/relaxed_ordering_mode", None),
    ("pci/pci_bus", pci(2, "%02X")),
    ("pci/pci_device", pci(3, "%02X")),
    ("pci/pci_domain", pci(1, "%04X")),
    ("pci/pci_base_class", pci_class(0)),
    ("pci/pci_sub_class", pci_class(1)),
    ("pci/pci_device_id", pci(4, "%08X")),
    ("pci/pci_bus_id", word("PciInfo_v3", 6)),
    ("pci/pci_sub_system_id", pci(5, "%08X")),
    ("pci/pci_gpu_link_info/pcie_gen/max_link_gen", word("MaxPcieLinkGeneration")),
    ("pci/pci_gpu_link_info/pcie_gen/current_link_gen", word("CurrPcieLinkGeneration")),
    ("pci/pci_gpu_link_info/pcie_gen/device_current_link_gen", word("CurrPcieLinkGeneration")),
    ("pci/pci_gpu_link_info/pcie_gen/max_device_link_gen", word("GpuMaxPcieLinkGeneration")),
    ("pci/pci_gpu_link_info/pcie_gen/max_host_link_gen", None),
    ("pci/pci_gpu_link_info/link_widths/max_link_width", word("MaxPcieLinkWidth", form="%sx")),
    ("pci/pci_gpu_link_info/link_widths/current_link_width", word("CurrPcieLinkWidth", form="%sx")),
    ("pci/pci_bridge_chip/bridge_chip_type", None),
    ("pci/pci_bridge_chip/bridge_chip_fw", None),
    ("pci/replay_counter", word("PcieReplayCounter")),
    ("pci/replay_rollover_counter", None),
    ("pci/tx_util", word("PcieThroughput[0]", form="%s KB/s")),
    ("pci/rx_util", word("PcieThroughput[1]", form="%s KB/s")),
    ("pci/atomic_caps_outbound", None),
    ("pci/atomic_caps_inbound", None),
    ("fan_speed", word("FanSpeed", form="%s %%")),
    ("performance_state", word("PerformanceState", form="P%s")),
    *(("clocks_event_reasons/clocks_event_reason_" + name, event_reason(bit)) for name, bit in EVENT_REASONS.items()),
    *(
        ("clocks_event_reasons_counters/clocks_event_reasons_counters_" + name, None)
        for name in ("sw_power_cap", "sync_boost", "sw_therm_slowdown", "hw_therm_slowdown", "hw_power_brake")
    ),
    ("sparse_operation_mode", None),
    ("fb_memory_usage/total", framebuffer("total")),
    ("fb_memory_usage/reserved", framebuffer("reserved")),
    ("fb_memory_usage/used", framebuffer("used")),
    ("fb_memory_usage/free", framebuffer("free")),
    ("bar1_memory_usage/total", mib("BAR1MemoryInfo", 0)),
    ("bar1_memory_usage/used", mib("BAR1MemoryInfo", 2, math.floor)),
    ("bar1_memory_usage/free", mib("BAR1MemoryInfo", 1)),
    ("cc_protected_memory_usage/total", mib("ConfComputeProtectedMemoryUsage", 0)),
    ("cc_protected_memory_usage/used", mib("ConfComputeProtectedMemoryUsage", 2)),
    ("cc_protected_memory_usage/free", mib("ConfComputeProtectedMemoryUsage", 1)),
    ("compute_mode", named(COMPUTE_MODES, number("ComputeMode"))),
    ("utilization/gpu_util", word("UtilizationRates", 0, "%s %%")),
    ("utilization/memory_util", word("UtilizationRates", 1, "%s %%")),
    ("utilization/encoder_util", word("EncoderUtilization", 0, "%s %%")),
    ("utilization/decoder_util", word("DecoderUtilization", 0, "%s %%")),
    ("utilization/jpeg_util", word("JpgUtilization", 0, "%s %%")),
    ("utilization/ofa_util", word("OfaUtilization", 0, "%s %%")),
    ("encoder_stats/session_count", word("EncoderStats", 0)),
    ("encoder_stats/average_fps", word("EncoderStats", 1)),
    ("encoder_stats/average_latency", word("EncoderStats", 2)),
    ("fbc_stats/session_count", word("FBCStats", 0)),
    ("fbc_stats/average_fps", word("FBCStats", 1)),
    ("fbc_stats/average_latency", word("FBCStats", 2)),
    ("dram_encryption_mode/current_dram_encryption", None),
    ("dram_encryption_mode/pending_dram_encryption", None),
    ("ecc_mode/current_ecc", on("EccMode", 0)),
    ("ecc_mode/pending_ecc", on("EccMode", 1)),
    *sram_counters(
        "ecc_errors/volatile/sram_", (("correctable", 5), ("uncorrectable_parity", 3), ("uncorrectable_secded", 4))
    ),
    ("ecc_errors/volatile/dram_correctable", word("MemoryErrorCounter[0,0,2]")),
    ("ecc_errors/volatile/dram_uncorrectable", word("MemoryErrorCounter[1,0,2]")),
    *sram_counters(
        "ecc_errors/aggregate/sram_", (("correctable", 2), ("uncorrectable_parity", 0), ("uncorrectable_secded", 1))
    ),
    ("ecc_errors/aggregate/dram_correctable", word("MemoryErrorCounter[0,1,2]")),
    ("ecc_errors/aggregate/dram_uncorrectable", word("MemoryErrorCounter[1,1,2]")),
    ("ecc_errors/aggregate/sram_threshold_exceeded", yes("SramEccErrorStatus", 11)),
    *sram_counters(
        "ecc_errors/aggregate_uncorrectable_sram_sources/sram_",
        (("l2", 6), ("sm", 7), ("microcontroller", 9), ("pcie", 8), ("other", 10)),
    ),
    ("ecc_errors/channel_repair_pending", yes("RepairStatus", 0)),
    ("ecc_errors/tpc_repair_pending", yes("RepairStatus", 1)),
    ("ecc_errors/unrepairable_memory", yes("UnrepairableMemoryFlag_v1")),
    ("retired_pages/multiple_single_bit_retirement/retired_count", None),
    ("retired_pages/multiple_single_bit_retirement/retired_pagelist", None),
    ("retired_pages/double_bit_retirement/retired_count", None),
    ("retired_pages/double_bit_retirement/retired_pagelist", None),
    ("retired_pages/pending_blacklist", None),
    ("retired_pages/pending_retirement", None),
    ("remapped_rows/remapped_row_corr", word("RemappedRows", 0)),
    ("remapped_rows/remapped_row_corr_inactive", None),
    ("remapped_rows/remapped_row_unc", word("RemappedRows", 1)),
    ("remapped_rows/remapped_row_unc_inactive", None),
    ("remapped_rows/remapped_row_pending", yes("RemappedRows", 2)),
    ("remapped_rows/remapped_row_failure", yes("RemappedRows", 3)),
    *(
        (
            "remapped_rows/row_remapper_histogram/row_remapper_histogram_" + name,
            word("RowRemapperHistogram", index, "%s bank(s)"),
        )
        for index, name in enumerate(("max", "high", "partial", "low", "none"))
    ),
    ("temperature/gpu_temp", word("Temperature[0]", form="%s C")),
    ("temperature/gpu_temp_tlimit", word("MarginTemperature", form="%s C")),
    ("?temperature/gpu_temp_max_threshold", threshold(0)),
    ("?temperature/gpu_temp_slow_threshold", threshold(1)),
    ("?temperature/gpu_temp_max_gpu_threshold", threshold(3)),
    ("?temperature/gpu_temp_max_tlimit_threshold", field(193, "%s C")),
    ("?temperature/gpu_temp_slow_tlimit_threshold", field(194, "%s C")),
    ("?temperature/gpu_temp_max_gpu_tlimit_threshold", field(196, "%s C")),
    ("temperature/gpu_target_temperature", word("TemperatureThreshold[5]", form="%s C")),
    ("temperature/memory_temp", field(82, "%s C")),
    ("?temperature/gpu_temp_max_mem_threshold", threshold(2)),
    ("?temperature/gpu_temp_max_mem_tlimit_threshold", field(195, "%s C")),
    ("supported_gpu_target_temp/gpu_target_temp_min", word("TemperatureThreshold[4]", form="%s C")),
    ("supported_gpu_target_temp/gpu_target_temp_max", word("TemperatureThreshold[6]", form="%s C")),
    ("gpu_power_readings/power_state", word("PowerState", form="P%s")),
    ("gpu_power_readings/average_power_draw", lambda gpu: "%.2f W" % (int(field(185)(gpu)) / 1000)),
    ("gpu_power_readings/instant_power_draw", lambda gpu: "%.2f W" % (int(field(186)(gpu)) / 1000)),
    ("gpu_power_readings/current_power_limit", watts("EnforcedPowerLimit")),
    ("gpu_power_readings/requested_power_limit", watts("PowerManagementLimit")),
    ("gpu_power_readings/default_power_limit", watts("PowerManagementDefaultLimit")),
    ("gpu_power_readings/min_power_limit", watts("PowerManagementLimitConstraints", 0)),
    ("gpu_power_readings/max_power_limit", watts("PowerManagementLimitConstraints", 1)),
    ("gpu_memory_power_readings/average_power_draw", None),
    ("gpu_memory_power_readings/instant_power_draw", None),
    ("module_power_readings/power_state", word("PowerState", form="P%s")),
    *(
        ("module_power_readings/" + name, None)
        for name in (
            "average_power_draw",
            "instant_power_draw",
            "current_power_limit",
            "requested_power_limit",
            "default_power_limit",
            "min_power_limit",
            "max_power_limit",
        )
    ),
    ("power_smoothing", None),
    ("power_profiles/power_profile_requested_profiles", None),
    ("power_profiles/power_profile_enforced_profiles", None),
    *(
        ("%s/%s_clock" % (group, name), word("%s[%d]" % (function, clock), form="%s MHz"))
        for group, function, clocks in (
            ("clocks", "ClockInfo", (0, 1, 2, 3)),
            ("applications_clocks", "ApplicationsClock", (0, 2)),
            ("default_applications_clocks", "DefaultApplicationsClock", (0, 2)),
            ("deferred_clocks", "", (2,)),
            ("max_clocks", "MaxClockInfo", (0, 1, 2, 3)),
            ("max_customer_boost_clocks", "MaxCustomerBoostClock", (0,)),
        )
        for clock in clocks
        for name in [("graphics", "sm", "mem", "video")[clock]]
    ),
    ("clock_policy/auto_boost", None),
    ("clock_policy/auto_boost_default", None),
    ("fabric/state", named(FABRIC_STATES, number("GpuFabricInfo", 18))),
    ("fabric/status", lambda gpu: "Success" if number("GpuFabricInfo", 16)(gpu) == 0 else "Failure"),
    ("fabric/cliqueId", word("GpuFabricInfo", 17)),
    ("fabric/clusterUuid", cluster),
    *(
        ("fabric/health/" + name, None)
        for name in (
            "summary",
            "bandwidth",
            "route_recovery_in_progress",
            "route_unhealthy",
            "access_timeout_recovery",
            "incorrect_configuration",
            "partition_assigned",
        )
    ),
    ("supported_clocks", None),
    ("processes", None),
    ("accounted_processes", None),
    ("capabilities/egm", None),
]
#: Elements of the report that are lists: their words are made by the functions of BLOCKS.
LISTS = ("mig_devices", "supported_clocks", "processes", "accounted_processes")


def read(gpu, path, source):
    """The words of one datum: N/A where the GPU has none, NVML's own where it failed."""
    try:
        return (source or recorded(path))(gpu)
    except (NvmlError, KeyError, IndexError) as error:
        code = getattr(error, "code", 3)
        return "N/A" if code in (2, 3, 6, 13, 27) else str(error)


# -- -q -x -------------------------------------------------------------------------------------------------------


def process_blocks(nvml, gpu):
    for pid, size, kind in gpu.processes:
        yield (
            "process_info",
            [
                ("gpu_instance_id", "N/A"),
                ("compute_instance_id", "N/A"),
                ("pid", str(pid)),
                ("type", kind),
                ("process_name", process_name(nvml, pid)),
                ("used_memory", "%d MiB" % (size // MIB)),
            ],
        )


def process_name(nvml, pid):
    name = create_string_buffer(1024)
    try:
        nvml.call("nvmlSystemGetProcessName", pid, name, len(name))
    except NvmlError:
        return "[Not Found]"
    return name.value.decode(errors="replace")


def clock_blocks(nvml, gpu):
    try:
        for memory in gpu.get("nvmlDeviceGetSupportedMemoryClocks"):
            clocks = gpu.get("nvmlDeviceGetSupportedGraphicsClocks[%s]" % memory)
            yield (
                "supported_mem_clock",
                [("value", memory + " MHz")] + [("supported_graphics_clock", clock + " MHz") for clock in clocks],
            )
    except NvmlError:
        return


def mig_blocks(nvml, gpu):
    for index, mig in enumerate(gpu.mig_devices):
        attributes = mig.get("nvmlDeviceGetAttributes_v2")
        shared = (
            "multiprocessor_count",
            "copy_engine_count",
            "decoder_count",
            "encoder_count",
            "jpg_count",
            "ofa_count",
        )
        yield (
            "mig_device",
            [
                ("index", str(index)),
                ("gpu_instance_id", mig.get("nvmlDeviceGetGpuInstanceId")[0]),
                ("compute_instance_id", mig.get("nvmlDeviceGetComputeInstanceId")[0]),
                ("device_attributes", [("shared", list(zip(shared, attributes, strict=False)))]),
                ("ecc_error_count", [("volatile_count", [("sram_uncorrectable", "0")])]),
                ("fb_memory_usage", [(part, framebuffer(part)(mig)) for part in ("total", "reserved", "used", "free")]),
            ],
        )


BLOCKS = {"processes": process_blocks, "supported_clocks": clock_blocks, "mig_devices": mig_blocks}


def tree(nvml, gpu):
    """The report on a GPU as nested [(tag, words or list)]."""
    top = []
    for path, source in FIELDS:
        place, _, tag = path.lstrip("?").rpartition("/")
        if tag in LISTS:
            text = list(BLOCKS[tag](nvml, gpu)) if tag in BLOCKS else []
            text = "\n\t\t\tNone\n\t\t" if tag == "mig_devices" and not text else text
        else:
            text = read(gpu, path, source)
            if path[0] == "?" and text == "N/A":
                continue
        branch = top
        for name in filter(None, place.split("/")):
            if not branch or branch[-1][0] != name:
                branch.append((name, []))
            branch = branch[-1][1]
        branch.append((tag, text))
    return top


def xml(nodes, indent):
    for tag, content in nodes:
        if isinstance(content, list):
            yield "%s<%s>" % (indent, tag)
            yield from xml(content, indent + "\t")
            yield "%s</%s>" % (indent, tag)
        else:
            yield "%s<%s>%s</%s>" % (indent, tag, escape(content), tag)


def cuda_version(nvml):
    version = int(nvml.get("nvmlSystemGetCudaDriverVersion_v2")[0])
    return "%d.%d" % (version // 1000, version % 1000 // 10)


def report(nvml, gpus):
    print('<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">\n<nvidia_smi_log>')
    for line in xml(
        [
            ("timestamp", time.strftime("%a %b %d %H:%M:%S %Y")),
            ("driver_version", nvml.get("nvmlSystemGetDriverVersion")[0]),
            ("cuda_version", cuda_version(nvml)),
            ("attached_gpus", str(nvml.count)),
        ],
        "\t",
    ):
        print(line)
    for gpu in gpus:
        print('\t<gpu id="%s">' % gpu.get("nvmlDeviceGetPciInfo_v3")[6])
        for line in xml(tree(nvml, gpu), "\t\t"):
            print(line)
        print("\t</gpu>\n")
    print("</nvidia_smi_log>")


# -- --query-gpu -------------------------------------------------------------------------------------------------

#: Name, unit of the column's head, and the datum: a path of the report, or a function of the device.
QUERIES = {
    "index": ("", lambda gpu: str(gpu.index)),
    "uuid": ("", "uuid"),
    "name": ("", "product_name"),
    "serial": ("", "serial"),
    "pci.bus_id": ("", "pci/pci_bus_id"),
    "minor": ("", "minor_number"),
    "vbios_version": ("", "vbios_version"),
    "compute_cap": ("", lambda gpu: ".".join(gpu.get("nvmlDeviceGetCudaComputeCapability"))),
    "memory.total": ("MiB", "fb_memory_usage/total"),
    "memory.used": ("MiB", "fb_memory_usage/used"),
    "memory.free": ("MiB", "fb_memory_usage/free"),
    "memory.reserved": ("MiB", "fb_memory_usage/reserved"),
    "temperature.gpu": ("", "temperature/gpu_temp"),
    "temperature.memory": ("", "temperature/memory_temp"),
    "power.draw": ("W", watts("PowerUsage")),
    "power.limit": ("W", "gpu_power_readings/requested_power_limit"),
    "enforced.power.limit": ("W", "gpu_power_readings/current_power_limit"),
    "power.default_limit": ("W", "gpu_power_readings/default_power_limit"),
    "power.min_limit": ("W", "gpu_power_readings/min_power_limit"),
    "power.max_limit": ("W", "gpu_power_readings/max_power_limit"),
    "fan.speed": ("%", "fan_speed"),
    "pstate": ("", "performance_state"),
    "compute_mode": ("", "compute_mode"),
    "utilization.gpu": ("%", "utilization/gpu_util"),
    "utilization.memory": ("%", "utilization/memory_util"),
    "persistence_mode": ("", "persistence_mode"),
    "display_active": ("", "display_active"),
    "ecc.mode.current": ("", "ecc_mode/current_ecc"),
    "ecc.mode.pending": ("", "ecc_mode/pending_ecc"),
    "ecc.errors.corrected.volatile.total": ("", word("TotalEccErrors[0,0]")),
    "ecc.errors.corrected.aggregate.total": ("", word("TotalEccErrors[0,1]")),
    "ecc.errors.uncorrected.volatile.total": ("", word("TotalEccErrors[1,0]")),
    "ecc.errors.uncorrected.aggregate.total": ("", word("TotalEccErrors[1,1]")),
    "mig.mode.current": ("", "mig_mode/current_mig"),
    "mig.mode.pending": ("", "mig_mode/pending_mig"),
    "pcie.link.gen.current": ("", "pci/pci_gpu_link_info/pcie_gen/current_link_gen"),
    "pcie.link.gen.max": ("", "pci/pci_gpu_link_info/pcie_gen/max_link_gen"),
    "pcie.link.width.current": ("", word("CurrPcieLinkWidth")),
    "pcie.link.width.max": ("", word("MaxPcieLinkWidth")),
    "clocks.current.graphics": ("MHz", "clocks/graphics_clock"),
    "clocks.current.sm": ("MHz", "clocks/sm_clock"),
    "clocks.current.memory": ("MHz", "clocks/mem_clock"),
    "clocks.max.graphics": ("MHz", "max_clocks/graphics_clock"),
    "clocks.max.sm": ("MHz", "max_clocks/sm_clock"),
    "clocks.max.memory": ("MHz", "max_clocks/mem_clock"),
}
ALIASES = {
    "gpu_uuid": "uuid",
    "gpu_name": "name",
    "gpu_bus_id": "pci.bus_id",
    "gpu_serial": "serial",
    "clocks.gr": "clocks.current.graphics",
    "clocks.sm": "clocks.current.sm",
    "clocks.mem": "clocks.current.memory",
}


def cell(nvml, gpu, name):
    if name == "driver_version":
        return nvml.get("nvmlSystemGetDriverVersion")[0]
    if name == "count":
        return str(nvml.count)
    source = QUERIES[ALIASES.get(name, name)][1]
    text = read(gpu, source, dict(FIELDS)[source]) if isinstance(source, str) else read(gpu, name, source)
    return text[:-2] if name.startswith("temperature.") and text != "N/A" else "[N/A]" if text == "N/A" else text


def table(rows, heads, options):
    """Rows of cells as nvidia-smi's CSV."""
    if "noheader" not in options:
        print(", ".join(heads))
    for row in rows:
        print(
            ", ".join(
                text.split(" ")[0] if "nounits" in options and text.split(" ")[-1] in ("MiB", "W", "%", "MHz") else text
                for text in row
            )
        )


def query(nvml, gpus, names, options):
    for name in names:
        if ALIASES.get(name, name) not in (*QUERIES, "driver_version", "count"):
            print('Field "%s" is not a valid field to query.\n' % name)
            return 2
    units = [QUERIES.get(ALIASES.get(name, name), ("",))[0] for name in names]
    heads = [name + (" [%s]" % unit if unit else "") for name, unit in zip(names, units, strict=True)]
    table([[cell(nvml, gpu, name) for name in names] for gpu in gpus], heads, options)
    return 0


def query_processes(nvml, gpus, names, options):
    heads = [name + (" [MiB]" if name in ("used_memory", "used_gpu_memory") else "") for name in names]
    rows = []
    for gpu in gpus:
        for pid, size, kind in gpu.processes:
            row = {
                "pid": str(pid),
                "process_name": process_name(nvml, pid),
                "name": process_name(nvml, pid),
                "gpu_uuid": gpu.uuid,
                "gpu_name": gpu.name,
                "gpu_bus_id": gpu.get("nvmlDeviceGetPciInfo_v3")[6],
            }
            row["used_memory"] = row["used_gpu_memory"] = "%d MiB" % (size // MIB)
            if kind == "C":
                rows.append([row[name] for name in names])
    table(rows, heads, options)
    return 0


# -- the other commands ------------------------------------------------------------------------------------------


def list_gpus(gpus):
    for gpu in gpus:
        print("GPU %d: %s (UUID: %s)" % (gpu.index, gpu.name, gpu.uuid))
        for index, mig in enumerate(gpu.mig_devices):
            print("  MIG %-14s Device %2d: (UUID: %s)" % (mig.name.partition("MIG ")[2], index, mig.uuid))


def set_persistence(gpus, mode):
    words = ("Disabled", "Enabled")
    for gpu in gpus:
        bus_id = gpu.get("nvmlDeviceGetPciInfo_v3")[6]
        if number("PersistenceMode")(gpu) == mode:
            print("Persistence mode is already %s for GPU %s." % (words[mode], bus_id))
            continue
        try:
            gpu.call("nvmlDeviceSetPersistenceMode", mode)
        except NvmlError as error:
            print(
                "Unable to set persistence mode for GPU %s: %s\nTerminating early due to previous error."
                % (bus_id, error)
            )
            return error.code
        print("%s persistence mode for GPU %s." % (words[mode], bus_id))
    print("All done.")
    return 0


def topology(nvml, gpus):
    """The table of ``topo -m``: NV# where the GPUs are joined by NVLinks, else how far apart they sit on PCI."""
    print("\t" + "\t".join("GPU%d" % gpu.index for gpu in gpus) + "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID")
    for gpu in gpus:
        row = ["GPU%d" % gpu.index]
        links = 0
        while True:
            try:
                links += number("NvLinkState[%d]" % links)(gpu)
            except NvmlError:
                break
        for peer in gpus:
            status, level = c_uint(), c_uint()
            if peer.index == gpu.index:
                row.append(" X ")
                continue
            gpu.call("nvmlDeviceGetTopologyCommonAncestor", peer.handle, byref(level))
            gpu.call("nvmlDeviceGetP2PStatus", peer.handle, 2, byref(status))
            row.append("NV%d" % links if links and status.value == 0 else TOPOLOGY[level.value])
        masks = [int(mask) for mask in gpu.get("nvmlDeviceGetCpuAffinity")]
        nodes = int(gpu.get("nvmlDeviceGetMemoryAffinity[0]")[0])
        row += [nvml_sim.cpulist(masks), nvml_sim.cpulist([nodes]) + "\t", "N/A"]
        print("\t".join(row))
    print("""
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks""")


def summary(nvml, gpus):
    version = nvml.get("nvmlSystemGetDriverVersion")[0]
    print("NVIDIA-SMI %s    Driver Version: %s    CUDA Version: %s" % (version, version, cuda_version(nvml)))
    for gpu in gpus:
        print(
            "| %3d  %-28s %-4s | %s %s / %s | %s / %s |"
            % (
                gpu.index,
                gpu.name,
                cell(nvml, gpu, "pstate"),
                gpu.get("nvmlDeviceGetPciInfo_v3")[6],
                cell(nvml, gpu, "power.draw"),
                cell(nvml, gpu, "power.limit"),
                cell(nvml, gpu, "memory.used"),
                cell(nvml, gpu, "memory.total"),
            )
        )


def chosen(nvml, wanted):
    """The GPUs of -i: by index, UUID or PCI bus id; all of them without."""
    gpus = []
    for index in range(nvml.count):
        try:
            gpus.append(nvml.device(index))
        except NvmlError as error:
            text = "Unable to determine the device handle for GPU%d: %s" % (index, error)
            raise NvmlError(error.code, text) from None
    if wanted is None:
        return gpus
    found = [
        gpu
        for name in wanted.split(",")
        for gpu in gpus
        if name in (str(gpu.index), gpu.uuid, gpu.pci_bus_id, gpu.get("nvmlDeviceGetPciInfo_v3")[6])
    ]
    if len(found) != len(wanted.split(",")):
        raise NvmlError(6, "No devices were found")
    return found


def failure(error):
    """What nvidia-smi says when it cannot begin."""
    if error.code == 12:
        return 12, (
            "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA "
            "Display Driver is properly installed and present in your system.\nPlease also try adding "
            "directory that contains libnvidia-ml.so to your system PATH."
        )
    if error.code == 9:
        return 9, (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the "
            "latest NVIDIA driver is installed and running.\n"
        )
    if error.code == 18:
        system = nvml_sim.parse(nvml_sim.state_file().read_text())["system"]
        version = nvml_sim.words(system["nvmlSystemGetNVMLVersion"])[0].split(".")
        return 18, "Failed to initialize NVML: %s\nNVML library version: %s" % (error, ".".join(version[1:3]))
    if error.code == 15:
        return 15, "%s.  Reboot the system to recover this GPU" % error
    return error.code, str(error) if error.code == 6 else "Failed to initialize NVML: %s" % error


def main():
    parser = argparse.ArgumentParser(prog="nvidia-smi", description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["topo"])
    parser.add_argument("-m", "--matrix", action="store_true")
    parser.add_argument("-L", "--list-gpus", action="store_true")
    parser.add_argument("-q", "--query", action="store_true")
    parser.add_argument("-x", "--xml-format", action="store_true")
    parser.add_argument("-i", "--id")
    parser.add_argument("-pm", "--persistence-mode", choices=["0", "1"])
    parser.add_argument("--query-gpu")
    parser.add_argument("--query-compute-apps")
    parser.add_argument("--format", default="csv")
    options = parser.parse_args()
    if options.query and not options.xml_format:
        parser.error("this stand-in knows -q with -x only")
    formats = options.format.split(",")

    def names(text):
        return [name.strip() for name in text.split(",")]

    try:
        nvml = nvml_sim.Nvml()
        gpus = chosen(nvml, options.id)
        if not gpus:
            raise NvmlError(6, "No devices were found")
        if options.command == "topo":
            topology(nvml, gpus)
        elif options.list_gpus:
            list_gpus(gpus)
        elif options.query:
            report(nvml, gpus)
        elif options.persistence_mode:
            return set_persistence(gpus, int(options.persistence_mode))
        elif options.query_gpu:
            return query(nvml, gpus, names(options.query_gpu), formats)
        elif options.query_compute_apps:
            return query_processes(nvml, gpus, names(options.query_compute_apps), formats)
        else:
            summary(nvml, gpus)
    except NvmlError as error:
        code, text = failure(error)
        print(text)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
