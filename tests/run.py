# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run make targets one after the other up to the first failure; close with the time and the counts of each.

run.py TARGET...
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from typing import List, Tuple

# The closing line of pytest, or of anything that says it the same way ("sanity: 24 passed, 0 failed").
CLOSING = re.compile(r"^(=+ )?([a-z-]+: )?\d+ (passed|failed|skipped|errors?)(,| in |$)")
COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")


def stage(target: str) -> Tuple[bool, Counter, float]:
    """Run one target: whether it went well, its counts, its seconds. A target that counts nothing is one test."""
    counts: Counter = Counter()
    started = time.monotonic()
    with subprocess.Popen(["make", target], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        for line in running.stdout:
            print(line, end="", flush=True)
            if CLOSING.match(line):
                for number, word in COUNT.findall(line):
                    counts["failed" if word == "error" else word] += int(number)
    good = running.returncode == 0
    if not sum(counts.values()) or (not good and not counts["failed"]):
        counts["passed" if good else "failed"] += 1
    return good, counts, time.monotonic() - started


def main(targets: List[str]) -> int:
    total: Counter = Counter()
    table = []
    good = True
    for target in targets:
        if not good:
            table.append("%-10s not run" % target)
            continue
        print("\n===== %s" % target, flush=True)
        good, counts, seconds = stage(target)
        total += counts
        words = ", ".join("%d %s" % (counts[word], word) for word in ("passed", "failed", "skipped"))
        table.append("%-10s %-6s %4d s  %s" % (target, "ok" if good else "FAILED", seconds, words))
    print("\n===== summary\n" + "\n".join(table) + "\n")
    print("%d passed, %d failed, %d skipped" % (total["passed"], total["failed"], total["skipped"]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
