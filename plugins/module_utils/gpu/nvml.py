# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that is read through NVML, by way of NVIDIA's own binding (nvidia-ml-py, imported as pynvml).

The table DATA says which function answers for which leaves. A function that the card, the driver or the binding does
not have leaves its leaves at None with the reason; one that says that the GPU is gone ends the reading of that GPU.
"""

from __future__ import annotations

import ctypes
from typing import Any, Callable, Dict, List, Optional, Tuple

from . import faults, model, processes
from .select import pci_bus_id

#: Codes that mean "no such datum here": invalid argument, not supported, function not found, struct version unknown.
_UNSUPPORTED = (2, 3, 13, 25)
#: Codes that mean "no such GPU any more": driver not loaded, library not found, lost, reset required, operating
#: system, version mismatch.
_GONE = (9, 12, 15, 16, 17, 18)

#: The code for an infoROM that is corrupt.
_CORRUPT = 14

_MAX_NVLINKS = 18
_CPU_WORDS = 16

_BRANDS = {
    1: "Quadro",
    2: "Tesla",
    3: "NVS",
    4: "GRID",
    5: "GeForce",
    6: "Titan",
    7: "NVIDIA Virtual Applications",
    8: "NVIDIA Virtual PC",
    9: "NVIDIA Virtual Compute Server",
    10: "NVIDIA RTX Virtual Workstation",
    11: "NVIDIA Cloud Gaming",
    12: "Quadro RTX",
    13: "NVIDIA RTX",
    14: "NVIDIA",
    15: "GeForce RTX",
    16: "Titan RTX",
}
_ARCHITECTURES = {
    2: "Kepler",
    3: "Maxwell",
    4: "Pascal",
    5: "Volta",
    6: "Turing",
    7: "Ampere",
    8: "Ada Lovelace",
    9: "Hopper",
    10: "Blackwell",
    13: "Rubin",
}
_COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
_VIRTUALIZATION_MODES = {0: "none", 1: "pass-through", 2: "vgpu", 3: "host_vgpu", 4: "host_vsga"}
_RECOVERY_ACTIONS = {0: "none", 1: "reset", 2: "reboot", 3: "drain_p2p", 4: "drain_and_reset"}
_FABRIC_STATES = {0: "not_supported", 1: "not_started", 2: "in_progress", 3: "completed"}

_FABRIC_PROBLEMS = (
    (0, 0x3, {1: "degraded_bandwidth"}),
    (2, 0x3, {1: "route_recovery"}),
    (4, 0x3, {1: "route_unhealthy"}),
    (6, 0x3, {1: "access_timeout_recovery"}),
    (
        *(8, 0xF),
        {
            2: "wrong_system_guid",
            3: "wrong_chassis_serial",
            4: "no_partition",
            5: "too_few_nvlinks",
            6: "incompatible_firmware",
            7: "wrong_location",
            8: "wrong_gpu_state",
        },
    ),
    (14, 0x3, {2: "manager_disconnected"}),
)
"""Parts of the fabric's health mask: first bit, mask, and the values that are problems."""

_FIELD_MEMORY_TEMPERATURE = 82
_FIELD_NVLINK_COUNT = 91
_FIELD_NVLINK_RECOVERY = 162
_FIELD_NVLINK_RECOVERY_BEFORE_HOPPER = 59
_FIELD_THERMAL_SLOWDOWN = 270
_FIELD_POWER_BRAKE = 271
_FIELD_RECOVERY_ACTION = 230
_ALL_LINKS = 0xFFFFFFFF
_FIELD_VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


class NotRead(Exception):
    """NVML does not give a value; the text is the reason that the facts show.

    :param fault: the code of the fault where the GPU does not answer any more; None: only this value is missing.
    """

    def __init__(self, text: str, fault: Optional[str] = None) -> None:
        super().__init__(text)
        self.fault = fault


def _lost(nvml_code: Optional[int], text: str) -> NotRead:
    return NotRead(text, faults.BY_NVML_CODE.get(nvml_code or 0, faults.NVML_ERROR))


def _text(value: Any) -> str:
    # old bindings, and one function of the new ones, give bytes
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()


def _named(names: Dict[int, str]) -> Callable[[int], str]:
    return lambda number: names.get(number, "unknown (%s)" % number)


def _thousandth(value: int) -> float:
    return value / 1000.0


def _nanoseconds(value: int) -> float:
    return round(value / 1e9, 1)


def _each(convert: Callable[[Any], Any]) -> Callable[[Any], List[Any]]:
    return lambda values: [convert(value) for value in values]


def _members(*names: str) -> Callable[[Any], List[Any]]:
    return lambda struct: [getattr(struct, name) for name in names]


def _bus(info: Any) -> List[str]:
    device, vendor = info.pciDeviceId >> 16, info.pciDeviceId & 0xFFFF
    return [pci_bus_id(_text(info.busId)), "%04x:%04x" % (vendor, device)]


# The data of a device: leaves, function, arguments after the handle, converter. A function with several leaves converts
# to as many values. A later row for leaves that are already known is passed over: it is the older driver's way.
DATA = (
    ("uuid", "nvmlDeviceGetUUID", (), _text),
    ("name", "nvmlDeviceGetName", (), _text),
    ("pci_bus_id pci_device_id", "nvmlDeviceGetPciInfo", (), _bus),
    ("minor", "nvmlDeviceGetMinorNumber", (), int),
    ("serial", "nvmlDeviceGetSerial", (), _text),
    ("board_part_number", "nvmlDeviceGetBoardPartNumber", (), _text),
    ("vbios_version", "nvmlDeviceGetVbiosVersion", (), _text),
    ("gsp_firmware_version", "nvmlDeviceGetGspFirmwareVersion", (), _text),
    ("brand", "nvmlDeviceGetBrand", (), _named(_BRANDS)),
    ("architecture", "nvmlDeviceGetArchitecture", (), _named(_ARCHITECTURES)),
    ("compute_capability", "nvmlDeviceGetCudaComputeCapability", (), lambda pair: "%d.%d" % tuple(pair)),
    ("module_id", "nvmlDeviceGetModuleId", (), int),
    ("virtualization_mode", "nvmlDeviceGetVirtualizationMode", (), _named(_VIRTUALIZATION_MODES)),
    (
        "memory.total_bytes memory.used_bytes memory.free_bytes memory.reserved_bytes",
        "memory_info_v2",
        (),
        _members("total", "used", "free", "reserved"),
    ),
    (
        "memory.total_bytes memory.used_bytes memory.free_bytes",
        "nvmlDeviceGetMemoryInfo",
        (),
        _members("total", "used", "free"),
    ),
    (
        "bar1.total_bytes bar1.used_bytes bar1.free_bytes",
        "nvmlDeviceGetBAR1MemoryInfo",
        (),
        _members("bar1Total", "bar1Used", "bar1Free"),
    ),
    ("ecc.enabled ecc.pending", "nvmlDeviceGetEccMode", (), _each(bool)),
    ("ecc.sram_threshold_exceeded", "sram_threshold_exceeded", (), bool),
    ("ecc.volatile.corrected", "nvmlDeviceGetTotalEccErrors", (0, 0), int),
    ("ecc.volatile.uncorrected", "nvmlDeviceGetTotalEccErrors", (1, 0), int),
    ("ecc.aggregate.corrected", "nvmlDeviceGetTotalEccErrors", (0, 1), int),
    ("ecc.aggregate.uncorrected", "nvmlDeviceGetTotalEccErrors", (1, 1), int),
    (
        "remapped_rows.corrected remapped_rows.uncorrected remapped_rows.pending remapped_rows.failure",
        "nvmlDeviceGetRemappedRows",
        (),
        lambda rows: [rows[0], rows[1], bool(rows[2]), bool(rows[3])],
    ),
    (
        "remapped_rows.spare_banks.full remapped_rows.spare_banks.high remapped_rows.spare_banks.partial "
        "remapped_rows.spare_banks.low remapped_rows.spare_banks.none",
        "nvmlDeviceGetRowRemapperHistogram",
        (),
        _members("max", "high", "partial", "low", "none"),
    ),
    ("retired_pages.single_bit", "nvmlDeviceGetRetiredPages", (0,), len),
    ("retired_pages.double_bit", "nvmlDeviceGetRetiredPages", (1,), len),
    ("retired_pages.pending", "nvmlDeviceGetRetiredPagesPendingStatus", (), bool),
    ("repair.channel_pending repair.tpc_pending", "nvmlDeviceGetRepairStatus", (), _each(bool)),
    ("recovery_action", "field", (_FIELD_RECOVERY_ACTION,), _named(_RECOVERY_ACTIONS)),
    ("unrepairable_memory", "nvmlDeviceGetUnrepairableMemoryFlag_v1", (), bool),
    ("mig.enabled mig.pending", "nvmlDeviceGetMigMode", (), _each(bool)),
    ("mig.max_instances", "nvmlDeviceGetMaxMigDeviceCount", (), int),
    ("power.usage_watts", "nvmlDeviceGetPowerUsage", (), _thousandth),
    ("power.limit_watts", "nvmlDeviceGetPowerManagementLimit", (), _thousandth),
    ("power.enforced_limit_watts", "nvmlDeviceGetEnforcedPowerLimit", (), _thousandth),
    ("power.default_limit_watts", "nvmlDeviceGetPowerManagementDefaultLimit", (), _thousandth),
    (
        "power.min_limit_watts power.max_limit_watts",
        "nvmlDeviceGetPowerManagementLimitConstraints",
        (),
        _each(_thousandth),
    ),
    ("power.energy_joules", "nvmlDeviceGetTotalEnergyConsumption", (), _thousandth),
    ("clocks.graphics_mhz", "nvmlDeviceGetClockInfo", (0,), int),
    ("clocks.sm_mhz", "nvmlDeviceGetClockInfo", (1,), int),
    ("clocks.memory_mhz", "nvmlDeviceGetClockInfo", (2,), int),
    ("clocks.video_mhz", "nvmlDeviceGetClockInfo", (3,), int),
    ("clocks.max_graphics_mhz", "nvmlDeviceGetMaxClockInfo", (0,), int),
    ("clocks.max_sm_mhz", "nvmlDeviceGetMaxClockInfo", (1,), int),
    ("clocks.max_memory_mhz", "nvmlDeviceGetMaxClockInfo", (2,), int),
    ("clocks.max_video_mhz", "nvmlDeviceGetMaxClockInfo", (3,), int),
    ("clocks_event_reasons", "nvmlDeviceGetCurrentClocksEventReasons", (), model.event_reasons),
    ("clocks_event_reasons", "nvmlDeviceGetCurrentClocksThrottleReasons", (), model.event_reasons),
    (
        "utilization.gpu_percent utilization.memory_percent",
        "nvmlDeviceGetUtilizationRates",
        (),
        _members("gpu", "memory"),
    ),
    ("temperature.gpu_celsius", "nvmlDeviceGetTemperatureV", (0,), int),
    ("temperature.gpu_celsius", "nvmlDeviceGetTemperature", (0,), int),
    ("temperature.memory_celsius", "field", (_FIELD_MEMORY_TEMPERATURE,), int),
    ("temperature.shutdown_celsius", "nvmlDeviceGetTemperatureThreshold", (0,), int),
    ("temperature.slowdown_celsius", "nvmlDeviceGetTemperatureThreshold", (1,), int),
    ("temperature.memory_max_celsius", "nvmlDeviceGetTemperatureThreshold", (2,), int),
    ("temperature.gpu_max_celsius", "nvmlDeviceGetTemperatureThreshold", (3,), int),
    ("temperature.margin_celsius", "nvmlDeviceGetMarginTemperature", (), int),
    ("fan_speed_percent", "nvmlDeviceGetFanSpeed", (), int),
    ("persistence_mode", "nvmlDeviceGetPersistenceMode", (), bool),
    ("compute_mode", "nvmlDeviceGetComputeMode", (), _named(_COMPUTE_MODES)),
    ("performance_state", "nvmlDeviceGetPerformanceState", (), lambda number: "P%d" % number),
    ("display_active", "nvmlDeviceGetDisplayActive", (), bool),
    ("pcie.generation", "nvmlDeviceGetCurrPcieLinkGeneration", (), int),
    ("pcie.width", "nvmlDeviceGetCurrPcieLinkWidth", (), int),
    ("pcie.max_generation", "nvmlDeviceGetMaxPcieLinkGeneration", (), int),
    ("pcie.max_width", "nvmlDeviceGetMaxPcieLinkWidth", (), int),
    ("pcie.replay_count", "nvmlDeviceGetPcieReplayCounter", (), int),
    ("nvlink.link_count", "field", (_FIELD_NVLINK_COUNT,), int),
    ("nvlink.recovery_errors", "field", (_FIELD_NVLINK_RECOVERY, _ALL_LINKS), int),
    ("nvlink.recovery_errors", "field", (_FIELD_NVLINK_RECOVERY_BEFORE_HOPPER,), int),
    ("fabric.state fabric.status fabric.clique_id fabric.cluster_uuid fabric.problems", "fabric_info", (), list),
    ("numa_node", "nvmlDeviceGetNumaNodeId", (), int),
    ("cpu_affinity", "nvmlDeviceGetCpuAffinity", (_CPU_WORDS,), model.cpu_list),
)
THOROUGH: Tuple[Tuple[str, str, Tuple[int, ...], Callable[[Any], Any]], ...] = (
    ("slowdown.thermal_seconds", "field", (_FIELD_THERMAL_SLOWDOWN,), _nanoseconds),
    ("slowdown.power_brake_seconds", "field", (_FIELD_POWER_BRAKE,), _nanoseconds),
    ("inforom_corrupt", "inforom_corrupt", (), bool),
)
"""What takes too long for every reading: 5 and 70 ms on an H200.

The seconds are sums since the driver was loaded, which are of use to a person alone.
"""


class Library:
    """NVML through a binding: every call gives a value, or raises NotRead."""

    def __init__(self, pynvml: Any) -> None:
        self.pynvml = pynvml

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a function of NVML, or one of the methods below that wrap several steps under a name of their own."""
        function = getattr(self, name, None) or getattr(self.pynvml, name, None)
        if function is None:
            raise NotRead(model.UNSUPPORTED)
        try:
            return function(*arguments)
        except NotRead:
            raise
        except self.pynvml.NVMLError as error:
            code = getattr(error, "value", None)
            if code in _GONE:
                raise _lost(code, str(error)) from None
            raise NotRead(model.UNSUPPORTED if code in _UNSUPPORTED else str(error)) from None
        except Exception as error:  # a binding older than the way it is called here
            raise NotRead("%s: %s" % (type(error).__name__, error)) from None

    def ask_or(self, default: Any, name: str, *arguments: Any) -> Any:
        """The same, with a default for what is not given."""
        try:
            return self.ask(name, *arguments)
        except NotRead:
            return default

    def start(self) -> None:
        """Start NVML; what it refuses at its start is a fault, whatever the code."""
        try:
            self.pynvml.nvmlInit()
        except self.pynvml.NVMLError as error:
            raise _lost(getattr(error, "value", None), str(error)) from None

    def memory_info_v2(self, handle: Any) -> Any:
        version = getattr(self.pynvml, "nvmlMemory_v2", None)
        if version is None:
            raise NotRead(model.UNSUPPORTED)
        return self.pynvml.nvmlDeviceGetMemoryInfo(handle, version=version)

    def field(self, handle: Any, number: int, scope: Optional[int] = None) -> Any:
        """One field value; its own return code counts, not only the call's.

        :param scope: the link that it is about.
        """
        value = self.pynvml.nvmlDeviceGetFieldValues(handle, [number if scope is None else (number, scope)])[0]
        if value.nvmlReturn != 0:
            raise self.pynvml.NVMLError(value.nvmlReturn)
        return getattr(value.value, _FIELD_VALUE_MEMBERS[value.valueType])

    def sram_threshold_exceeded(self, handle: Any) -> int:
        """Whether the chip's own memory had more uncorrectable errors than it may have in its life."""
        status = self.pynvml.c_nvmlEccSramErrorStatus_v1_t()
        self.pynvml.nvmlDeviceGetSramEccErrorStatus(handle, ctypes.byref(status))
        return int(status.bThresholdExceeded)

    def inforom_corrupt(self, handle: Any) -> bool:
        try:
            self.pynvml.nvmlDeviceValidateInforom(handle)
        except self.pynvml.NVMLError as error:
            if getattr(error, "value", None) == _CORRUPT:
                return True
            raise
        return False

    def fabric_info(self, handle: Any) -> List[Any]:
        info = self.pynvml.c_nvmlGpuFabricInfo_v2_t()
        self.pynvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
        if info.state == 0:
            raise NotRead(model.UNSUPPORTED)
        status = "success" if info.status == 0 else _text(self.pynvml.nvmlErrorString(info.status))
        mask = info.healthMask
        told = [words[mask >> bit & part] for bit, part, words in _FABRIC_PROBLEMS if mask >> bit & part in words]
        problems = told if mask else None  # a mask of zeros: nothing watches the fabric's health
        digits = "".join("%02x" % byte for byte in info.clusterUuid)
        uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        return [_FABRIC_STATES.get(info.state, "unknown"), status, info.cliqueId, uuid, problems]


def read(pynvml: Any, emit: Callable[[str, Any], None], root: str = "/", thorough: bool = False) -> None:
    """Read everything, part by part, so that what was read before a hang is not lost.

    :param pynvml: the binding.
    :param emit: takes the parts, plain data each: ``step`` (what is about to be read), ``fault``, ``driver``,
        ``device`` ([device, None or the fault for which it does not answer]), ``mig_device``, ``pairs`` ([lower index,
        higher index, states], see topology.from_nvml), ``link_ends`` ([index, its active links by PCI bus id of their
        other end]).
    :param root: where ``proc`` is, for the units of processes.
    :param thorough: whether to read what takes long, too.
    """
    library = Library(pynvml)
    emit("step", "starting NVML")
    try:
        library.start()
        emit("driver", _driver(library))
        count = library.ask("nvmlDeviceGetCount")
    except NotRead as trouble:
        emit("driver", {"nvml_version": _nvml_version(library)})
        emit("fault", faults.fault(trouble.fault or faults.NVML_ERROR, "NVML does not start: %s" % trouble))
        return
    handles = {}
    for index in range(count):
        emit("step", "reading GPU %d" % index)
        device, handle, gone, ends = read_device(library, index, root, thorough)
        emit("device", [device, gone])
        if gone:
            continue
        handles[index] = handle
        emit("link_ends", [index, ends])
        for instance in _mig_devices(library, handle, device):
            emit("mig_device", instance)
    emit("step", "reading how the GPUs are linked")
    emit("pairs", _pairs(library, handles))


def read_device(
    library: Library, index: int, root: str, thorough: bool = False
) -> Tuple[Dict[str, Any], Any, Optional[Dict[str, str]], Dict[str, int]]:
    """One GPU: its facts, its handle, the fault for which it does not answer (None when it does), its NVLinks' ends."""
    device = model.blank(index, "the GPU does not answer")
    handle = None
    ends = {}  # type: Dict[str, int]
    try:
        handle = library.ask("nvmlDeviceGetHandleByIndex", index)
        for leaves, function, arguments, convert in DATA + (THOROUGH if thorough else ()):
            _read_datum(library, handle, device, leaves.split(), function, arguments, convert)
        for row in () if thorough else THOROUGH:
            model.refuse(device, row[0], model.SLOW)
        ends = _read_nvlinks(library, handle, device)
        _read_processes(library, handle, device, root)
    except NotRead as gone:
        return device, handle, faults.fault(gone.fault or faults.NVML_ERROR, str(gone)), ends
    return device, handle, None, ends


def _read_datum(
    library: Library,
    handle: Any,
    device: Dict[str, Any],
    leaves: List[str],
    function: str,
    arguments: Tuple[Any, ...],
    convert: Callable[[Any], Any],
) -> None:
    if all(model.known(device, leaf) for leaf in leaves):
        return
    try:
        value = library.ask(function, handle, *arguments)
    except NotRead as refusal:
        if refusal.fault:
            raise
        for leaf in leaves:
            if not model.known(device, leaf):
                model.refuse(device, leaf, str(refusal))
        return
    value = convert(value)
    for leaf, part in zip(leaves, value if len(leaves) > 1 else [value]):
        if part is None:
            model.refuse(device, leaf, model.UNSUPPORTED)
        else:
            model.put(device, leaf, part)


def _read_nvlinks(library: Library, handle: Any, device: Dict[str, Any]) -> Dict[str, int]:
    """How many NVLinks are up, and how many of them end at which PCI bus id; counts them where no field reports it."""
    total = device["nvlink"]["link_count"]
    ends = {}  # type: Dict[str, int]
    tried = active = 0
    try:
        for link in range(_MAX_NVLINKS if total is None else total):
            up = library.ask("nvmlDeviceGetNvLinkState", handle, link)
            tried += 1
            if up:
                active += 1
                remote = library.ask_or(None, "nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
                if remote is not None:
                    end = pci_bus_id(_text(remote.busId))
                    ends[end] = ends.get(end, 0) + 1
    except NotRead as refusal:
        if refusal.fault:
            raise
        model.refuse(device, "nvlink.active_count", str(refusal))
    if tried or total == 0:
        model.put(device, "nvlink.link_count", tried if total is None else total)
        model.put(device, "nvlink.active_count", active)
    return ends


def _read_processes(library: Library, handle: Any, device: Dict[str, Any], root: str) -> None:
    found = {}  # type: Dict[int, Dict[str, Any]]
    try:
        for kind, function in (
            ("compute", "nvmlDeviceGetComputeRunningProcesses"),
            ("graphics", "nvmlDeviceGetGraphicsRunningProcesses"),
        ):
            for process in library.ask(function, handle):
                known = found.get(process.pid)
                if known:
                    known["type"] = "compute+graphics" if known["type"] != kind else kind
                    known["used_bytes"] = max(known["used_bytes"] or 0, process.usedGpuMemory or 0)
                    continue
                name = library.ask_or(None, "nvmlSystemGetProcessName", process.pid)
                found[process.pid] = {
                    "pid": process.pid,
                    "name": None if name is None else model.process_name(_text(name)),
                    "type": kind,
                    "used_bytes": process.usedGpuMemory,
                    "unit": processes.unit_of(process.pid, root),
                }
    except NotRead as refusal:
        if refusal.fault:
            raise
        model.refuse(device, "processes", str(refusal))
    else:
        model.put(device, "processes", [found[pid] for pid in sorted(found)])


def _driver(library: Library) -> Dict[str, Any]:
    version = library.ask_or(None, "nvmlSystemGetDriverVersion")
    cuda = library.ask_or(None, "nvmlSystemGetCudaDriverVersion_v2")
    branch = library.ask_or(None, "nvmlSystemGetDriverBranch")
    confidential = library.ask_or(None, "nvmlSystemGetConfComputeState")
    return {
        "version": None if version is None else _text(version),
        "nvml_version": _nvml_version(library),
        "cuda_version": None if cuda is None else "%d.%d" % (cuda // 1000, cuda % 1000 // 10),
        "branch": None if branch is None else _text(branch.branch),
        "confidential_compute": None if confidential is None else bool(confidential.ccFeature),
    }


def _nvml_version(library: Library) -> Optional[str]:
    version = library.ask_or(None, "nvmlSystemGetNVMLVersion")
    return None if version is None else _text(version)


def _mig_devices(library: Library, handle: Any, device: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The MIG instances of a GPU; slots may be empty."""
    found = []
    for slot in range(device["mig"]["max_instances"] or 0 if device["mig"]["enabled"] else 0):
        instance = library.ask_or(None, "nvmlDeviceGetMigDeviceHandleByIndex", handle, slot)
        if instance is None:
            continue
        uuid = library.ask_or(None, "nvmlDeviceGetUUID", instance)
        memory = library.ask_or(None, "nvmlDeviceGetMemoryInfo", instance)
        name = library.ask_or(None, "nvmlDeviceGetName", instance)
        found.append(
            {
                "uuid": None if uuid is None else _text(uuid),
                "name": None if name is None else _text(name),
                "gpu_uuid": device["uuid"],
                "gpu_instance_id": library.ask_or(None, "nvmlDeviceGetGpuInstanceId", instance),
                "compute_instance_id": library.ask_or(None, "nvmlDeviceGetComputeInstanceId", instance),
                "memory": {
                    "total_bytes": memory.total if memory else None,
                    "used_bytes": memory.used if memory else None,
                    "free_bytes": memory.free if memory else None,
                },
            }
        )
    return found


def _pairs(library: Library, handles: Dict[int, Any]) -> List[List[Any]]:
    """Per pair of GPUs its topology level and its peer-to-peer states (reading, over NVLink)."""
    return [
        [
            low,
            high,
            {
                "level": library.ask_or(None, "nvmlDeviceGetTopologyCommonAncestor", handles[low], handles[high]),
                "read": library.ask_or(None, "nvmlDeviceGetP2PStatus", handles[low], handles[high], 0),
                "nvlink": library.ask_or(None, "nvmlDeviceGetP2PStatus", handles[low], handles[high], 2),
            },
        ]
        for low in handles
        for high in handles
        if low < high
    ]
