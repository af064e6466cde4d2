# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated libnvidia-ml.so.1, asked by the unmodified pynvml."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Callable

import pytest

TESTS = Path(__file__).resolve().parents[2]
STATES = sorted(path.name for path in (TESTS / "lab/nvml/states").iterdir())
WITH_GPUS = [name for name in STATES if name != "none"]
FIXTURES = TESTS / "unit/fixtures/gpu"
GIB = 1 << 30

memory_v1 = "nvml.nvmlDeviceGetMemoryInfo(handles[%d])"
memory_v2 = "nvml.nvmlDeviceGetMemoryInfo(handles[%d], version=nvml.nvmlMemory_v2)"
compute = "nvml.nvmlDeviceGetComputeRunningProcesses%s(handles[%d])"
uuids = "[nvml.nvmlDeviceGetUUID(handle) for handle in handles]"


def recording(name: str) -> dict:
    return json.loads((FIXTURES / ("%s-nvml.json" % name)).read_text())


# -- what was recorded -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "calls"), [("h200x2", 429), ("h200x4", 895)])
def test_every_recorded_call_gives_what_it_gave(gpu_host: Any, state: str, calls: int) -> None:
    """None is left out: names, values, types, errors and their texts."""
    gpu_host.apply(state)
    program = gpu_host.program()
    recorded = recording(state)
    assert program.get("init()") == recorded["count"]
    compared = 0
    for index, device in [(None, recorded["system"]), *enumerate(recorded["devices"])]:
        handle = "None" if index is None else "handles[%d]" % index
        for call, outcome in device.items():
            assert program.ask("convert.call(%r, handles, %s)" % (call, handle)) == outcome, (call, index)
            compared += 1
    assert compared == calls


@pytest.mark.parametrize("state", ["h200x2", "h200x4"])
def test_the_recorded_states_are_the_recordings(state: str) -> None:
    """The state files come from the fixtures by convert.py and nothing else."""
    files = [str(FIXTURES / (state + ending)) for ending in ("-nvml.json", "-nvidia-smi-q.xml")]
    title = (TESTS / "lab/nvml/states" / state).read_text().splitlines()[0].lstrip("# ")
    made = subprocess.run(
        [sys.executable, str(TESTS / "lab/nvml/convert.py"), *files, "--title", title],
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout == (TESTS / "lab/nvml/states" / state).read_text()


def test_what_the_recording_of_nvml_lacks_comes_from_nvidia_smi(gpu_host: Any) -> None:
    gpu_host.apply("h200x4")
    program = gpu_host.program()
    program.get("init()")
    report = ElementTree.parse(FIXTURES / "h200x4-nvidia-smi-q.xml").getroot()
    for index, gpu in enumerate(report.findall("gpu")):
        celsius = int(gpu.findtext("temperature/gpu_temp").split()[0])
        assert program.get("nvml.nvmlDeviceGetTemperature(handles[%d], 0)" % index) == celsius
        assert program.get("nvml.nvmlDeviceGetTemperatureV(handles[%d], 0)" % index) == celsius
        memory = int(gpu.findtext("temperature/memory_temp").split()[0])
        fields = program.get(
            "[(f.fieldId, f.nvmlReturn, f.value.uiVal, f.value.siVal) for f in"
            " nvml.nvmlDeviceGetFieldValues(handles[%d], [82, 91, 144, 193, 230, 9999])]" % index
        )
        assert [field[:3] for field in fields if field[0] != 193] == [
            [82, 0, memory],
            [91, 0, 18],
            [144, 0, 0],
            [230, 0, 0],
            [9999, 3, 0],
        ]
        assert fields[3][3] == -8
    assert program.get(
        "[nvml.nvmlDeviceGetNvLinkVersion(handles[0], 17),"
        " nvml.nvmlDeviceGetInforomVersion(handles[0], 1), nvml.nvmlDeviceGetApplicationsClock(handles[0], 0)]"
    ) == [6, "7.16", 1980]


def test_fabric_in_each_version_of_its_struct(gpu_host: Any) -> None:
    gpu_host.apply("h200x4")
    program = gpu_host.program()
    program.get("init()")
    for kind in ("c_nvmlGpuFabricInfo_v2_t", "c_nvmlGpuFabricInfo_v3_t"):
        ask = (
            "(lambda info: [nvml.nvmlDeviceGetGpuFabricInfoV(handles[0], nvml.byref(info)),"
            " info.status, info.cliqueId, info.state, list(info.clusterUuid)])(nvml.%s())" % kind
        )
        assert program.get(ask) == [0, 0, 0, 3, [0] * 16], kind


# -- how NVML behaves --------------------------------------------------------------------------------------------


def test_before_init_every_call_says_so(gpu_host: Any) -> None:
    gpu_host.apply("h200x2")
    program = gpu_host.program()
    assert program.error("nvml.nvmlDeviceGetCount()") == 1
    assert program.error("nvml.nvmlSystemGetDriverVersion()") == 1
    program.get("init()")
    program.get("nvml.nvmlShutdown()")
    assert program.error("nvml.nvmlDeviceGetName(handles[0])") == 1


def test_init_is_counted(gpu_host: Any) -> None:
    gpu_host.apply("h200x2")
    program = gpu_host.program()
    for step in ("nvml.nvmlInit()", "nvml.nvmlInit()", "nvml.nvmlShutdown()"):
        program.get(step)
    assert program.get("nvml.nvmlDeviceGetCount()") == 2


def test_handles_by_every_name(gpu_host: Any) -> None:
    gpu_host.apply("h200x4")
    program = gpu_host.program()
    program.get("init()")
    for ask in (
        "UUID('GPU-00000003-0000-4000-8000-000000000003')",
        "PciBusId('00000000:00:08.0')",
        "PciBusId('0000:00:08.0')",
        "PciBusId('00:08.0')",
        "Serial('1650000000003')",
    ):
        assert program.get("nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleBy%s)" % ask) == 2, ask
    assert program.error("nvml.nvmlDeviceGetHandleByIndex(4)") == 2
    assert program.error("nvml.nvmlDeviceGetHandleByUUID('GPU-0')") == 6
    assert program.error("nvml.nvmlDeviceGetHandleByPciBusId('0000:ff:00.0')") == 6
    assert program.error("nvml.nvmlDeviceGetName(nvml.c_nvmlDevice_t())") == 2


def test_what_the_state_does_not_answer_is_not_supported(gpu_host: Any) -> None:
    gpu_host.apply("rtx4090x4")
    program = gpu_host.program()
    program.get("init()")
    for ask in (
        "Serial(handles[0])",
        "MigMode(handles[0])",
        "RemappedRows(handles[0])",
        "NvLinkState(handles[0], 0)",
        "TotalEccErrors(handles[0], 1, 0)",
        "NumaNodeId(handles[0])",
        "MarginTemperature(handles[0])",
    ):
        assert program.error("nvml.nvmlDeviceGet" + ask) == 3, ask
    assert program.get("nvml.nvmlDeviceGetFanSpeed(handles[0])") == 30
    assert program.get("nvml.nvmlDeviceGetEccMode(handles[0])") == [0, 0]


def test_a_struct_of_another_size_is_refused(gpu_host: Any) -> None:
    gpu_host.apply("h200x2")
    program = gpu_host.program()
    program.get("init()")
    assert program.error("nvml.nvmlDeviceGetMemoryInfo(handles[0], version=nvml.nvmlMemory_v2 + 8)") == 25
    program.get("globals().update(info=nvml.c_nvmlTemperature_v1_t())")
    raw = "(setattr(info, 'version', %d), nvml.nvmlLib.nvmlDeviceGetTemperatureV(handles[0], nvml.byref(info)))[1]"
    assert program.get(raw % (1 << 24 | 12)) == 0
    assert program.get(raw % (9 << 24 | 64)) == 25


@pytest.mark.parametrize("state", WITH_GPUS)
def test_every_line_of_a_state_is_answered(gpu_host: Any, state: str) -> None:
    """No misspelt function, and totals that add up."""
    gpu_host.apply(state)
    library = ctypes.CDLL(str(gpu_host.root / "libnvidia-ml.so.1"))
    text = (gpu_host.root / "etc/nvidia-sim/state").read_text()
    names = set(re.findall(r"^(nvml\w+)", text, re.MULTILINE))
    assert len(names) > 60
    assert [name for name in sorted(names) if not hasattr(library, name)] == []
    program = gpu_host.program()
    for index in range(program.get("init()")):
        one, two = program.get(memory_v1 % index), program.get(memory_v2 % index)
        assert two["total"] == two["reserved"] + two["free"] + two["used"] == one["total"]
        assert one["free"] == two["free"] and one["used"] == two["used"] + two["reserved"]
        pci = program.get("nvml.nvmlDeviceGetPciInfo(handles[%d])" % index)
        assert pci["busId"] == "0000" + pci["busIdLegacy"]
        assert int(pci["busId"].split(":")[1], 16) == pci["bus"]


# -- what processes hold -----------------------------------------------------------------------------------------


@pytest.fixture
def holders() -> Any:
    """Starts processes that live until told otherwise."""
    started = []

    def start() -> subprocess.Popen:
        started.append(subprocess.Popen(["sleep", "600"]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def claim(host: Any, pid: int, gpu: Any, mib: int, *more: str) -> None:
    done = host.run("nvidia-sim", "claim", "--pid", str(pid), "--gpu", str(gpu), "--mib", str(mib), *more)
    assert done.returncode == 0, done.stderr


def test_claims_show_in_memory_and_processes(gpu_host: Any, holders: Callable[[], subprocess.Popen]) -> None:
    gpu_host.apply("h200x4")
    program = gpu_host.program()
    program.get("init()")
    free = [program.get(memory_v2 % index) for index in range(4)]
    one, two = holders(), holders()
    claim(gpu_host, one.pid, 1, 40960)
    claim(gpu_host, one.pid, 2, 1024)
    claim(gpu_host, two.pid, "GPU-00000002-0000-4000-8000-000000000002", 2048)
    claim(gpu_host, two.pid, 1, 512, "--graphics")

    taken = [0, 43520 << 20, 1 << 30, 0]
    for index in range(4):
        now = program.get(memory_v2 % index)
        assert now == dict(free[index], free=free[index]["free"] - taken[index], used=taken[index])
        assert program.get(memory_v1 % index)["used"] == taken[index] + now["reserved"]
    held = sorted([(one.pid, 40 * GIB), (two.pid, 2 * GIB)])
    for version in ("", "_v2", "_v3"):
        found = program.get(compute % (version, 1))
        assert sorted((process["pid"], process["usedGpuMemory"]) for process in found) == held
        assert {(process["gpuInstanceId"], process["computeInstanceId"]) for process in found} == {(2**32 - 1,) * 2}
    graphics = program.get("nvml.nvmlDeviceGetGraphicsRunningProcesses(handles[1])")
    assert [(process["pid"], process["usedGpuMemory"]) for process in graphics] == [(two.pid, GIB // 2)]
    assert program.get("nvml.nvmlSystemGetProcessName(%d)" % one.pid) == "sleep"
    assert program.error("nvml.nvmlSystemGetProcessName(2 ** 22 + 1)") == 6

    claim(gpu_host, one.pid, 1, 100)  # in place of the 40 GiB
    assert program.get(memory_v2 % 1)["used"] == (2048 + 512 + 100) << 20
    assert gpu_host.run("nvidia-sim", "release", "--pid", str(one.pid)).returncode == 0
    assert program.get(memory_v2 % 2)["used"] == 0


def test_first_version_of_the_process_list(gpu_host: Any, holders: Callable[[], subprocess.Popen]) -> None:
    """Programs older than pynvml 11 read an array of 16-byte entries; too short a one is told the number."""
    gpu_host.apply("h200x2")
    pid = holders().pid
    claim(gpu_host, pid, 0, 10)
    program = gpu_host.program()
    program.get("init()")
    program.get("globals().update(raw=(nvml.c_uint * 8)(), n=nvml.c_uint(0), c=__import__('ctypes'))")
    first = "nvml.nvmlLib.nvmlDeviceGetComputeRunningProcesses(handles[0], c.byref(n), raw)"
    assert program.get("[%s, n.value]" % first) == [7, 1]
    assert program.get("[%s, n.value, list(raw)]" % first) == [0, 1, [pid, 0, 10 << 20, 0, 0, 0, 0, 0]]


def test_a_dead_process_holds_nothing(gpu_host: Any, holders: Callable[[], subprocess.Popen]) -> None:
    gpu_host.apply("h200x2")
    program = gpu_host.program()
    program.get("init()")
    process = holders()
    claim(gpu_host, process.pid, 0, 1000)
    assert program.get(memory_v2 % 0)["used"] == 1000 << 20
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped by us
    assert program.get(memory_v2 % 0)["used"] == 0
    process.wait()
    assert program.get(memory_v2 % 0)["used"] == 0
    assert program.get(compute % ("", 0)) == []


def test_no_more_is_used_than_there_is(gpu_host: Any, holders: Callable[[], subprocess.Popen]) -> None:
    gpu_host.apply("rtx4090x4")
    claim(gpu_host, holders().pid, 3, 30000)
    program = gpu_host.program()
    program.get("init()")
    memory = program.get(memory_v2 % 3)
    assert memory["free"] == 0 and memory["used"] == memory["total"] - memory["reserved"]


# -- which GPUs a process sees -----------------------------------------------------------------------------------


def test_a_gpu_whose_node_is_missing_is_invisible_and_the_others_are_renumbered(gpu_host: Any) -> None:
    """As in recordings of a unit that may open /dev/nvidia2 alone: one GPU, index 0, bus 08, minor number 2."""
    gpu_host.apply("h200x4")
    for minor in (0, 1, 3):
        gpu_host.node("nvidia%d" % minor).unlink()
    program = gpu_host.program()
    assert program.get("init()") == 1
    assert program.get(
        "[nvml.nvmlDeviceGetIndex(handles[0]), nvml.nvmlDeviceGetMinorNumber(handles[0]),"
        " nvml.nvmlDeviceGetPciInfo(handles[0]).busId]"
    ) == [0, 2, "00000000:00:08.0"]
    assert program.get(uuids) == ["GPU-00000003-0000-4000-8000-000000000003"]
    assert program.error("nvml.nvmlDeviceGetHandleByIndex(1)") == 2
    assert program.error("nvml.nvmlDeviceGetHandleByUUID('GPU-00000001-0000-4000-8000-000000000001')") == 6


def test_peers_are_named_by_the_gpu_and_not_by_the_index(gpu_host: Any) -> None:
    gpu_host.apply("hgx-h100x8")
    for minor in (0, 1, 2):
        gpu_host.node("nvidia%d" % minor).unlink()
    program = gpu_host.program()
    assert program.get("init()") == 5
    ask = "[nvml.nvmlDeviceGetTopologyCommonAncestor(handles[%d], peer) for peer in handles]"
    assert program.get(ask % 0) == [0, 50, 50, 50, 50]
    assert program.get(ask % 4) == [50, 40, 40, 40, 0]


def test_a_node_that_answers_enxio_is_visible(gpu_host: Any) -> None:
    """What opening a node says that the device group allows and no driver stands behind."""
    gpu_host.apply("h200x2")
    gpu_host.node("nvidia1").unlink()
    with socket.socket(socket.AF_UNIX) as end:  # opening a socket's file is ENXIO too
        end.bind(str(gpu_host.node("nvidia1")))
        assert gpu_host.program().get("init()") == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user, whom modes bind")
def test_a_gpu_whose_node_may_not_be_opened_is_invisible(gpu_host: Any) -> None:
    gpu_host.apply("h200x4")
    gpu_host.node("nvidia0").chmod(0o600)
    gpu_host.node("nvidia2").chmod(0o600)
    program = gpu_host.program(unprivileged=True)
    assert program.get("init()") == 2
    assert program.get("[nvml.nvmlDeviceGetMinorNumber(handle) for handle in handles]") == [1, 3]
    gpu_host.node("nvidiactl").chmod(0o600)
    assert gpu_host.program(unprivileged=True).error("nvml.nvmlInit()") == 4


def test_no_visible_gpu_is_a_count_of_zero(gpu_host: Any) -> None:
    gpu_host.apply("h200x2")
    for minor in (0, 1):
        gpu_host.node("nvidia%d" % minor).unlink()
    assert gpu_host.program().get("init()") == 0


def test_without_the_control_node_there_is_no_driver(gpu_host: Any) -> None:
    gpu_host.apply("h200x2")
    gpu_host.node("nvidiactl").unlink()
    assert gpu_host.program().error("nvml.nvmlInit()") == 9


# -- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [("driver-mismatch", 18, "Driver/library version mismatch"), ("driver-not-loaded", 9, "Driver Not Loaded")],
)
def test_init_fails(gpu_host: Any, fault: str, code: int, text: str) -> None:
    gpu_host.apply("h200x2", fault)
    program = gpu_host.program()
    assert program.error("nvml.nvmlInit()") == code
    assert program.get("nvml.nvmlErrorString(%d)" % code) == text


def test_no_library(gpu_host: Any) -> None:
    (gpu_host.root / "libnvidia-ml.so.1").unlink()
    done = subprocess.run(
        [sys.executable, "-c", "import pynvml; pynvml.nvmlInit()"],
        env=gpu_host.environment,
        capture_output=True,
        text=True,
    )
    assert "NVMLError_LibraryNotFound" in done.stderr


@pytest.mark.parametrize("state", WITH_GPUS)
def test_a_lost_gpu_answers_nothing_and_the_others_all(gpu_host: Any, state: str) -> None:
    gpu_host.apply(state)
    program = gpu_host.program()
    count = program.get("init()")
    gpu_host.apply(state, "gpu-lost:1")
    for ask in (
        "GetName(handles[1])",
        "GetIndex(handles[1])",
        "GetMemoryInfo(handles[1])",
        "GetUUID(handles[1])",
        "GetComputeRunningProcesses(handles[1])",
        "GetFieldValues(handles[1], [91])",
        "GetHandleByIndex(1)",
        "SetPersistenceMode(handles[1], 1)",
    ):
        assert program.error("nvml.nvmlDevice" + ask) == 15, ask
    assert program.get("nvml.nvmlDeviceGetCount()") == count
    assert program.get("nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByIndex(0))") == 0


def test_uncorrectable_memory_errors(gpu_host: Any) -> None:
    gpu_host.apply("h200x4", "ecc-uncorrectable:2")
    program = gpu_host.program()
    program.get("init()")
    rows = "[nvml.nvmlDeviceGetRemappedRows(handle) for handle in handles]"
    assert program.get(rows) == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert program.get("[nvml.nvmlDeviceGetTotalEccErrors(handle, 1, 0) for handle in handles]") == [0, 0, 3, 0]
    actions = "[nvml.nvmlDeviceGetFieldValues(handle, [230])[0].value.uiVal for handle in handles]"
    assert program.get(actions) == [0, 0, 1, 0]


FINDINGS = """
import json, sys
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts
found = facts.gather(timeout=300, root=sys.argv[1], thorough=True)
print(json.dumps([[one["gpu"], one["check"]] for one in found["findings"]]))
"""


@pytest.mark.parametrize("state", ["h200x2", "h200x4", "hgx-h100x8", "rtx4090x4"])
@pytest.mark.parametrize(
    ("fault", "checks"),
    [
        ("", []),
        ("gpu-lost:1", ["gpu_lost"]),
        ("nvlink-errors:1", ["nvlink_errors"]),
        ("slowed-by-heat:1", ["slowed_by_heat"]),
        ("slowed-by-power:1", ["slowed_by_power"]),
        ("inforom-corrupt:1", ["inforom_corrupt"]),
        ("pcie-errors:1", ["pcie_errors"]),
        ("acs:1", ["acs_on"]),
        ("sram-threshold:1", ["sram_threshold"]),
        ("unrepairable-memory:1", ["memory_unrepairable"]),
        ("fabric-degraded:1", ["fabric_degraded"]),
        ("fabric-unhealthy:1", ["fabric_unhealthy"]),
        ("ecc-uncorrectable:1", ["ecc_uncorrected", "remap_pending", "recovery_requested"]),
    ],
)
def test_a_fault_leads_to_its_finding_and_to_no_other(gpu_host: Any, state: str, fault: str, checks: list) -> None:
    gpu_host.apply(state, *filter(None, [fault]))
    if fault.startswith("acs") and state != "rtx4090x4":
        checks = []  # its GPUs have NVLink
    done = subprocess.run(
        [sys.executable, "-c", FINDINGS, str(gpu_host.root)],
        env=dict(gpu_host.environment, PYTHONPATH=str(Path(__file__).parents[3] / ".collections")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[1, check] for check in checks]


def signals(pid: int, kind: str) -> int:
    """A set of signals of /proc/PID/status."""
    return int(re.search(r"^%s:\t(\w+)" % kind, Path("/proc/%d/status" % pid).read_text(), re.MULTILINE).group(1), 16)


@pytest.mark.parametrize(
    ("fault", "before", "call"),
    [
        ("hang", [], "nvml.nvmlInit()"),
        ("hang:1", [], "init()"),
        ("hang:1", ["nvml.nvmlInit()", "nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(0))"], "init()"),
    ],
)
def test_a_hang_ends_with_sigkill_alone(gpu_host: Any, fault: str, before: list, call: str) -> None:
    gpu_host.apply("h200x2", fault)
    program = gpu_host.program()
    for step in before:
        program.get(step)
    program.send(call)
    terminate, process = 1 << signal.SIGTERM - 1, program.process
    deadline = time.monotonic() + 30
    while not signals(process.pid, "SigBlk") & terminate:
        assert process.poll() is None and time.monotonic() < deadline, "the call did not hang"
    process.terminate()
    assert (signals(process.pid, "ShdPnd") & terminate) and process.poll() is None
    process.kill()
    assert process.wait() == -signal.SIGKILL


# -- changes while programs run ----------------------------------------------------------------------------------


def test_a_running_program_sees_a_new_state(gpu_host: Any) -> None:
    gpu_host.apply("h200x2")
    program = gpu_host.program()
    assert program.get("init()") == 2
    gpu_host.apply("h200x4")
    assert program.get("nvml.nvmlDeviceGetCount()") == 4
    assert program.get("nvml.nvmlDeviceGetName(handles[1])") == "NVIDIA H200"  # the same UUID, so the same GPU
    gpu_host.apply("rtx4090x4")
    assert program.error("nvml.nvmlDeviceGetName(handles[1])") == 15
    assert program.get("nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(1))") == "NVIDIA GeForce RTX 4090"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may set the persistence mode")
def test_a_setting_holds_for_every_program(gpu_host: Any) -> None:
    gpu_host.apply("rtx4090x4")
    one, two, other = gpu_host.program(), gpu_host.program(), gpu_host.program(unprivileged=True)
    for program in (one, two, other):
        program.get("init()")
    modes = "[nvml.nvmlDeviceGetPersistenceMode(handle) for handle in handles]"
    assert two.get(modes) == [0, 0, 0, 0]
    one.get("nvml.nvmlDeviceSetPersistenceMode(handles[2], 1)")
    one.get("nvml.nvmlDeviceSetPowerManagementLimit(handles[0], 300000)")
    assert two.get(modes) == [0, 0, 1, 0]
    assert two.get("nvml.nvmlDeviceGetEnforcedPowerLimit(handles[0])") == 300000
    before = (gpu_host.root / "etc/nvidia-sim/state").read_text()
    one.get("nvml.nvmlDeviceSetPersistenceMode(handles[2], 1)")
    assert (gpu_host.root / "etc/nvidia-sim/state").read_text() == before
    assert other.error("nvml.nvmlDeviceSetPersistenceMode(handles[2], 0)") == 4
    assert one.error("nvml.nvmlDeviceSetPersistenceMode(handles[2], 2)") == 2


# -- MIG ---------------------------------------------------------------------------------------------------------


def test_mig_devices(gpu_host: Any, holders: Callable[[], subprocess.Popen]) -> None:
    gpu_host.apply("a100x2-mig")
    pid = holders().pid
    claim(gpu_host, pid, "MIG-a1000002-0000-5000-8000-000000000002", 1024)
    program = gpu_host.program()
    assert program.get("init()") == 2
    assert program.get("[nvml.nvmlDeviceGetMigMode(handle) for handle in handles]") == [[1, 1], [0, 0]]
    program.get("globals().update(mig=[nvml.nvmlDeviceGetMigDeviceHandleByIndex(handles[0], i) for i in (0, 1)])")
    for ask, code in (("handles[0], 2", 6), ("handles[1], 0", 6), ("handles[0], 7", 2)):
        assert program.error("nvml.nvmlDeviceGetMigDeviceHandleByIndex(%s)" % ask) == code, ask
    assert program.get("[nvml.nvmlDeviceGetUUID(device) for device in mig]") == [
        "MIG-a100000%d-0000-5000-8000-00000000000%d" % (n, n) for n in (1, 2)
    ]
    assert program.get("[nvml.nvmlDeviceGetGpuInstanceId(device) for device in mig]") == [1, 2]
    assert program.get("[nvml.nvmlDeviceIsMigDeviceHandle(device) for device in handles + mig]") == [0, 0, 1, 1]
    assert program.get("nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig[1]))") == 0
    assert program.get("nvml.nvmlDeviceGetAttributes(mig[1]).multiprocessorCount") == 42
    used = "[nvml.nvmlDeviceGetMemoryInfo(device, version=nvml.nvmlMemory_v2).used for device in mig + handles]"
    assert program.get(used) == [0, GIB, GIB, 0]
    found = program.get("nvml.nvmlDeviceGetComputeRunningProcesses(mig[1])")
    assert [(p["pid"], p["gpuInstanceId"], p["computeInstanceId"]) for p in found] == [(pid, 2, 0)]
    assert program.error("nvml.nvmlDeviceGetUtilizationRates(handles[0])") == 3
    assert program.error("nvml.nvmlDeviceGetGpuInstanceId(handles[1])") == 2
