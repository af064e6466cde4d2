# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulator's tools: what apply writes, nvidia-smi's words, the overlay."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Iterator, Tuple

import pytest

TESTS = Path(__file__).resolve().parents[2]
FIXTURES = TESTS / "unit/fixtures/gpu"
STATES = sorted(path.name for path in (TESTS / "lab/nvml/states").iterdir())


@pytest.fixture(scope="module")
def apply() -> Any:
    return sys.modules["lab_nvml_apply"]


def sections(apply: Any, state: str, *faults: str) -> Tuple[dict, list]:
    found = apply.nvml_sim.parse(apply.compose(state, list(faults)))
    return found["system"], apply.nvml_sim.gpus(found)


# -- nvidia-smi --------------------------------------------------------------------------------------------------


def leaves(element: ElementTree.Element, path: str = "") -> Iterator[Tuple[str, str]]:
    for child in element:
        yield from leaves(child, "%s/%s" % (path, child.tag))
    if not len(element):
        yield path, (element.text or "").strip()


@pytest.mark.parametrize(("state", "count"), [("h200x2", 2), ("h200x4", 4)])
def test_report_is_the_recorded_one(gpu_host: Any, state: str, count: int) -> None:
    """Every field in its place; only the moment of the report differs."""
    gpu_host.apply(state)
    found = gpu_host.run("nvidia_smi.py", "-q", "-x").stdout
    recorded = (FIXTURES / ("%s-nvidia-smi-q.xml" % state)).read_text()
    told, expected = (list(leaves(ElementTree.fromstring(text))) for text in (found, recorded))
    assert len(expected) > 300 * count
    assert told[1:] == expected[1:] and told[0][0] == expected[0][0] == "/timestamp"
    unlike = [pair for pair in zip(found.splitlines(), recorded.splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(unlike) == 1


@pytest.mark.parametrize("state", ["h200x2", "h200x4"])
def test_query_is_the_recorded_one(gpu_host: Any, state: str) -> None:
    gpu_host.apply(state)
    recorded = (FIXTURES / ("%s-nvidia-smi-query.csv" % state)).read_text()
    names = [head.split(" [")[0] for head in recorded.splitlines()[0].split(", ")]
    told = gpu_host.run("nvidia_smi.py", "--query-gpu=" + ",".join(names), "--format=csv").stdout
    told, recorded = ([line.split(", ") for line in text.splitlines()] for text in (told, recorded))
    if "power.draw" in names:  # of its moment
        for row in told[1:] + recorded[1:]:
            assert row.pop(names.index("power.draw")).endswith(" W")
    assert told == recorded


def test_query_formats_and_absent_data(gpu_host: Any) -> None:
    gpu_host.apply("rtx4090x4")
    names = "index,name,memory.total,power.limit,serial,fan.speed,ecc.mode.current"
    done = gpu_host.run("nvidia_smi.py", "--query-gpu=" + names, "--format=csv,noheader,nounits", "-i", "1")
    assert done.stdout == "1, NVIDIA GeForce RTX 4090, 24564, 450.00, [N/A], 30, Disabled\n"
    assert gpu_host.run("nvidia_smi.py", "--query-gpu=nonsense").returncode == 2


def test_report_of_a_consumer_card_and_of_mig(gpu_host: Any) -> None:
    gpu_host.apply("rtx4090x4")
    gpu = ElementTree.fromstring(gpu_host.run("nvidia_smi.py", "-q", "-x").stdout).find("gpu")
    assert [
        gpu.findtext(path)
        for path in (
            "product_brand",
            "product_architecture",
            "serial",
            "fan_speed",
            "mig_mode/current_mig",
            "fabric/state",
            "temperature/gpu_temp_max_threshold",
            "pci/pci_sub_class",
        )
    ] == ["GeForce", "Ada Lovelace", "N/A", "30 %", "N/A", "N/A", "100 C", "0"]
    assert gpu.find("temperature/gpu_temp_max_tlimit_threshold") is None
    gpu_host.apply("a100x2-mig")
    gpu = ElementTree.fromstring(gpu_host.run("nvidia_smi.py", "-q", "-x").stdout).find("gpu")
    assert [mig.findtext("gpu_instance_id") for mig in gpu.findall("mig_devices/mig_device")] == ["1", "2"]
    listing = gpu_host.run("nvidia_smi.py", "-L").stdout.splitlines()
    assert listing[1] == "  MIG 4g.40gb        Device  0: (UUID: MIG-a1000001-0000-5000-8000-000000000001)"


def test_processes_and_memory_are_live(gpu_host: Any) -> None:
    gpu_host.apply("h200x2")
    holder = subprocess.Popen(["sleep", "600"])
    try:
        claim = gpu_host.run("nvidia-sim", "claim", "--pid", str(holder.pid), "--gpu", "1", "--mib", "500")
        assert claim.returncode == 0, claim.stderr
        gpu = ElementTree.fromstring(gpu_host.run("nvidia_smi.py", "-q", "-x").stdout).findall("gpu")[1]
        info = gpu.find("processes/process_info")
        assert [info.findtext(tag) for tag in ("pid", "type", "process_name", "used_memory")] == [
            str(holder.pid),
            "C",
            "sleep",
            "500 MiB",
        ]
        assert gpu.findtext("fb_memory_usage/used") == "500 MiB"
        apps = gpu_host.run("nvidia_smi.py", "--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader")
        assert apps.stdout == "GPU-00000002-0000-4000-8000-000000000002, %d, 500 MiB\n" % holder.pid
        state = gpu_host.run("nvidia-sim", "state").stdout
        assert state.splitlines()[0] == "applied: h200x2" and "pid %d C 500 MiB" % holder.pid in state
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may set the persistence mode")
def test_persistence_mode(gpu_host: Any) -> None:
    gpu_host.apply("rtx4090x4")
    done = gpu_host.run("nvidia_smi.py", "-pm", "1", "-i", "3")
    assert done.stdout == "Enabled persistence mode for GPU 00000000:61:00.0.\nAll done.\n"
    done = gpu_host.run("nvidia_smi.py", "-pm", "1", "-i", "3")
    assert done.stdout == "Persistence mode is already Enabled for GPU 00000000:61:00.0.\nAll done.\n"
    modes = gpu_host.run("nvidia_smi.py", "--query-gpu=persistence_mode", "--format=csv,noheader").stdout
    assert modes.split() == ["Disabled", "Disabled", "Disabled", "Enabled"]


@pytest.mark.parametrize(
    ("state", "row", "expected"),
    [
        ("h200x2", 1, ["GPU0", " X ", "NV18", "0-31", "0", "", "N/A"]),
        ("rtx4090x4", 2, ["GPU1", "NODE", " X ", "NODE", "NODE", "0-31", "0", "", "N/A"]),
        ("hgx-h100x8", 8, ["GPU7"] + ["NV18"] * 7 + [" X ", "56-111,168-223", "1", "", "N/A"]),
    ],
)
def test_topology(gpu_host: Any, state: str, row: int, expected: list) -> None:
    gpu_host.apply(state)
    assert gpu_host.run("nvidia_smi.py", "topo", "-m").stdout.splitlines()[row].split("\t") == expected


@pytest.mark.parametrize(
    ("faults", "status", "words"),
    [
        (["driver-mismatch"], 18, "NVML: Driver/library version mismatch\nNVML library version: 580.159"),
        (["driver-not-loaded"], 9, "couldn't communicate with the NVIDIA driver"),
        (["gpu-lost:1"], 15, "Unable to determine the device handle for GPU1: GPU is lost"),
    ],
)
@pytest.mark.parametrize("command", [["-L"], ["-q", "-x"], ["--query-gpu=uuid", "--format=csv"]])
def test_failures(gpu_host: Any, faults: list, status: int, words: str, command: list) -> None:
    gpu_host.apply("h200x4", *faults)
    done = gpu_host.run("nvidia_smi.py", *command)
    assert done.returncode == status and words in done.stdout and not done.stderr


def test_failure_without_library_or_visible_gpu(gpu_host: Any) -> None:
    gpu_host.apply("h200x2")
    for minor in (0, 1):
        gpu_host.node("nvidia%d" % minor).unlink()
    done = gpu_host.run("nvidia_smi.py", "-L")
    assert (done.returncode, done.stdout) == (6, "No devices were found\n")
    (gpu_host.root / "libnvidia-ml.so.1").unlink()
    done = gpu_host.run("nvidia_smi.py", "-L")
    assert done.returncode == 12 and "couldn't find libnvidia-ml.so" in done.stdout


# -- apply -------------------------------------------------------------------------------------------------------


def test_proc_tree_is_the_recorded_one(apply: Any) -> None:
    """As a host with two H200s has it, VBIOS of that host."""
    files = apply.proc_files(*sections(apply, "h200x2"))
    assert files["version"].startswith(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build"
    )
    assert files["gpus/0000:00:06.0/information"] == (
        "Model: \t\t NVIDIA H200\n"
        "IRQ:   \t\t 41\n"
        "GPU UUID: \t GPU-00000001-0000-4000-8000-000000000001\n"
        "Video BIOS: \t 96.00.cf.00.0c\n"
        "Bus Type: \t PCIe\n"
        "DMA Size: \t 52 bits\n"
        "DMA Mask: \t 0xfffffffffffff\n"
        "Bus Location: \t 0000:00:06.0\n"
        "Device Minor: \t 0\n"
        "GPU Firmware: \t 580.159.04\n"
        "GPU Excluded:\t No\n"
    )
    assert sorted(files) == ["gpus/0000:00:06.0/information", "gpus/0000:00:07.0/information", "version"]


def test_gpu_in_sysfs(apply: Any) -> None:
    files = apply.gpu_files(sections(apply, "h200x2")[1][1], driver=True)
    place = "tree/devices/pci0000:00/0000:00:07.0/"
    attributes = {name[len(place) :]: text.strip() for name, text in files.items() if isinstance(text, str)}
    assert attributes == {
        "vendor": "0x10de",
        "device": "0x2335",
        "subsystem_vendor": "0x10de",
        "subsystem_device": "0x18bf",
        "class": "0x030200",
        "numa_node": "-1",
        "local_cpulist": "0-31",
        "current_link_speed": "32.0 GT/s PCIe",
        "current_link_width": "16",
        "max_link_speed": "32.0 GT/s PCIe",
        "max_link_width": "16",
        "aer_dev_fatal": "TOTAL_ERR_FATAL 0",
        "aer_dev_nonfatal": "TOTAL_ERR_NONFATAL 0",
    }
    assert str(files["devices/0000:00:07.0"]) == "../" + place.rstrip("/")
    gpu = sections(apply, "hgx-h100x8")[1][7]
    files = apply.gpu_files(gpu, driver=False)
    place = "tree/devices/pci0000:d9/0000:d9:01.0/0000:da:00.0/0000:db:00.0/0000:df:00.0/"
    assert files[place + "numa_node"] == "1\n" and files[place + "local_cpulist"] == "56-111,168-223\n"
    assert not any("driver" in name for name in files)


@pytest.mark.parametrize("state", [name for name in STATES if name != "none"])
def test_sysfs_links_lead_somewhere(apply: Any, state: str, tmp_path: Path) -> None:
    found = apply.nvml_sim.parse(apply.compose(state, []))
    parts = [apply.gpu_files(gpu, driver=True) for gpu in apply.nvml_sim.gpus(found)]
    parts += [apply.rdma_files(hca) for hca in apply.nvml_sim.numbered(found, "rdma")]
    for files in parts:
        apply.replace(tmp_path, files)
        links = [path for path in tmp_path.rglob("*") if path.is_symlink()]
        assert len(links) == 3 and all(link.exists() for link in links)


def test_rdma_device_in_sysfs(apply: Any, tmp_path: Path) -> None:
    """One below the same switch as each GPU, found from its class as from the kernel's."""
    found = apply.nvml_sim.parse(apply.compose("hgx-h100x8", []))
    hca, gpu = apply.nvml_sim.numbered(found, "rdma")[2], apply.nvml_sim.gpus(found)[2]
    apply.replace(tmp_path, {**apply.rdma_files(hca), **apply.gpu_files(gpu, driver=True)})
    device = tmp_path / "class/mlx5_2"
    assert (device / "ports/1/rate").read_text() == "400 Gb/sec (4X NDR)\n"
    assert [entry.name for entry in (device / "device/net").iterdir()] == ["ibs2"]
    near, far = (path.resolve() for path in (tmp_path / "devices/0000:52:00.0", device / "device"))
    assert near.parents[1] == far.parents[1] and near.parent != far.parent


@pytest.mark.parametrize("state", [name for name in STATES if name != "none"])
def test_every_gpu_has_its_proc_files(apply: Any, state: str) -> None:
    system, gpus = sections(apply, state)
    assert len(apply.proc_files(system, gpus)) == len(gpus) + 1


def test_the_loaded_module_is_older_than_a_mismatched_library(apply: Any) -> None:
    version = apply.proc_files(*sections(apply, "h200x2", "driver-mismatch"))["version"]
    assert " 575.57.08 " in version


@pytest.mark.parametrize(
    ("state", "fault", "words"),
    [
        ("h200x3", [], "no state 'h200x3'; there are: a100x2-mig"),
        ("h200x2", ["melt"], "no fault 'melt'; there are: driver"),
        ("h200x2", ["gpu-lost:2"], "h200x2 has 2 GPUs"),
        ("none", ["gpu-lost"], "none has 0 GPUs"),
    ],
)
def test_apply_refuses_what_it_does_not_know(apply: Any, state: str, fault: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        apply.compose(state, fault)


# -- the overlay -------------------------------------------------------------------------------------------------


def test_overlay_is_built_once_per_source() -> None:
    command = [sys.executable, str(TESTS / "lab/nvml/build.py"), "path"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    folder = Path(first.strip())
    assert first == second
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    library = [name for name in names if name.endswith("libnvidia-ml.so.1")]
    assert len(library) == 1 and library[0].startswith("usr/lib/")
    assert [name for name in names if name not in library] == sorted(
        [
            "usr/bin/nvidia-smi",
            "usr/local/bin/nvidia-sim",
            "usr/local/lib/nvidia-sim/apply",
            "usr/local/lib/nvidia-sim/nvml_sim.py",
        ]
        + ["usr/local/lib/nvidia-sim/states/" + state for state in STATES]
    )
    assert os.access(folder / "usr/bin/nvidia-smi", os.X_OK)
