# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `nvidia-smi -q -x` prints, in the shape that NVML's reader gives. Pure; for hosts without pynvml.

nvidia-smi prints whole MiB and centiwatts, and leaves out the compute capability, the NUMA node and the CPU affinity.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Tuple
from xml.etree import ElementTree

from . import faults, model, processes
from .select import pci_bus_id

_ABSENT = ("n/a", "[n/a]", "not supported", "[not supported]", "requested functionality has been deprecated", "")
_LOST = "gpu is lost"
_NOT_PRINTED = "not printed by nvidia-smi -q"


def _number(text: str) -> int:
    """143771 out of `143771 MiB`, 16 out of `16x`, 3072 out of `3072 bank(s)`."""
    return int(text.split()[0].rstrip("x"))


def _bytes(text: str) -> int:
    return _number(text) * model.MIB


def _watts(text: str) -> float:
    return float(text.split()[0])


def _yes(text: str) -> bool:
    words = {"yes": True, "enabled": True, "no": False, "disabled": False}
    return words[text.lower()]


def _word(text: str) -> str:
    """`exclusive_process` out of `Exclusive_Process`, `drain_and_reset` out of `Drain and Reset`."""
    return "_".join(text.lower().split())


def _problems(text: str) -> List[str]:
    """The summary of the fabric's health alone: it has no words of NVML's for the rest."""
    return [] if _word(text) == "healthy" else [_word(text)]


def _virtualization(text: str) -> str:
    return {"pass-through": "pass-through", "none": "none", "vgpu": "vgpu"}.get(text.lower(), _word(text))


def _device_id(text: str) -> str:
    return "%s:%s" % (text[-4:].lower(), text[-8:-4].lower())


_HISTOGRAM = "remapped_rows/row_remapper_histogram/row_remapper_histogram_"

# Leaf, the element's path, converter. A later row for a leaf that is already known is an older nvidia-smi's way.
DATA = (
    ("uuid", "uuid", str),
    ("name", "product_name", str),
    ("pci_bus_id", "pci/pci_bus_id", pci_bus_id),
    ("pci_device_id", "pci/pci_device_id", _device_id),
    ("minor", "minor_number", int),
    ("serial", "serial", str),
    ("board_part_number", "board_part_number", str),
    ("vbios_version", "vbios_version", str),
    ("gsp_firmware_version", "gsp_firmware_version", str),
    ("brand", "product_brand", str),
    ("architecture", "product_architecture", str),
    ("module_id", "platformInfo/module_id", int),
    ("virtualization_mode", "gpu_virtualization_mode/virtualization_mode", _virtualization),
    ("memory.total_bytes", "fb_memory_usage/total", _bytes),
    ("memory.used_bytes", "fb_memory_usage/used", _bytes),
    ("memory.free_bytes", "fb_memory_usage/free", _bytes),
    ("memory.reserved_bytes", "fb_memory_usage/reserved", _bytes),
    ("bar1.total_bytes", "bar1_memory_usage/total", _bytes),
    ("bar1.used_bytes", "bar1_memory_usage/used", _bytes),
    ("bar1.free_bytes", "bar1_memory_usage/free", _bytes),
    ("ecc.enabled", "ecc_mode/current_ecc", _yes),
    ("ecc.pending", "ecc_mode/pending_ecc", _yes),
    ("ecc.sram_threshold_exceeded", "ecc_errors/aggregate/sram_threshold_exceeded", _yes),
    ("remapped_rows.corrected", "remapped_rows/remapped_row_corr", int),
    ("remapped_rows.uncorrected", "remapped_rows/remapped_row_unc", int),
    ("remapped_rows.pending", "remapped_rows/remapped_row_pending", _yes),
    ("remapped_rows.failure", "remapped_rows/remapped_row_failure", _yes),
    ("remapped_rows.spare_banks.full", _HISTOGRAM + "max", _number),
    ("remapped_rows.spare_banks.high", _HISTOGRAM + "high", _number),
    ("remapped_rows.spare_banks.partial", _HISTOGRAM + "partial", _number),
    ("remapped_rows.spare_banks.low", _HISTOGRAM + "low", _number),
    ("remapped_rows.spare_banks.none", _HISTOGRAM + "none", _number),
    ("retired_pages.single_bit", "retired_pages/multiple_single_bit_retirement/retired_count", int),
    ("retired_pages.double_bit", "retired_pages/double_bit_retirement/retired_count", int),
    ("retired_pages.pending", "retired_pages/pending_retirement", _yes),
    ("repair.channel_pending", "ecc_errors/channel_repair_pending", _yes),
    ("repair.tpc_pending", "ecc_errors/tpc_repair_pending", _yes),
    ("recovery_action", "gpu_recovery_action", _word),
    ("unrepairable_memory", "ecc_errors/unrepairable_memory", _yes),
    ("mig.enabled", "mig_mode/current_mig", _yes),
    ("mig.pending", "mig_mode/pending_mig", _yes),
    ("power.usage_watts", "gpu_power_readings/average_power_draw", _watts),
    ("power.usage_watts", "gpu_power_readings/power_draw", _watts),
    ("power.usage_watts", "power_readings/power_draw", _watts),
    ("power.limit_watts", "gpu_power_readings/requested_power_limit", _watts),
    ("power.limit_watts", "power_readings/power_limit", _watts),
    ("power.enforced_limit_watts", "gpu_power_readings/current_power_limit", _watts),
    ("power.enforced_limit_watts", "power_readings/enforced_power_limit", _watts),
    ("power.default_limit_watts", "gpu_power_readings/default_power_limit", _watts),
    ("power.default_limit_watts", "power_readings/default_power_limit", _watts),
    ("power.min_limit_watts", "gpu_power_readings/min_power_limit", _watts),
    ("power.min_limit_watts", "power_readings/min_power_limit", _watts),
    ("power.max_limit_watts", "gpu_power_readings/max_power_limit", _watts),
    ("power.max_limit_watts", "power_readings/max_power_limit", _watts),
    ("clocks.graphics_mhz", "clocks/graphics_clock", _number),
    ("clocks.sm_mhz", "clocks/sm_clock", _number),
    ("clocks.memory_mhz", "clocks/mem_clock", _number),
    ("clocks.video_mhz", "clocks/video_clock", _number),
    ("clocks.max_graphics_mhz", "max_clocks/graphics_clock", _number),
    ("clocks.max_sm_mhz", "max_clocks/sm_clock", _number),
    ("clocks.max_memory_mhz", "max_clocks/mem_clock", _number),
    ("clocks.max_video_mhz", "max_clocks/video_clock", _number),
    ("utilization.gpu_percent", "utilization/gpu_util", _number),
    ("utilization.memory_percent", "utilization/memory_util", _number),
    ("temperature.gpu_celsius", "temperature/gpu_temp", _number),
    ("temperature.memory_celsius", "temperature/memory_temp", _number),
    ("temperature.shutdown_celsius", "temperature/gpu_temp_max_threshold", _number),
    ("temperature.slowdown_celsius", "temperature/gpu_temp_slow_threshold", _number),
    ("temperature.memory_max_celsius", "temperature/gpu_temp_max_mem_threshold", _number),
    ("temperature.gpu_max_celsius", "temperature/gpu_temp_max_gpu_threshold", _number),
    ("temperature.margin_celsius", "temperature/gpu_temp_tlimit", _number),
    ("fan_speed_percent", "fan_speed", _number),
    ("persistence_mode", "persistence_mode", _yes),
    ("compute_mode", "compute_mode", _word),
    ("performance_state", "performance_state", str),
    ("display_active", "display_active", _yes),
    ("pcie.generation", "pci/pci_gpu_link_info/pcie_gen/current_link_gen", int),
    ("pcie.width", "pci/pci_gpu_link_info/link_widths/current_link_width", _number),
    ("pcie.max_generation", "pci/pci_gpu_link_info/pcie_gen/max_link_gen", int),
    ("pcie.max_width", "pci/pci_gpu_link_info/link_widths/max_link_width", _number),
    ("pcie.replay_count", "pci/replay_counter", int),
    ("fabric.state", "fabric/state", _word),
    ("fabric.status", "fabric/status", _word),
    ("fabric.clique_id", "fabric/cliqueId", int),
    ("fabric.cluster_uuid", "fabric/clusterUuid", str),
    ("fabric.problems", "fabric/health/summary", _problems),
)

# Sums of the counters that nvidia-smi distinguishes; before Ampere it printed a total itself.
_ECC = {
    "corrected": (("sram_correctable", "dram_correctable"), ("single_bit/total",)),
    "uncorrected": (
        ("sram_uncorrectable_parity", "sram_uncorrectable_secded", "dram_uncorrectable"),
        ("sram_uncorrectable", "dram_uncorrectable"),
        ("double_bit/total",),
    ),
}


def parse(text: str, root: str = "/") -> List[Tuple[str, Any]]:
    """The parts that nvml.read() emits, as far as nvidia-smi prints them.

    :param text: standard output of `nvidia-smi -q -x`.
    :param root: where `proc` is, for the units of processes.
    :raises ValueError: the text is not such XML.
    """
    try:
        log = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(
            "nvidia-smi -q -x printed something that is not XML (%s): %.200s" % (error, text.strip())
        ) from None
    driver = {"version": _known(log, "driver_version"), "cuda_version": _known(log, "cuda_version")}
    parts = [("driver", driver)]  # type: List[Tuple[str, Any]]
    for index, gpu in enumerate(log.findall("gpu")):
        device = model.blank(index, _NOT_PRINTED)
        lost = any((element.text or "").strip().lower().startswith(_LOST) for element in gpu.iter())
        for leaf, path, convert in DATA:
            if not model.known(device, leaf):
                _read_leaf(gpu, device, leaf, path, convert)
        for kind in ("volatile", "aggregate"):
            for count in ("corrected", "uncorrected"):
                _read_ecc(gpu, device, kind, count)
        _read_event_reasons(gpu, device)
        _read_processes(gpu, device, root)
        if model.known(device, "fabric.state") and device["fabric"]["state"] == "not_supported":
            for leaf in ("state", "status", "clique_id", "cluster_uuid"):
                device["fabric"][leaf] = None
                model.refuse(device, "fabric.%s" % leaf, model.UNSUPPORTED)
        parts.append(("device", [device, faults.fault(faults.GPU_LOST, "GPU is lost") if lost else None]))
        parts.extend(("mig_device", instance) for instance in _mig_devices(gpu, device))
    return parts


def fault_of_failure(status: int, output: str) -> Optional[Dict[str, str]]:
    """The fault that a failed nvidia-smi reports; None when it merely found no GPU.

    :param status: its exit status, which is NVML's code.
    :param output: what it printed.
    """
    if "no devices were found" in output.lower():
        return None
    code = faults.BY_NVML_CODE.get(status, faults.NVML_ERROR)
    return faults.fault(code, "nvidia-smi failed (exit status %d): %s" % (status, " ".join(output.split())[:300]))


def library_version(output: str) -> Optional[str]:
    """The version of NVML's library, which a failing nvidia-smi adds when it is not the kernel module's."""
    version = output.partition("NVML library version:")[2].split()
    return version[0] if version else None


def _known(element: ElementTree.Element, path: str) -> Optional[str]:
    text = (element.findtext(path) or "").strip()
    return None if text.lower() in _ABSENT else text


def _read_leaf(
    gpu: ElementTree.Element, device: Dict[str, Any], leaf: str, path: str, convert: Callable[[str], Any]
) -> None:
    text = gpu.findtext(path)
    if text is None:
        return
    text = text.strip()
    if text.lower() in _ABSENT:
        model.refuse(device, leaf, model.UNSUPPORTED)
        return
    try:
        model.put(device, leaf, convert(text))
    except (ValueError, KeyError, IndexError):  # such as "Unknown Error", "[GPU requires reset]"
        model.refuse(device, leaf, text)


def _read_ecc(gpu: ElementTree.Element, device: Dict[str, Any], kind: str, count: str) -> None:
    for names in _ECC[count]:
        texts = [gpu.findtext("ecc_errors/%s/%s" % (kind, name), "") for name in names]
        if "" in texts:
            continue
        leaf = "ecc.%s.%s" % (kind, count)
        try:
            model.put(device, leaf, sum(int(text) for text in texts))
        except ValueError:
            model.refuse(device, leaf, model.UNSUPPORTED)
        return


def _read_event_reasons(gpu: ElementTree.Element, device: Dict[str, Any]) -> None:
    for name in ("clocks_event_reasons", "clocks_throttle_reasons"):
        reasons = gpu.find(name)
        if reasons is not None:
            active = {
                element.tag.partition("_reason_")[2] for element in reasons if (element.text or "").strip() == "Active"
            }
            model.put(device, "clocks_event_reasons", [name for bit, name in model.EVENT_REASONS if name in active])


def _read_processes(gpu: ElementTree.Element, device: Dict[str, Any], root: str) -> None:
    table = gpu.find("processes")
    if table is None or (table.text or "").strip().lower() == "n/a":
        model.refuse(device, "processes", model.UNSUPPORTED)
        return
    found = {}
    for info in table.findall("process_info"):
        pid = int(info.findtext("pid", ""))
        name, used = _known(info, "process_name"), _known(info, "used_memory")
        kind = {"C": "compute", "G": "graphics"}.get(info.findtext("type", "").strip(), "compute+graphics")
        found[pid] = {
            "pid": pid,
            "name": None if name is None or name.startswith("[") else model.process_name(name),  # [Not Found]
            "type": kind,
            "used_bytes": _bytes(used) if used else None,
            "unit": processes.unit_of(pid, root),
        }
    model.put(device, "processes", [found[pid] for pid in sorted(found)])


def _mig_devices(gpu: ElementTree.Element, device: Dict[str, Any]) -> List[Dict[str, Any]]:
    found = []
    for instance in gpu.findall("mig_devices/mig_device"):
        sizes = [_known(instance, "fb_memory_usage/%s" % name) for name in ("total", "used", "free")]
        total, used, free = [_bytes(size) if size else None for size in sizes]
        numbers = [_known(instance, name) for name in ("gpu_instance_id", "compute_instance_id")]
        found.append(
            {
                "uuid": _known(instance, "uuid"),
                "name": None,
                "gpu_uuid": device["uuid"],
                "gpu_instance_id": int(numbers[0]) if numbers[0] else None,
                "compute_instance_id": int(numbers[1]) if numbers[1] else None,
                "memory": {"total_bytes": total, "used_bytes": used, "free_bytes": free},
            }
        )
    return found
