# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated GPUs of a lab host, for the programs that stand in for real ones.

``claim`` and ``release`` say what memory a process holds; NVML shows it to everybody at once. ``Nvml`` asks the
library as any program would: a process sees only the GPUs whose device node it may open.
Paths have the prefix ``NVIDIA_SIM_ROOT`` (default none), as in the library.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import tempfile
from pathlib import Path

MIB = 1 << 20


def path(name: str) -> Path:
    """A path of the simulator below NVIDIA_SIM_ROOT."""
    return Path(os.environ.get("NVIDIA_SIM_ROOT", "") + name)


def state_file() -> Path:
    return path("/etc/nvidia-sim/state")


def claims_directory() -> Path:
    return path("/dev/shm/nvidia-sim/claims")


def parse(text: str) -> dict:
    """The sections of a state: {"system": {key: value}, "devices": …, "device 0": …}; the last line of a key wins."""
    sections, current = {"system": {}, "devices": {}}, "system"
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            current = line.strip("[]")
            sections.setdefault(current, {})
        elif " =" in line and not line.startswith("#"):
            key, _, value = line.partition(" =")
            sections[current][key.strip()] = value.strip()
    return sections


def numbered(sections: dict, kind: str) -> list:
    """The sections ``[kind 0]``, ``[kind 1]``… in their order."""
    names = [name for name in sections if re.fullmatch(kind + r" \d+", name)]
    return [sections[name] for name in sorted(names, key=lambda name: int(name.split()[1]))]


def gpus(sections: dict) -> list:
    """Every GPU of a state with all that holds for it: [{key: value}]."""
    return [dict(sections["devices"], **own) for own in numbered(sections, "device")]


def words(value: str) -> list:
    """The words of a value, quotes taken off."""
    return shlex.split(value)


def cpulist(masks: list) -> str:
    """64-bit masks as Linux writes a set of CPUs or nodes: 0-31,64-95."""
    numbers = [64 * i + bit for i, mask in enumerate(masks) for bit in range(64) if mask >> bit & 1]
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ",".join(str(a) if a == b else "%d-%d" % (a, b) for a, b in zip(starts, ends))


# -- what a process holds ------------------------------------------------------------------------------------------


def claims(pid: int) -> dict:
    """What a process holds: {(UUID, "C" or "G"): bytes}."""
    try:
        lines = (claims_directory() / str(pid)).read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {(uuid, kind): int(size) for uuid, size, kind in map(str.split, lines)}


def _write(pid: int, held: dict) -> None:
    directory = claims_directory()
    directory.mkdir(parents=True, exist_ok=True)
    if directory.stat().st_uid == os.geteuid():
        directory.chmod(0o1777)  # everybody's processes hold memory
    handle, name = tempfile.mkstemp(prefix=".", dir=directory)
    with os.fdopen(handle, "w") as stream:
        stream.writelines("%s %d %s\n" % (uuid, size, kind) for (uuid, kind), size in held.items())
    os.chmod(name, 0o644)
    os.rename(name, directory / str(pid))


def claim(pid: int, gpu, size: int, kind: str = "C") -> None:
    """Let a process hold memory of a GPU, in place of what it held of it before.

    Args:
        pid: the process; when it is dead the claim counts no more.
        gpu: UUID, or index among the GPUs this process sees.
        size: bytes.
        kind: "C" compute, "G" graphics.
    Raises:
        NvmlError: no such GPU.
    """
    uuid = gpu if isinstance(gpu, str) and not gpu.isdigit() else Nvml().device(int(gpu)).uuid
    held = claims(pid)
    held[uuid, kind] = size
    _write(pid, held)


def release(pid: int) -> None:
    """Give back all a process holds."""
    (claims_directory() / str(pid)).unlink(missing_ok=True)


# -- the library ---------------------------------------------------------------------------------------------------


class NvmlError(Exception):
    """NVML refused: ``code`` is its number, the text NVML's own."""

    def __init__(self, code: int, text: str):
        super().__init__(text)
        self.code = code


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class _Memory(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint)] + [
        (name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")
    ]


class Device:
    """A GPU, or a MIG device, that this process sees."""

    def __init__(self, nvml: Nvml, handle: ctypes.c_void_p):
        self._nvml, self.handle = nvml, handle

    def call(self, function: str, *arguments) -> None:
        self._nvml.call(function, self.handle, *arguments)

    def get(self, key: str) -> list:
        """The words that the state has for a function, NvmlError where NVML would refuse."""
        return self._nvml.get(key, self.handle)

    @property
    def uuid(self) -> str:
        return self.get("nvmlDeviceGetUUID")[0]

    @property
    def index(self) -> int:
        index = ctypes.c_uint()
        self.call("nvmlDeviceGetIndex", ctypes.byref(index))
        return index.value

    @property
    def name(self) -> str:
        return self.get("nvmlDeviceGetName")[0]

    @property
    def minor(self) -> int:
        """N of /dev/nvidiaN."""
        return int(self.get("nvmlDeviceGetMinorNumber")[0])

    @property
    def pci_bus_id(self) -> str:
        """As in sysfs, 0000:00:06.0."""
        return self.get("nvmlDeviceGetPciInfo_v3")[0].lower()

    @property
    def memory(self) -> dict:
        """{"total", "reserved", "free", "used"} in bytes; total is the sum of the others."""
        memory = _Memory(version=ctypes.sizeof(_Memory) | 2 << 24)
        self.call("nvmlDeviceGetMemoryInfo_v2", ctypes.byref(memory))
        return {name: getattr(memory, name) for name, _ in memory._fields_[1:]}

    @property
    def processes(self) -> list:
        """[(pid, bytes, "C" or "G")]."""
        found = []
        for kind, function in (("C", "Compute"), ("G", "Graphics")):
            count, room = ctypes.c_uint(1024), (_Process * 1024)()
            self.call("nvmlDeviceGet%sRunningProcesses_v3" % function, ctypes.byref(count), room)
            found += [(process.pid, process.bytes, kind) for process in room[: count.value]]
        return found

    @property
    def mig_devices(self) -> list:
        found = []
        try:
            slots = int(self.get("nvmlDeviceGetMaxMigDeviceCount")[0])
        except NvmlError:
            slots = 0  # a card that knows no MIG
        for i in range(slots):
            handle = ctypes.c_void_p()
            try:
                self.call("nvmlDeviceGetMigDeviceHandleByIndex", i, ctypes.byref(handle))
                found.append(Device(self._nvml, handle))
            except NvmlError:
                pass  # an empty slot
        return found


class Nvml:
    """The library, loaded and initialised.

    Raises:
        NvmlError: nvmlInit refused; code 12 where there is no libnvidia-ml.so.1.
    """

    def __init__(self):
        try:
            self._library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            raise NvmlError(12, "NVML Shared Library Not Found") from None
        self._library.nvmlErrorString.restype = ctypes.c_char_p
        self.call("nvmlInit_v2")

    def call(self, function: str, *arguments) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise NvmlError(code, self._library.nvmlErrorString(code).decode())

    def get(self, key: str, handle=None) -> list:
        text = ctypes.create_string_buffer(16384)
        self.call("nvidiaSimValue", handle, key.encode(), text, len(text))
        return words(text.value.decode())

    @property
    def count(self) -> int:
        count = ctypes.c_uint()
        self.call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return count.value

    def device(self, index: int) -> Device:
        handle = ctypes.c_void_p()
        self.call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
        return Device(self, handle)

    @property
    def devices(self) -> list:
        return [self.device(index) for index in range(self.count)]
