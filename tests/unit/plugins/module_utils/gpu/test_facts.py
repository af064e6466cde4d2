# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole: sources joined, every fault named, nothing that hangs."""

from __future__ import annotations

import os
import stat
import time

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import child, facts, model
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import trusted

NOT_SUPPORTED = {"nvml_error": 3}


@pytest.fixture
def no_tools(monkeypatch):
    """A host on which neither pynvml nor nvidia-smi is found."""
    monkeypatch.setattr(facts, "_binding", lambda python_paths: None)
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.fixture
def gather(host, play):
    """`gather(state)` is what facts.gather() gives on the made-up host with the fake binding."""
    return lambda state, timeout=10.0: facts.gather(timeout, [play(state)], str(host.root))


@pytest.fixture
def hangs(gather, tmp_path, monkeypatch):
    """`hangs(state)` gathers with a limit of one second, which is over as soon as the driver hangs: on a busy machine too
    everything before that has been read."""
    read = child._read_until

    def read_until(reading, _deadline):
        while not (tmp_path / "nvml.json.hangs").exists():
            # the file is written by another process, which does not announce it
            time.sleep(0.002)
        return read(reading, time.monotonic() + 0.02)

    monkeypatch.setattr(child, "_read_until", read_until)
    return lambda state: gather(state, timeout=1.0)


def fault_without_remedy(gpu):
    return {key: gpu["fault"][key] for key in ("code", "text")} if gpu["fault"] else None


def test_recorded_host(host, recording, gather):
    host.h200s(4)
    gpu = gather(recording("h200x4"))
    assert list(gpu) == [
        "source", "count", "fault", "driver", "devices", "findings", "topology", "peer_to_peer", "rdma",
        "mig_devices",
    ]  # fmt: skip
    assert (gpu["source"], gpu["count"], gpu["fault"]) == ("nvml", 4, None)
    assert gpu["driver"] == {
        "version": "580.159.04",
        "library_version": "580.159.04",
        "nvml_version": "13.580.159.04",
        "cuda_version": "13.0",
        "branch": "r582_49",
        "loaded": True,
        "open_kernel_module": True,
        "confidential_compute": False,
    }
    assert gpu["topology"] == [["X" if one == other else "NV18" for other in range(4)] for one in range(4)]
    assert gpu["peer_to_peer"] == [["X" if one == other else "OK" for other in range(4)] for one in range(4)]
    assert gpu["rdma"] == [] and gpu["mig_devices"] == [] and gpu["findings"] == []
    for index, device in enumerate(gpu["devices"]):
        assert device["index"] == index and device["device_node"] == "/dev/nvidia%d" % index
        assert device["health"] == {"ok": True, "fit": True, "lost": False, "reasons": []}
        assert device["numa_node"] is None
        assert device["unavailable"]["numa_node"] == "the firmware assigns the GPU to no NUMA node (sysfs has -1)"


def test_sysfs_helps_out_where_nvml_does_not_know(host, recording, gather):
    host.kernel()
    host.pci("pci0000:00/0000:00:06.0", numa=1, cpus="32-63")
    state = recording("h200x2")
    state["devices"][0]["nvmlDeviceGetCpuAffinity[16]"] = NOT_SUPPORTED
    first, second = gather(state)["devices"]
    assert (first["numa_node"], first["cpu_affinity"]) == (1, "32-63")
    assert "numa_node" not in first["unavailable"] and "cpu_affinity" not in first["unavailable"]
    assert second["unavailable"]["numa_node"] == "unsupported"


def test_health_is_told(host, recording, gather):
    state = recording("h200x2")
    state["devices"][1]["nvmlDeviceGetRemappedRows"] = {"ok": [0, 1, 1, 0]}
    first, second = gather(state if host.h200s(2) else None)["devices"]
    assert first["health"]["ok"]
    assert second["health"] == {
        "ok": False,
        "fit": False,
        "lost": False,
        "reasons": ["remapping of memory rows is pending: reset the GPU"],
    }


def test_host_without_gpus(host, recording, gather):
    gpu = gather(recording("h200x2"))
    assert (gpu["count"], gpu["fault"], gpu["source"], gpu["devices"]) == (0, None, "procfs", [])
    assert gpu["driver"]["loaded"] is False


@pytest.mark.parametrize("code", [9, 12])
def test_driver_without_gpus_is_no_fault(host, recording, gather, code):
    host.library("580.159.04")
    gpu = gather(dict(recording("h200x2"), init_error=code))
    assert (gpu["count"], gpu["fault"], gpu["source"]) == (0, None, "procfs")


def test_nvml_that_sees_none(host, recording, gather):
    """All GPUs are excluded from this process, by device cgroup or mode: that is its count, and no fault."""
    host.h200s(2)
    gpu = gather(dict(recording("h200x2"), count=0))
    assert (gpu["count"], gpu["fault"], gpu["source"]) == (0, None, "nvml")


def test_driver_mismatch(host, recording, gather):
    host.h200s(2)
    host.kernel("570.86.15")
    gpu = gather(dict(recording("h200x2"), init_error=18))
    assert gpu["fault"] == {
        "code": "driver_mismatch",
        "text": "the loaded kernel module is version 570.86.15, NVML's library version 580.159.04",
        "remedy": "reboot, or stop everything that uses the GPUs and reload the modules: "
        "modprobe -r nvidia_drm nvidia_modeset nvidia_uvm nvidia && modprobe nvidia",
    }
    assert (gpu["source"], gpu["count"]) == ("procfs", 2)
    assert gpu["driver"]["version"] == "570.86.15" and gpu["driver"]["library_version"] == "580.159.04"
    device = gpu["devices"][1]
    assert (device["uuid"], device["name"], device["minor"]) == (
        "GPU-00000002-0000-4000-8000-000000000002",
        "NVIDIA H200",
        1,
    )
    assert device["cpu_affinity"] == "0-31" and device["device_node"] == "/dev/nvidia1"
    assert device["health"] == {"ok": False, "fit": False, "lost": True, "reasons": [gpu["fault"]["text"]]}
    assert device["unavailable"]["memory.total_bytes"] == "driver_mismatch"
    assert gpu["topology"] == [["X", "PHB"], ["PHB", "X"]]
    assert gpu["peer_to_peer"] == [["X", None], [None, "X"]]


def test_driver_mismatch_with_nothing_known(host, recording, gather):
    host.pci("pci0000:00/0000:00:06.0")
    state = dict(recording("h200x2"), init_error=18)
    del state["system"]["nvmlSystemGetNVMLVersion"]
    gpu = gather(state)
    assert gpu["fault"]["text"] == "the loaded kernel module is version unknown, NVML's library version unknown"


def test_driver_not_loaded(host, recording, gather):
    host.library("580.159.04")
    host.pci("pci0000:00/0000:00:06.0", driver="nouveau")
    host.pci("pci0000:00/0000:00:07.0", driver=None)
    gpu = gather(dict(recording("h200x2"), init_error=9))
    assert fault_without_remedy(gpu) == {
        "code": "driver_not_loaded",
        "text": "NVIDIA GPUs on the PCI bus: 2, but the kernel module is not loaded; nouveau holds them",
    }
    assert (gpu["source"], gpu["count"], gpu["driver"]["loaded"]) == ("procfs", 2, False)
    assert gpu["devices"][0]["pci_bus_id"] == "0000:00:06.0" and gpu["devices"][0]["uuid"] is None
    assert gpu["devices"][0]["unavailable"]["device_node"] == "driver_not_loaded"


def test_library_missing(host, recording, gather):
    host.kernel()
    host.pci("pci0000:00/0000:00:06.0")
    gpu = gather(dict(recording("h200x2"), init_error=12))
    assert fault_without_remedy(gpu) == {
        "code": "library_missing",
        "text": "NVIDIA GPUs on the PCI bus: 1, but libnvidia-ml.so.1 is not installed; the kernel module is loaded, "
        "version 580.159.04",
    }


def test_library_that_does_not_load(host, recording, gather):
    host.library("580.159.04")
    host.pci("pci0000:00/0000:00:06.0", driver=None)
    gpu = gather(dict(recording("h200x2"), init_error=12))
    assert gpu["fault"]["text"] == (
        "NVIDIA GPUs on the PCI bus: 1, but libnvidia-ml.so.1 does not load; the kernel module is not loaded"
    )


def test_some_other_error(host, recording, gather):
    host.h200s(2)
    gpu = gather(dict(recording("h200x2"), init_error=999))
    assert fault_without_remedy(gpu) == {"code": "nvml_error", "text": "NVML does not start: Unknown Error"}
    assert gpu["count"] == 2


def test_gpu_lost(host, recording, gather):
    host.h200s(4)
    state = recording("h200x4")
    state["devices"][1]["handle_error"] = 15
    gpu = gather(state)
    assert fault_without_remedy(gpu) == {
        "code": "gpu_lost",
        "text": "GPU 1 (NVIDIA H200, GPU-00000002-0000-4000-8000-000000000002, 0000:00:07.0) does not answer: "
        "GPU is lost",
    }
    assert (gpu["source"], gpu["count"]) == ("nvml", 4)
    assert [device["health"]["ok"] for device in gpu["devices"]] == [True, False, True, True]
    assert gpu["devices"][1]["health"] == {"ok": False, "fit": False, "lost": True, "reasons": ["GPU is lost"]}
    assert gpu["devices"][1]["device_node"] == "/dev/nvidia1"
    assert gpu["topology"] == [
        ["X", "PHB", "NV18", "NV18"],
        ["PHB", "X", "PHB", "PHB"],
        ["NV18", "PHB", "X", "NV18"],
        ["NV18", "PHB", "NV18", "X"],
    ]


def test_gpu_lost_of_which_the_kernel_knows_nothing(host, recording, gather):
    host.kernel()
    state = recording("h200x2")
    state["devices"][0]["handle_error"] = 15
    gpu = gather(state)
    assert gpu["fault"]["text"] == "GPU 0 does not answer: GPU is lost"
    assert gpu["devices"][0]["pci_bus_id"] is None


def test_gpu_that_fails_otherwise(host, recording, gather):
    host.h200s(2)
    state = recording("h200x2")
    state["devices"][0]["handle_error"] = 17
    state["devices"][1]["handle_error"] = 999
    gpu = gather(state)
    assert gpu["fault"]["code"] == "nvml_error" and "; GPU 1 (" in gpu["fault"]["text"]
    assert [device["pci_bus_id"] for device in gpu["devices"]] == ["0000:00:06.0", "0000:00:07.0"]


@pytest.mark.parametrize(
    "function, step, read",
    [
        ("nvmlInit", "starting NVML", 0),
        ("nvmlDeviceGetHandleByIndex[2]", "reading GPU 2", 2),
        ("nvmlDeviceGetPowerUsage", "reading GPU 0", 0),
        ("nvmlDeviceGetTopologyCommonAncestor", "reading how the GPUs are linked", 4),
    ],
)
def test_hang(host, recording, hangs, function, step, read):
    host.h200s(4)
    gpu = hangs(dict(recording("h200x4"), hang=function))
    assert fault_without_remedy(gpu) == {
        "code": "driver_hang",
        "text": "the NVIDIA driver did not answer within 1 s while %s" % step,
    }
    assert gpu["count"] == 4
    assert gpu["source"] == ("nvml" if read else "procfs")
    assert [device["health"]["ok"] for device in gpu["devices"]] == read * [True] + (4 - read) * [False]
    assert [device["uuid"][:12] for device in gpu["devices"]] == ["GPU-0000000%d" % number for number in range(1, 5)]
    until = time.monotonic() + 10
    while _children() and time.monotonic() < until:
        # a killed child that has not been waited for ends some time after the signal
        time.sleep(0.01)
    assert not _children()


def test_hang_after_a_lost_gpu(host, recording, hangs):
    host.h200s(4)
    state = dict(recording("h200x4"), hang="nvmlDeviceGetHandleByIndex[2]")
    state["devices"][0]["handle_error"] = 15
    gpu = hangs(state)
    assert gpu["fault"]["code"] == "driver_hang"
    assert [device["pci_bus_id"] for device in gpu["devices"]] == ["0000:00:%02x.0" % number for number in range(6, 10)]
    assert [device["index"] for device in gpu["devices"]] == [0, 1, 2, 3]
    assert [device["health"]["ok"] for device in gpu["devices"]] == [False, True, False, False]
    assert gpu["devices"][0]["health"]["reasons"] == ["GPU is lost"]


def _children():
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and _is_our_child(int(pid))]


def _is_our_child(pid):
    """A living child of this process (a zombie is none)."""
    try:
        with open("/proc/%d/stat" % pid) as source:
            state, parent = source.read().rpartition(")")[2].split()[:2]
    except OSError:
        return False
    return int(parent) == os.getpid() and state != "Z"


def test_reading_that_breaks_off(host, monkeypatch):
    host.h200s(2)
    monkeypatch.setattr(facts.procfs, "kernel_driver", lambda root: {}["nothing"])
    gpu = facts.gather(root=str(host.root))
    assert fault_without_remedy(gpu) == {
        "code": "nvml_error",
        "text": "reading the GPUs broke off while reading /proc/driver/nvidia: KeyError: 'nothing'",
    }
    assert gpu["count"] == 2


def test_reading_that_breaks_off_before_its_first_step():
    gpu = facts.assemble([], "OSError: no", 10)
    assert gpu["fault"]["text"] == "reading the GPUs broke off: OSError: no"
    assert (gpu["count"], gpu["source"], gpu["driver"]["loaded"]) == (0, "procfs", False)


SMI = """#!/bin/sh
[ "$*" = "-q -x" ] || exit 1
%s
"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """`nvidia_smi(script)` puts a program of that name, and no pynvml, before the facts."""

    def install(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "nvidia-smi"
        program.write_text(SMI % script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", "%s:/usr/bin:/bin" % folder)
        monkeypatch.setattr(facts, "_binding", lambda python_paths: None)
        monkeypatch.setattr(trusted, "trusted", lambda path: True)  # /tmp is everybody's

    return install


def recorded_smi(name):
    path = os.path.join(os.path.dirname(__file__), "../../../fixtures/gpu/%s-nvidia-smi-q.xml" % name)
    return "exec cat %s" % os.path.abspath(path)


def test_nvidia_smi(host, nvidia_smi):
    host.h200s(4)
    nvidia_smi(recorded_smi("h200x4"))
    gpu = facts.gather(root=str(host.root))
    assert (gpu["source"], gpu["count"], gpu["fault"]) == ("nvidia-smi", 4, None)
    assert gpu["driver"]["version"] == "580.159.04" and gpu["driver"]["cuda_version"] == "13.0"
    assert gpu["driver"]["library_version"] == "580.159.04" and gpu["driver"]["nvml_version"] is None
    assert gpu["devices"][3]["cpu_affinity"] == "0-63"
    assert gpu["devices"][3]["device_node"] == "/dev/nvidia3"
    assert gpu["topology"][0] == ["X", "PHB", "PHB", "PHB"]


def test_nvidia_smi_may_warn_on_its_other_stream(host, nvidia_smi):
    host.h200s(2)
    nvidia_smi("echo 'warning: something' >&2; " + recorded_smi("h200x2"))
    assert facts.gather(root=str(host.root))["count"] == 2


def test_nvidia_smi_fails(host, nvidia_smi):
    host.h200s(2)
    host.kernel("570.86.15")
    nvidia_smi(
        "echo 'Failed to initialize NVML: Driver/library version mismatch'; echo NVML library version: 580.159 >&2; exit 18"
    )
    gpu = facts.gather(root=str(host.root))
    assert fault_without_remedy(gpu) == {
        "code": "driver_mismatch",
        "text": "the loaded kernel module is version 570.86.15, NVML's library version 580.159",
    }
    assert (gpu["source"], gpu["count"]) == ("procfs", 2)


@pytest.mark.parametrize(
    "named, lost", [("GPU0000:00:07.0", [False, True]), ("GPU1: 0000:00:07.0", [False, True]), ("a GPU", [True, True])]
)
def test_nvidia_smi_stops_at_a_lost_gpu(host, nvidia_smi, named, lost):
    host.h200s(2)
    nvidia_smi("echo 'Unable to determine the device handle for %s: GPU is lost.'; exit 15" % named)
    gpu = facts.gather(root=str(host.root))
    assert (gpu["source"], gpu["fault"]["code"]) == ("procfs", "gpu_lost")
    assert [device["health"]["lost"] for device in gpu["devices"]] == lost
    assert gpu["devices"][0]["unavailable"]["memory.total_bytes"] == "gpu_lost"


def test_nvidia_smi_finds_none(host, nvidia_smi):
    host.h200s(2)
    nvidia_smi("echo 'No devices were found'; exit 6")
    gpu = facts.gather(root=str(host.root))
    assert (gpu["count"], gpu["fault"], gpu["source"]) == (0, None, "nvidia-smi")


def test_nvidia_smi_prints_rubbish(host, nvidia_smi):
    host.h200s(2)
    nvidia_smi("echo rubbish")
    gpu = facts.gather(root=str(host.root))
    assert gpu["fault"]["code"] == "nvml_error" and "not XML" in gpu["fault"]["text"]


def test_nvidia_smi_hangs(host, nvidia_smi):
    host.h200s(2)
    nvidia_smi("exec tail -f /dev/null")
    gpu = facts.gather(timeout=1.0, root=str(host.root))
    assert fault_without_remedy(gpu) == {
        "code": "driver_hang",
        "text": "the NVIDIA driver did not answer within 1 s while running nvidia-smi -q -x",
    }
    assert gpu["count"] == 2


def test_procfs_alone(host, no_tools):
    host.h200s(2)
    gpu = facts.gather(root=str(host.root))
    assert (gpu["source"], gpu["count"], gpu["fault"]) == ("procfs", 2, None)
    assert gpu["devices"][0]["name"] == "NVIDIA H200"
    assert gpu["devices"][0]["unavailable"]["memory.total_bytes"] == (
        "neither pynvml nor nvidia-smi is installed on this host"
    )
    assert gpu["devices"][0]["health"] == {"ok": True, "fit": True, "lost": False, "reasons": []}


@pytest.mark.parametrize(
    "library, kernel, code",
    [(False, False, "library_missing"), (False, True, "library_missing"), (True, False, "driver_not_loaded")],
)
def test_procfs_alone_names_what_is_missing(host, no_tools, library, kernel, code):
    host.pci("pci0000:00/0000:00:06.0", driver=None)
    if library:
        host.library("580.159.04")
    if kernel:
        host.kernel()
    gpu = facts.gather(root=str(host.root))
    assert gpu["fault"]["code"] == code
    assert gpu["devices"][0]["health"]["ok"] is False


def test_rdma_devices_know_their_distance_to_each_gpu(host, recording, gather):
    host.kernel()
    switch = "pci0000:17/0000:17:01.0/0000:18:00.0"
    host.pci("%s/0000:19:00.0/0000:00:06.0" % switch, numa=0)
    host.pci("pci0000:97/0000:97:01.0/0000:00:07.0", numa=1)
    hca = host.pci("%s/0000:19:04.0/0000:1b:00.0" % switch, vendor="0x15b3", kind="0x020700", numa=0)
    host.rdma("mlx5_0", hca, node_type="1: CA", ports__1__state="4: ACTIVE")
    host.rdma("rxe0", None, node_type="1: CA")
    gpu = gather(recording("h200x2"))
    assert [device["gpu_distances"] for device in gpu["rdma"]] == [["PIX", "SYS"], [None, None]]
    assert "path" not in gpu["rdma"][0] and gpu["rdma"][0]["numa_node"] == 0


def test_single_gpu(host, recording, gather):
    host.h200s(1)
    gpu = gather(dict(recording("h200x2"), count=1))
    assert gpu["topology"] == [["X"]] and gpu["peer_to_peer"] == [["X"]]


def test_binding_of_a_given_folder_goes_first(recording, play, monkeypatch):
    monkeypatch.setattr(facts.sys, "path", list(facts.sys.path))
    folder = play(recording("h200x2"))
    monkeypatch.setitem(facts.sys.modules, "pynvml", object())
    assert facts._binding([]) is None
    found = facts._binding([folder])
    assert found.__file__.startswith(folder)
    monkeypatch.delitem(facts.sys.modules, "pynvml")


@pytest.mark.parametrize("text", ["raise RuntimeError('broken')", "import nothing_of_that_name", "x = 1"])
def test_binding_that_is_broken(tmp_path, monkeypatch, text):
    (tmp_path / "pynvml.py").write_text(text)
    monkeypatch.setattr(facts.sys, "path", list(facts.sys.path))
    monkeypatch.setattr(facts.sys, "dont_write_bytecode", True)
    monkeypatch.setitem(facts.sys.modules, "pynvml", None)
    assert facts._binding([str(tmp_path)]) is None
    facts.sys.modules["pynvml"] = None


def test_site_packages(tmp_path):
    for folder in ("lib/python3.11/site-packages", "lib64/python3.11/site-packages", "lib/python2.7/site-packages"):
        (tmp_path / "v[1]" / folder).mkdir(parents=True)
    assert facts.site_packages(str(tmp_path / "v[1]")) == [
        str(tmp_path / "v[1]/lib/python3.11/site-packages"),
        str(tmp_path / "v[1]/lib64/python3.11/site-packages"),
    ]
    assert facts.site_packages(str(tmp_path / "nothing")) == []


def test_reads_the_same_in_this_process(host, recording, play, monkeypatch):
    """What the child does, seen from inside: coverage does not follow a fork."""
    host.h200s(2)
    monkeypatch.setattr(facts.sys, "path", list(facts.sys.path))
    folder = play(recording("h200x2"))
    monkeypatch.setitem(facts.sys.modules, "pynvml", None)
    parts = []
    facts.read(lambda *part: parts.append(part), [folder], str(host.root))
    facts.sys.modules["pynvml"] = None
    assert facts.assemble(parts, None, 10) == facts.gather(10, [folder], str(host.root))


def test_reads_nvidia_smi_in_this_process(host, nvidia_smi):
    host.h200s(2)
    nvidia_smi(recorded_smi("h200x2"))
    for script, expected in (
        (recorded_smi("h200x2"), ["source", "step", "driver", "device", "device"]),
        ("exit 9", ["source", "step", "driver", "fault"]),
        ("echo No devices were found; exit 6", ["source", "step", "driver"]),
        ("echo rubbish", ["source", "step", "fault"]),
    ):
        (host.root.parent / "bin" / "nvidia-smi").write_text(SMI % script)
        told = []
        facts.read(lambda name, data, told=told: told.append(name), [], str(host.root))
        assert told[told.index("kernel_gpus") + 1 :] == expected


def test_nothing_is_read_where_nothing_is(host, no_tools):
    told = []
    facts.read(lambda name, data: told.append(name), [], str(host.root))
    assert told == ["step", "pci", "rdma", "library", "step", "kernel", "xids", "kernel_gpus"]
    host.pci("pci0000:00/0000:00:06.0")
    facts.read(lambda name, data: told.append(name), [], str(host.root))
    assert "source" not in told


def test_every_leaf_of_every_device_is_told_or_refused(host, recording, gather):
    host.h200s(2)
    for device in gather(recording("h200x2"))["devices"]:
        for path in model.LEAVES:
            value = device
            for name in path.split("."):
                value = value[name]
            assert (value is None) == (path in device["unavailable"]), path
