# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The facts of a host's GPUs: NVML, else nvidia-smi, else procfs and sysfs, joined into one picture."""

from __future__ import annotations

import glob
import os
import sys
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ..toolbox.errors import Failed, Refused
from . import child, faults, health, kernel_log, model, nvml, procfs, rdma, select, topology
from .checks import NOTE

#: Where the role gpu_host puts pynvml, on hosts whose own Python has none.
VENV = "/opt/gpufleet/venv"

#: Leaves that procfs and sysfs know too.
_ALSO_IN_KERNEL = (
    "uuid",
    "name",
    "pci_bus_id",
    "pci_device_id",
    "minor",
    "vbios_version",
    "gsp_firmware_version",
    "numa_node",
    "cpu_affinity",
)
#: Leaves of the PCI Express link that sysfs alone knows, and why they may be missing.
_OF_THE_LINK = {
    "uncorrectable_errors": "the kernel counts none (sysfs has no aer_dev_fatal)",
    "acs_redirects": model.SLOW,
}
_DRIVER = (
    "version",
    "library_version",
    "nvml_version",
    "cuda_version",
    "branch",
    "loaded",
    "open_kernel_module",
    "confidential_compute",
)


#: What report() has found in this process, for functions of the same check that run after it.
_reported: Optional[Dict[str, Any]] = None


def report(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The result of the module `gpu_facts`.

    :param params: the module's parameters.
    :param check_mode: makes no difference: facts are only read.
    :param warn: called with a fault of the GPUs.
    :raises Refused: an option is wrong.
    :raises Failed: GPUs are required and there are none that work.
    """
    global _reported
    timeout, venv = params["timeout"], params["venv"]
    if timeout <= 0:
        raise Refused("timeout is %g; expected a number of seconds above 0" % timeout)
    python_paths = site_packages(venv or VENV)
    if venv and not python_paths:
        raise Refused(
            "venv %s is not a virtual environment: there is no lib/python3*/site-packages in it; create it and "
            "install nvidia-ml-py, or leave the option out" % venv
        )
    if venv:
        _refuse_code_of_others(venv, python_paths)
    gpu = _reported = gather(timeout=timeout, python_paths=python_paths)
    gpu["findings"][:0] = health.missing(gpu["count"], params.get("expected_count") or 0)
    fault = gpu["fault"]
    trouble = "GPU fault %s: %s. What to do: %s" % (fault["code"], fault["text"], fault["remedy"]) if fault else None
    if params["required"] and (trouble or not gpu["count"]):
        none = "GPUs are required, but this host has none: no NVIDIA GPU on its PCI bus, none known to a driver"
        raise Failed(trouble or none, {"changed": False, "ansible_facts": {"gpu": gpu}})
    if trouble:
        warn(trouble)
    for finding in gpu["findings"]:
        # what else keeps a GPU from working is said by the services that leave it out
        if finding["check"] == health.MISSING or (finding["effect"] == NOTE and health.matters(finding)):
            line, remedy = finding["line"], finding["remedy"]
            warn(line if line.endswith(remedy) else "%s. What to do: %s" % (line, remedy))
    return {"changed": False, "ansible_facts": {"gpu": gpu}}


def _refuse_code_of_others(venv: str, python_paths: Sequence[str]) -> None:
    from ..toolbox.trusted import trusted

    for path in python_paths:
        if not trusted(os.path.abspath(path)):
            raise Refused(
                "venv %s: others than %s may change %s, and would have their code run with these rights; use an "
                "environment that only root may change, such as %s, or leave the option out"
                % (venv, "root" if os.geteuid() == 0 else "root and yourself", path, VENV)
            )


def gather_for(timeout: float) -> Dict[str, Any]:
    """The facts as they are now, for other modules, read with the collection's own pynvml where it is installed."""
    return gather(timeout=timeout, python_paths=site_packages(VENV))


def first_look(timeout: float) -> Dict[str, Any]:
    """The facts that report() has just found in this process, else those of gather_for()."""
    return _reported or gather_for(timeout)


def gather(
    timeout: float = 10.0, python_paths: Sequence[str] = (), root: str = "/", thorough: bool = False
) -> Dict[str, Any]:
    """Everything known of this host's GPUs, RDMA devices and their topology.

    Reads in a child process with a time limit: a driver that hangs costs `timeout` seconds, never more, and what was
    read before it hung is kept.

    :param timeout: seconds for everything, default 10.
    :param python_paths: folders searched for `pynvml` before the interpreter's own, such as site_packages() gives.
    :param root: folder that holds `proc` and `sys`; another one than `/` in tests.
    :param thorough: whether to read what takes long, too.
    :returns: the facts as the gpu_facts module documents them; trouble with GPUs stands under `fault`, nothing is
        raised for it.
    """
    parts, ended = child.run(lambda emit: read(emit, python_paths, root, thorough), timeout)
    return assemble(parts, ended, timeout)


def site_packages(venv: str) -> List[str]:
    """The folders in which a virtual environment keeps its modules; none when it is not a virtual environment."""
    return sorted(glob.glob(os.path.join(glob.escape(venv), "lib*", "python3*", "site-packages")))


def read(emit: Callable[[str, Any], None], python_paths: Sequence[str], root: str, thorough: bool = False) -> None:
    """Read all sources, part by part, the harmless ones first: the driver may hang at any touch.

    :param emit: takes `step`, `pci`, `rdma`, `library`, `kernel`, `xids`, `kernel_gpus`, `source` and the parts of
        nvml.read().
    """
    emit("step", "reading sysfs")
    pci = procfs.pci_gpus(root, thorough)
    emit("pci", pci)
    emit("rdma", rdma.read(root))
    library = procfs.library(root)
    emit("library", library)
    emit("step", "reading /proc/driver/nvidia")
    kernel = procfs.kernel_driver(root)
    emit("kernel", kernel)
    emit("xids", kernel_log.read(root))
    emit("kernel_gpus", procfs.kernel_gpus(root))
    if not (pci or kernel["loaded"] or library["installed"]):
        return
    pynvml = _binding(python_paths)
    if pynvml is not None:
        emit("source", "nvml")
        nvml.read(pynvml, emit, root, thorough)
    else:
        _read_with_smi(emit, root)


def _binding(python_paths: Sequence[str]) -> Any:
    """NVIDIA's binding, or None where there is none that works."""
    if python_paths:
        sys.path[:0] = list(python_paths)
        sys.modules.pop("pynvml", None)  # the caller's own choice goes before what is already loaded
    try:
        import pynvml
    except Exception:  # a broken installation may raise anything at import
        return None
    return pynvml if hasattr(pynvml, "nvmlInit") and hasattr(pynvml, "NVMLError") else None


def _read_with_smi(emit: Callable[[str, Any], None], root: str) -> None:
    # only here: hosts with pynvml need neither the XML parser nor a subprocess
    import shutil
    import subprocess

    from ..toolbox.text import printable
    from . import smi

    program = shutil.which("nvidia-smi", path=":".join(_folders_of_programs()))
    if not program:
        return
    emit("source", "nvidia-smi")
    emit("step", "running nvidia-smi -q -x")
    done = subprocess.run(
        [program, "-q", "-x"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False
    )
    text = printable(done.stdout.decode("utf-8", "replace"))  # a process may have a name that is not valid XML
    if done.returncode != 0:
        text += printable(done.stderr.decode("utf-8", "replace"))  # it prints errors on either
        emit("driver", {"library_version": smi.library_version(text)})
        fault = smi.fault_of_failure(done.returncode, text)
        if fault:
            emit("fault", fault)
        return
    try:
        for name, data in smi.parse(text, root):
            emit(name, data)
    except ValueError as error:
        emit("fault", faults.fault(faults.NVML_ERROR, str(error)))


def _folders_of_programs() -> List[str]:
    """The folders to search for programs: none into which others than root may write, as a login's PATH may have."""
    from ..toolbox.trusted import trusted

    found = []
    for folder in [*os.environ.get("PATH", "").split(":"), "/usr/bin", "/usr/lib/wsl/lib"]:
        try:
            if trusted(folder):
                found.append(folder)
        except OSError:  # there is no such folder
            continue
    return found


def assemble(parts: Sequence[Tuple[str, Any]], ended: Optional[str], timeout: float) -> Dict[str, Any]:
    """Join the parts of read() into the facts. Pure.

    :param parts: (name, data) in the order of reading; may stop anywhere.
    :param ended: why the reading did not finish: `"timeout"`, the text of an error, or None.
    :param timeout: the limit, for the message.
    """
    answers: Dict[str, Any] = {"pci": [], "rdma": [], "kernel_gpus": [], "xids": []}
    answers.update(library={}, kernel={}, driver={})
    read_devices, mig_devices, pairs, link_ends = [], [], {}, {}
    for name, data in parts:
        if name == "device":
            read_devices.append(data)
        elif name == "mig_device":
            mig_devices.append(data)
        elif name == "link_ends":
            link_ends[data[0]] = data[1]
        elif name == "pairs":
            pairs = {(low, high): states for low, high, states in data}
        else:
            answers[name] = data

    in_kernel = _known_to_kernel(answers["pci"], answers["kernel_gpus"])
    fault = _host_fault(answers, in_kernel, ended, timeout)
    devices = [device for device, gone in read_devices]
    silent = {device["index"]: gone for device, gone in read_devices if gone}
    found: List[Tuple[Optional[int], Dict[str, str]]] = list(silent.items())
    source = answers.get("source")
    if not devices and (fault or not source or "fault" in answers):
        source = "procfs"
    if fault or source == "procfs":
        unread = _unread(devices, in_kernel, fault)
        devices.extend(unread)
        if fault:
            meant = {device["index"]: fault for device in _meant(fault, unread)}
            silent.update(meant)
            found += meant.items() if fault["code"] == faults.GPU_LOST else [(None, fault)]
    _complete(devices, in_kernel)
    for device in devices:
        gone = silent.get(device["index"])
        device["health"] = health.health(device, gone["text"] if gone else None)

    places = [in_kernel.get(device["pci_bus_id"]) for device in devices]
    # what NVML does not report (for GPUs that do not answer, and for all without pynvml) is read from sysfs
    matrices = zip(topology.from_nvml(devices, pairs, link_ends), topology.from_sysfs(places))
    return {
        "source": source,
        "count": len(devices),
        "fault": fault or _lost_gpus(read_devices),
        "driver": _driver(answers),
        "devices": devices,
        "findings": health.findings(devices, answers["xids"], found),
        "topology": [[one or other for one, other in zip(*rows)] for rows in matrices],
        "peer_to_peer": topology.peer_to_peer(devices, pairs),
        "rdma": [_rdma_device(device, places) for device in answers["rdma"]],
        "mig_devices": mig_devices,
    }


def _known_to_kernel(pci: List[Dict[str, Any]], kernel_gpus: List[Dict[str, Any]]) -> Dict[str, Dict[str, Any]]:
    """GPUs by PCI bus id, in its order, with what the PCI bus and the kernel module say of each."""
    found = {}  # type: Dict[str, Dict[str, Any]]
    for gpu in pci + kernel_gpus:
        found.setdefault(gpu["pci_bus_id"], {"path": [], "numa_node": None, "cpu_affinity": None}).update(gpu)
    return {bus_id: found[bus_id] for bus_id in sorted(found)}


def _host_fault(
    answers: Dict[str, Any], in_kernel: Dict[str, Any], ended: Optional[str], timeout: float
) -> Optional[Dict[str, str]]:
    """What is wrong with the host as a whole, or None."""
    while_reading = " while %s" % answers["step"] if "step" in answers else ""
    if ended == "timeout":
        return faults.fault(
            faults.DRIVER_HANG, "the NVIDIA driver did not answer within %g s%s" % (timeout, while_reading)
        )
    if ended:
        return faults.fault(faults.NVML_ERROR, "reading the GPUs broke off%s: %s" % (while_reading, ended))
    fault = answers.get("fault")
    installed, loaded = answers["library"].get("installed"), answers["kernel"].get("loaded")
    if fault is None and "source" not in answers and in_kernel:
        if not installed:
            fault = faults.fault(faults.LIBRARY_MISSING, "")
        elif not loaded:
            fault = faults.fault(faults.DRIVER_NOT_LOADED, "")
    if fault is None:
        return None
    if not in_kernel and fault["code"] in (faults.DRIVER_NOT_LOADED, faults.LIBRARY_MISSING):
        return None  # a host without GPUs, with or without the driver's user space
    if fault["code"] == faults.DRIVER_MISMATCH:
        fault["text"] = "the loaded kernel module is version %s, NVML's library version %s" % (
            answers["kernel"].get("version") or "unknown",
            _library_version(answers) or "unknown",
        )
    elif fault["code"] == faults.DRIVER_NOT_LOADED:
        held = sorted({gpu["kernel_driver"] for gpu in in_kernel.values() if gpu.get("kernel_driver")} - {"nvidia"})
        fault["text"] = "NVIDIA GPUs on the PCI bus: %d, but the kernel module is not loaded%s" % (
            len(in_kernel),
            "; %s holds them" % ", ".join(held) if held else "",
        )
    elif fault["code"] == faults.LIBRARY_MISSING:
        fault["text"] = "NVIDIA GPUs on the PCI bus: %d, but libnvidia-ml.so.1 %s; the kernel module %s" % (
            len(in_kernel),
            "does not load" if installed else "is not installed",
            "is loaded, version %s" % answers["kernel"].get("version") if loaded else "is not loaded",
        )
    return fault


def _unread(
    devices: List[Dict[str, Any]], in_kernel: Dict[str, Any], fault: Optional[Dict[str, str]]
) -> List[Dict[str, Any]]:
    """Devices for the GPUs that only the kernel knows of, in the order of the PCI bus."""
    reason = fault["code"] if fault else "neither pynvml nor nvidia-smi is installed on this host"
    answered = [device["pci_bus_id"] for device in devices]
    left = [bus_id for bus_id in in_kernel if bus_id not in answered]
    found = []  # type: List[Dict[str, Any]]
    for bus_id in left[answered.count(None) :]:  # the first of them are those that do not even report their bus id
        device = model.blank(len(devices) + len(found), reason)
        model.put(device, "pci_bus_id", bus_id)
        found.append(device)
    return found


def _meant(fault: Dict[str, str], unread: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The unread GPUs that a fault is about: nvidia-smi stops at a lost GPU, but names it by its PCI bus id."""
    named = [device for device in unread if device["pci_bus_id"] in fault["text"].lower()]
    return named if named and fault["code"] == faults.GPU_LOST else unread


def _complete(devices: List[Dict[str, Any]], in_kernel: Dict[str, Dict[str, Any]]) -> None:
    """Fill in, from procfs and sysfs, what a device's own source did not report."""
    nameless = [device for device in devices if not device["pci_bus_id"]]
    taken = {device["pci_bus_id"] for device in devices}
    left = [bus_id for bus_id in in_kernel if bus_id not in taken]
    # GPUs that do not even report their bus id are those left over, in the order of the bus, if the numbers match
    if len(nameless) == len(left):
        for device, bus_id in zip(nameless, left):
            model.put(device, "pci_bus_id", bus_id)
    for device in devices:
        gpu = in_kernel.get(device["pci_bus_id"], {})
        for leaf in _ALSO_IN_KERNEL:
            if device[leaf] is None and gpu.get(leaf) is not None:
                model.put(device, leaf, gpu[leaf])
        for leaf, missing in _OF_THE_LINK.items():
            if gpu.get(leaf) is not None:
                model.put(device, "pcie." + leaf, gpu[leaf])
            else:
                model.refuse(device, "pcie." + leaf, missing)
        if device["minor"] is not None:
            model.put(device, "device_node", "/dev/nvidia%d" % device["minor"])
        else:
            model.refuse(device, "device_node", device["unavailable"]["minor"])
        if gpu and device["numa_node"] is None:
            model.refuse(device, "numa_node", "the firmware assigns the GPU to no NUMA node (sysfs has -1)")


def _lost_gpus(read_devices: Sequence[Tuple[Any, Any]]) -> Optional[Dict[str, str]]:
    """The fault of a host on which single GPUs do not answer, or None."""
    gone = [(device, fault) for device, fault in read_devices if fault]
    if not gone:
        return None
    text = "; ".join("GPU %s does not answer: %s" % (select.label(device), fault["text"]) for device, fault in gone)
    codes = {fault["code"] for device, fault in gone}
    return faults.fault(faults.GPU_LOST if faults.GPU_LOST in codes else faults.NVML_ERROR, text)


def _driver(answers: Dict[str, Any]) -> Dict[str, Any]:
    driver = dict.fromkeys(_DRIVER)
    driver.update(answers["kernel"])
    driver.update((key, value) for key, value in answers["driver"].items() if value is not None)
    driver["loaded"] = bool(answers["kernel"].get("loaded") or answers["driver"].get("version"))
    driver["library_version"] = _library_version(answers)
    return driver


def _library_version(answers: Dict[str, Any]) -> Optional[str]:
    """Of NVML's library: out of its own version, which is CUDA's major number and the driver's, else of its file."""
    version = answers["driver"].get("nvml_version")
    if version:
        return version.partition(".")[2]
    return answers["driver"].get("library_version") or answers["library"].get("version")


def _rdma_device(device: Dict[str, Any], places: Sequence[Optional[Dict[str, Any]]]) -> Dict[str, Any]:
    shown = {key: value for key, value in device.items() if key != "path"}
    shown["gpu_distances"] = [topology.distance(place, device) for place in places]
    return shown
