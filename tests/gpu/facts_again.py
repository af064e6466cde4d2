#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the facts of healthy GPUs again and again: any verdict is a false one.

    PYTHONPATH=FOLDER_WITH_PYNVML python3 tests/gpu/facts_again.py READINGS [--timing ROUNDS]

Exit status 1 if a reading found something that is not a mere note, or not the source NVML. With --timing, compares the
time in NVML within one process, and that of a whole reading, with `nvidia-smi -q -x`, alternately.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable


def seconds(call: Callable[[], Any]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("readings", type=int)
    parser.add_argument("--timing", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "ansible_collections", "gpufleet")
        home.mkdir(parents=True)
        (home / "inference").symlink_to(Path(__file__).resolve().parents[2])
        sys.path.insert(0, folder)
        return read(arguments.readings, arguments.timing)


def read(readings: int, rounds: int) -> int:
    from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import checks, facts

    found: collections.Counter[str] = collections.Counter()
    wrong = 0
    for _number in range(readings):
        gpu = facts.gather(timeout=60)
        verdicts = [
            "%s: GPU %s: %s" % (one["effect"], one["gpu"], one["text"])
            for one in gpu["findings"]
            if one["effect"] != checks.NOTE
        ]
        verdicts += ["fault %s" % gpu["fault"]["code"]] if gpu["fault"] else []
        verdicts += ["source %s" % gpu["source"]] if gpu["source"] != "nvml" else []
        verdicts += ["GPU %s is not ok" % one["index"] for one in gpu["devices"] if not one["health"]["ok"]]
        wrong += bool(verdicts)
        found.update(verdicts)
        found.update("note: %s" % one["text"] for one in gpu["findings"] if one["effect"] == checks.NOTE)
    use = [one["utilization"]["gpu_percent"] for one in gpu["devices"]] if readings else []
    print("%d readings, %d with a verdict; GPU use at the last one, %%: %s" % (readings, wrong, use))
    for text, count in found.most_common():
        print("%5d  %s" % (count, text))
    if rounds:
        time_both(rounds)
    return 1 if wrong else 0


def time_both(rounds: int) -> None:
    import pynvml

    from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts, nvml

    command = ["nvidia-smi", "-q", "-x"]
    calls: dict[str, Callable[[], Any]] = {
        "NVML in this process": lambda: nvml.read(pynvml, lambda *_part: None),
        "facts.gather, with its child process": lambda: facts.gather(timeout=60),
        "nvidia-smi -q -x": lambda: subprocess.run(command, check=True, capture_output=True),
    }
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _round in range(rounds):
        for name, call in calls.items():
            took[name].append(seconds(call))
    medians = {name: statistics.median(values) for name, values in took.items()}
    for name, median in medians.items():
        ratio = median / medians[" ".join(command)]
        print("%-38s median of %d: %.3f s, %.2f of nvidia-smi" % (name, rounds, median, ratio))


if __name__ == "__main__":
    sys.exit(main())
