#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold the facts, read through NVML, to what nvidia-smi says on a machine with real GPUs.

    PYTHONPATH=FOLDER_WITH_PYNVML python3 tests/gpu/compare_facts.py [--all]

Prints how many values were compared and how they came out, every value that differs (with --all every value), and how
long both took. Exit status 1 when a value differs by more than its tolerance, or when there is nothing to compare.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

MIB = 1024 * 1024

#: How far a value may be off, and why. All others are equal, or wrong.
TOLERANCES = {
    "memory.total_bytes": (MIB, "nvidia-smi prints whole MiB"),
    "memory.reserved_bytes": (MIB, "nvidia-smi prints whole MiB"),
    "memory.used_bytes": (64 * MIB, "moves: processes come, go and grow"),
    "memory.free_bytes": (64 * MIB, "moves: processes come, go and grow"),
    "bar1.total_bytes": (MIB, "nvidia-smi prints whole MiB"),
    "bar1.used_bytes": (4 * MIB, "moves: every client maps some"),
    "bar1.free_bytes": (4 * MIB, "moves: every client maps some"),
    "power.usage_watts": (60.0, "moves: load"),
    "clocks.graphics_mhz": (2000, "moves: load"),
    "clocks.sm_mhz": (2000, "moves: load"),
    "clocks.memory_mhz": (4000, "moves: load"),
    "clocks.video_mhz": (2000, "moves: load"),
    "utilization.gpu_percent": (100, "moves: load"),
    "utilization.memory_percent": (100, "moves: load"),
    "temperature.gpu_celsius": (3, "moves: load"),
    "temperature.memory_celsius": (3, "moves: load"),
    "temperature.margin_celsius": (3, "moves: load"),
    "fan_speed_percent": (5, "moves: load"),
    "pcie.generation": (5, "moves: idle cards lower it"),
    "pcie.replay_count": (10, "moves: counts up"),
}
#: Leaves that nvidia-smi -q has and that may be anything at two moments.
MOVING = ("clocks_event_reasons", "performance_state")
PROCESS_BYTES = (64 * MIB, "moves: processes grow")

#: What a comparison gives per leaf: GPU index, path, value from NVML, value from nvidia-smi, verdict.
Row = Tuple[int, str, Any, Any, str]


def compare(model: Any, ours: List[Dict[str, Any]], theirs: List[Dict[str, Any]]) -> List[Row]:
    """Every leaf of every GPU, side by side.

    :param model: the module that knows a device's leaves.
    :param ours: devices read through NVML, in index order.
    :param theirs: devices parsed from nvidia-smi.
    """
    rows = []
    for one, other in zip(ours, theirs):
        for path in model.LEAVES:
            left, right = _leaf(one, path), _leaf(other, path)
            told = model.known(other, path) or other["unavailable"][path] == model.UNSUPPORTED
            rows.append(
                (one["index"], path, left, right, _verdict(path, left, right) if told else "not in nvidia-smi -q")
            )
    return rows


def _leaf(device: Dict[str, Any], path: str) -> Any:
    for name in path.split("."):
        device = device[name]
    return device


def _verdict(path: str, left: Any, right: Any) -> str:
    if left == right:
        return "equal"
    if left is None or right is None:
        return "DIFFERENT"
    if path == "processes":
        return _verdict_of_processes(left, right)
    if path in MOVING:
        return "moving"
    if path in TOLERANCES and abs(left - right) <= TOLERANCES[path][0]:
        return "within tolerance"
    return "DIFFERENT"


def _verdict_of_processes(left: List[Dict[str, Any]], right: List[Dict[str, Any]]) -> str:
    """Processes are the same ones, of the same names, types and units, with about the same memory."""
    pairs = list(zip(left, right))
    same = len(left) == len(right) and all(
        one[key] == other[key] for one, other in pairs for key in ("pid", "name", "type", "unit")
    )
    near = all(abs((one["used_bytes"] or 0) - (other["used_bytes"] or 0)) <= PROCESS_BYTES[0] for one, other in pairs)
    return "within tolerance" if same and near else "DIFFERENT"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="print every value, not only those that differ")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "ansible_collections", "gpufleet")
        home.mkdir(parents=True)
        (home / "inference").symlink_to(Path(__file__).resolve().parents[2])
        sys.path.insert(0, folder)
        from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts, model, smi

        started = time.monotonic()
        gpu = facts.gather(timeout=60)
        facts_seconds = time.monotonic() - started
        started = time.monotonic()
        text = subprocess.run(["nvidia-smi", "-q", "-x"], check=True, capture_output=True, text=True).stdout
        smi_seconds = time.monotonic() - started
        parts = smi.parse(text)

    print("facts: source %s, %d GPUs, fault %s, %.3f s" % (gpu["source"], gpu["count"], gpu["fault"], facts_seconds))
    theirs = [data[0] for name, data in parts if name == "device"]
    print("nvidia-smi -q -x: %d GPUs, %.3f s" % (len(theirs), smi_seconds))
    for line in gpu["topology"]:
        print("topology: %s" % "  ".join(str(word) for word in line))

    driver = dict(parts)["driver"]
    wrong = []
    if gpu["source"] != "nvml":
        wrong.append("the facts come from %s, expected nvml: is pynvml on PYTHONPATH?" % gpu["source"])
    if not theirs or gpu["count"] != len(theirs):
        wrong.append("%d GPUs in the facts, %d in nvidia-smi" % (gpu["count"], len(theirs)))
    for key in ("version", "cuda_version"):
        if gpu["driver"][key] != driver[key]:
            wrong.append("driver.%s: %s in the facts, %s in nvidia-smi" % (key, gpu["driver"][key], driver[key]))

    rows = compare(model, gpu["devices"], theirs)
    counts: Dict[str, int] = {}
    for index, path, left, right, verdict in rows:
        counts[verdict] = counts.get(verdict, 0) + 1
        if verdict == "DIFFERENT":
            wrong.append("GPU %d %s: %r in the facts, %r in nvidia-smi" % (index, path, left, right))
        if arguments.all or verdict not in ("equal", "not in nvidia-smi -q"):
            reason = " (%s)" % TOLERANCES[path][1] if path in TOLERANCES and verdict == "within tolerance" else ""
            print("GPU %d  %-34s %-28s %-28s %s%s" % (index, path, left, right, verdict, reason))
    print("values: %s" % ", ".join("%d %s" % (counts[verdict], verdict) for verdict in sorted(counts)))
    for line in wrong:
        print("WRONG: %s" % line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
