#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn a recording of real GPUs into a state of the simulator.

``convert.py NVML.json NVIDIA-SMI.xml > states/NAME`` reads what pynvml's functions returned on real hardware
(``{"system": {call: outcome}, "devices": [{call: outcome}]}``, an outcome being ``{"ok": value}`` or
``{"nvml_error": code}``) and the same host's ``nvidia-smi -q -x``, and writes what the C functions below them
must have written. How a Python value lies in C is not written down here: pynvml itself is run over a library that
fills the ctypes objects pynvml hands it, and what it then returns is held to the recorded value.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter

import nvidia_smi
import pynvml


class Mismatch(Exception):
    """pynvml does not return the recorded value whatever is put into its ctypes objects."""


def members(structure):
    """The names and types of a ctypes structure's fields."""
    return {field[0]: field[1] for field in structure._fields_}


def plain(value):
    """A pynvml value as JSON would hold it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, ctypes.Structure):
        return {name: plain(getattr(value, name)) for name in members(value)}
    if isinstance(value, (ctypes.Array, list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, ctypes._SimpleCData):
        return value.value
    if isinstance(value, pynvml.nvmlFriendlyObject):
        return {name: plain(item) for name, item in vars(value).items()}
    return value


def outputs(arguments):
    """The ctypes objects a call may write to."""
    for argument in arguments:
        target = getattr(argument, "_obj", argument)
        by_value = target is argument and not isinstance(argument, ctypes.Array)
        if not by_value:
            yield target


def fill(target, value):
    """Put a recorded value into a ctypes object."""
    if isinstance(target, ctypes.Structure):
        if not isinstance(value, dict):
            names = [name for name in members(target) if name not in ("version", "sensorType", "fan")]
            value = dict(zip(names, value if isinstance(value, list) else [value], strict=False))
        for name, item in value.items():
            if hasattr(target, name):
                kind = members(target)[name]
                if issubclass(kind, (ctypes.Structure, ctypes.Array)) and not isinstance(item, str):
                    fill(getattr(target, name), item)
                else:
                    setattr(target, name, item.encode() if isinstance(item, str) else item)
    elif isinstance(target, ctypes.Array):
        if isinstance(value, str):
            target.value = value.encode()
        else:
            for i, item in enumerate(value):
                if isinstance(target[i], ctypes.Structure):
                    fill(target[i], item)
                else:
                    target[i] = item
    else:
        target.value = value


def tokens(target):
    """What a ctypes object holds, in the words of a state."""
    if isinstance(target, ctypes.Structure):
        for name, kind in members(target).items():
            if name == "version":
                continue
            if issubclass(kind, ctypes.Array) and kind._type_ is ctypes.c_char:
                yield json.dumps(plain(getattr(target, name)))
            else:
                item = getattr(target, name)
                yield from tokens(item) if isinstance(item, (ctypes.Structure, ctypes.Array)) else [str(item)]
    elif isinstance(target, ctypes.Array):
        if target._type_ is ctypes.c_char:
            yield json.dumps(target.value.decode())
        else:
            for item in target:
                yield from tokens(item) if isinstance(item, (ctypes.Structure, ctypes.Array)) else [str(item)]
    else:
        yield str(target.value)


class Library:
    """Stands where pynvml expects libnvidia-ml: takes a value and notes which C function was to give it."""

    def __init__(self, value):
        self.value = value
        self.function = None
        self.targets = []

    def __getattr__(self, function):
        def call(*arguments):
            value = self.value
            self.function = function
            self.targets = targets = list(outputs(arguments))
            if function == "nvmlDeviceGetAccountingBufferSize" and isinstance(value, list):
                return pynvml.NVML_SUCCESS  # the room that nvmlDeviceGetAccountingPids asks for first
            if function == "nvmlDeviceGetSupportedPerformanceStates":
                self.targets = [(ctypes.c_uint * len(value))(*value)]
                value = [value + [pynvml.NVML_PSTATE_UNKNOWN] * (len(targets[0]) - len(value))]
            elif isinstance(value, list) and (arguments[-1] is None or function == "nvmlDeviceGetAccountingPids"):
                targets[0].value, self.targets = len(value), []
                return pynvml.NVML_ERROR_INSUFFICIENT_SIZE if value else pynvml.NVML_SUCCESS
            elif isinstance(value, list) and isinstance(targets[-1], ctypes.Array):
                self.targets = targets = targets[-1:]  # the array after its count
                value = [value]
            elif len(targets) == 1 and (isinstance(targets[0], ctypes.Structure) or not isinstance(value, list)):
                value = [value]
            elif not isinstance(value, list):
                value = [value] * len(targets)  # pynvml returns one of several
            for target, item in zip(targets, value, strict=False):
                fill(target, item)
            return pynvml.NVML_SUCCESS

        return call


LIVE = ("nvmlDeviceGetIndex", "nvmlDeviceIsMigDeviceHandle", "nvmlDeviceGetDeviceHandleFromMigDeviceHandle")
DEFAULT = ("!%d" % pynvml.NVML_ERROR_NOT_SUPPORTED, "!%d" % pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
PEER = ("nvmlDeviceGetTopologyCommonAncestor", "nvmlDeviceGetP2PStatus")


def call(recorded, handles, device=None):
    """Call a function of pynvml as the recording did.

    Args:
        recorded: the recorded call, ``name`` or ``name[1,2]``: what follows the handle, a peer by its number.
        handles: every device's handle.
        device: whose answer it is; None for a function of the system.
    """
    name, arguments = split(recorded)
    if name == "nvmlDeviceGetMemoryInfo_v2":
        return pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)
    if name in PEER:
        arguments[0] = handles[arguments[0]]
    return getattr(pynvml, name)(*([] if device is None else [device]), *arguments)


def split(recorded):
    """``name[1,2]`` as its name and numbers."""
    name, _, rest = recorded.partition("[")
    return name, [int(number) for number in re.findall(r"\d+", rest)]


def key(function, arguments):
    """The state's key of a C function: the affinity functions' first number is only a buffer's size."""
    if function.endswith("Affinity"):
        arguments = arguments[1:]
    if function == "nvmlDeviceGetFanSpeedRPM":
        arguments = [0]  # pynvml asks for the first fan
    return function + ("[%s]" % ",".join(map(str, arguments)) if arguments else "")


def lines(recorded):
    """The state's lines of one device or of the system: {key: value}, less what the library answers without one."""
    found, handle = {}, pynvml.c_nvmlDevice_t()
    for entry, outcome in recorded.items():
        name, arguments = split(entry)
        device = None if name.startswith("nvmlSystem") else handle
        value = outcome.get("ok")
        library = pynvml.nvmlLib = Library(value)
        pynvml._nvmlGetFunctionPointer_cache.clear()
        if "ok" in outcome:
            result = plain(call(entry, [handle] * 64, device))
            if result != value:
                raise Mismatch("%s: recorded %r, pynvml gives %r" % (entry, value, result))
            text = " ".join(word for target in library.targets for word in tokens(target))
        else:
            text = "!%d" % outcome["nvml_error"]
            library.value = 0
            try:
                call(entry, [handle] * 64, device)
            except (AttributeError, TypeError, ValueError, pynvml.NVMLError):
                pass  # only the C function's name was wanted
        place = key(library.function or name, arguments)
        if found.get(place, text) != text:
            raise Mismatch("%s: %s is both %s and %s" % (entry, place, found[place], text))
        found[place] = text
    return {place: text for place, text in found.items() if place not in LIVE and text not in DEFAULT}


def words(text):
    """The number in nvidia-smi's ``35 C``, or None where it says N/A."""
    match = re.match(r"-?[\d.]+", text or "")
    return match and match.group()


def from_smi(gpu):
    """What nvidia-smi's report tells of functions that the NVML recording left out."""

    def number(path, scale=1):
        text = words(gpu.findtext(path))
        return None if text is None else str(round(float(text) * scale))

    fields = {  # field id: (value type, value); types 1 unsigned, 4 signed
        82: (1, number("temperature/memory_temp")),
        185: (1, number("gpu_power_readings/average_power_draw", 1000)),
        186: (1, number("gpu_power_readings/instant_power_draw", 1000)),
        193: (4, number("temperature/gpu_temp_max_tlimit_threshold")),
        194: (4, number("temperature/gpu_temp_slow_tlimit_threshold")),
        195: (4, number("temperature/gpu_temp_max_mem_tlimit_threshold")),
        196: (4, number("temperature/gpu_temp_max_gpu_tlimit_threshold")),
        230: (1, "0" if gpu.findtext("gpu_recovery_action") == "None" else None),
    }
    found = {"nvmlDeviceGetFieldValues[%d]" % field: "%d %s" % pair for field, pair in fields.items() if pair[1]}
    temperature = number("temperature/gpu_temp")
    found["nvmlDeviceGetTemperature[0]"] = temperature
    found["nvmlDeviceGetTemperatureV[0]"] = temperature
    found["nvmlDeviceGetPcieThroughput[0]"] = number("pci/tx_util")
    found["nvmlDeviceGetPcieThroughput[1]"] = number("pci/rx_util")
    for clock, tag in enumerate(("graphics_clock", "sm_clock", "mem_clock", "video_clock")):
        found["nvmlDeviceGetApplicationsClock[%d]" % clock] = number("applications_clocks/" + tag)
        found["nvmlDeviceGetDefaultApplicationsClock[%d]" % clock] = number("default_applications_clocks/" + tag)
        found["nvmlDeviceGetMaxCustomerBoostClock[%d]" % clock] = number("max_customer_boost_clocks/" + tag)
    for item, tag in enumerate(("oem_object", "ecc_object", "pwr_object")):
        version = gpu.findtext("inforom_version/" + tag)
        found["nvmlDeviceGetInforomVersion[%d]" % item] = json.dumps(version) if words(version) else None
    for kind, name in ((0, "correctable"), (1, "uncorrectable")):
        for counter, group in ((0, "volatile"), (1, "aggregate")):
            count = number("ecc_errors/%s/dram_%s" % (group, name))
            found["nvmlDeviceGetMemoryErrorCounter[%d,%d,2]" % (kind, counter)] = count
    sram = [
        number("ecc_errors/" + path)
        for path in (
            "aggregate/sram_uncorrectable_parity",
            "aggregate/sram_uncorrectable_secded",
            "aggregate/sram_correctable",
            "volatile/sram_uncorrectable_parity",
            "volatile/sram_uncorrectable_secded",
            "volatile/sram_correctable",
            "aggregate_uncorrectable_sram_sources/sram_l2",
            "aggregate_uncorrectable_sram_sources/sram_sm",
            "aggregate_uncorrectable_sram_sources/sram_pcie",
            "aggregate_uncorrectable_sram_sources/sram_microcontroller",
            "aggregate_uncorrectable_sram_sources/sram_other",
        )
    ]
    if None not in sram:
        exceeded = gpu.findtext("ecc_errors/aggregate/sram_threshold_exceeded") == "Yes"
        found["nvmlDeviceGetSramEccErrorStatus"] = " ".join(sram + ["1" if exceeded else "0"])
    classes = [number("pci/pci_base_class"), number("pci/pci_sub_class")]
    found["sysfs.class"] = "0x%02x%02x00" % tuple(map(int, classes))
    for path, source in nvidia_smi.FIELDS:
        text = gpu.findtext(path)
        if source is None and path not in nvidia_smi.LISTS and text not in (None, "N/A"):
            found["smi." + path] = json.dumps(text)
    for memory in gpu.findall("supported_clocks/supported_mem_clock"):
        place = "nvmlDeviceGetSupportedGraphicsClocks[%s]" % words(memory.findtext("value"))
        found[place] = " ".join(words(clock.text) for clock in memory.findall("supported_graphics_clock"))
    fabric = gpu.find("fabric")
    if fabric is not None and fabric.findtext("state") == "Completed":
        cluster = bytes.fromhex(fabric.findtext("clusterUuid").replace("-", ""))
        info = "%s 0 %s 3" % (" ".join(map(str, cluster)), fabric.findtext("cliqueId"))
        found["nvmlDeviceGetGpuFabricInfo"] = info
        found["nvmlDeviceGetGpuFabricInfoV"] = info + " 0 0"
    return {place: text for place, text in found.items() if text is not None}


def derived(index, found):
    """What follows from other values: NVLink counts and versions, remapped rows as fields."""
    links = [place for place in found if place.startswith("nvmlDeviceGetNvLinkState[") and found[place] == "1"]
    more = {"nvmlDeviceGetTopologyCommonAncestor[%d]" % index: "0"}
    if links:
        more["nvmlDeviceGetNvLinkState[*]"] = "!2"
        more["nvmlDeviceGetFieldValues[91]"] = "1 %d" % len(links)
        for place in links:
            more[place.replace("State", "Version")] = "6"
    rows = found.get("nvmlDeviceGetRemappedRows", "!3")
    if rows[0] != "!":
        for field, count in zip(range(142, 146), rows.split(), strict=True):
            more["nvmlDeviceGetFieldValues[%d]" % field] = "1 " + count
    return more


def common(devices):
    """Split the devices' lines into those that all agree on and each one's own."""
    shared = {}
    for place in sorted({place for device in devices for place in device}):
        values = Counter(device[place] for device in devices if place in device)
        if len(values) == 1 and sum(values.values()) >= max(len(devices) - 1, 1):
            shared[place] = next(iter(values))
    return shared, [{place: text for place, text in device.items() if place not in shared} for device in devices]


def natural(place):
    """Sort key that puts [2] before [10]."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", place)]


def write(title, system, devices, stream):
    """Write a state: title, lines of the system, of all devices, of each."""
    shared, own = common(devices)
    stream.write("# %s\n" % title)
    for name, section in [("system", system), ("devices", shared)] + [
        ("device %d" % i, section) for i, section in enumerate(own)
    ]:
        stream.write("\n[%s]\n" % name)
        for place in sorted(section, key=natural):
            stream.write(("%s = %s" % (place, section[place])).rstrip() + "\n")


def convert(recording, report):
    """A recording and nvidia-smi's report of the same host as (system, devices), each {key: value}.

    Raises:
        Mismatch: pynvml would not return what was recorded.
    """
    devices = []
    for index, (recorded, gpu) in enumerate(zip(recording["devices"], report.findall("gpu"), strict=True)):
        found = lines(recorded)
        found.update(from_smi(gpu))
        found.update(derived(index, found))
        devices.append(found)
    return lines(recording["system"]), devices


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nvml", type=argparse.FileType(), help="what pynvml returned, JSON")
    parser.add_argument("smi", type=argparse.FileType(), help="nvidia-smi -q -x of the same host")
    parser.add_argument("--title", required=True, help="the state's first line")
    options = parser.parse_args()
    system, devices = convert(json.load(options.nvml), ElementTree.parse(options.smi).getroot())
    write(options.title, system, devices, sys.stdout)


if __name__ == "__main__":
    main()
