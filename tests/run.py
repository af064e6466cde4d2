# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run make targets one after the other up to the first failure; close with the time and the counts of each.

run.py TARGET... Targets joined by "+" run at the same time. The output of all but the first is printed when they have
ended.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, List, NamedTuple

# The closing line of pytest, or of anything that says it the same way ("sanity: 24 passed, 0 failed").
CLOSING = re.compile(r"^(=+ )?([a-z-]+: )?\d+ (passed|failed|skipped|errors?)(,| in |$)")
COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")
WORDS = ("passed", "failed", "skipped")


class Stage(NamedTuple):
    target: str
    good: bool
    counts: Counter
    seconds: float

    def __str__(self) -> str:
        words = ", ".join("%d %s" % (self.counts[word], word) for word in WORDS)
        return "%-13s %-6s %4d s  %s" % (self.target, "ok" if self.good else "FAILED", self.seconds, words)


def stage(target: str, say: Callable[[str], None], command: str = "make") -> Stage:
    """Run one target. One that counts nothing is one test."""
    counts: Counter = Counter()
    started = time.monotonic()
    with subprocess.Popen([command, target], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        for line in running.stdout:
            say(line)
            if CLOSING.match(line):
                for number, word in COUNT.findall(line):
                    counts["failed" if word == "error" else word] += int(number)
    good = running.returncode == 0
    if not sum(counts.values()) or (not good and not counts["failed"]):
        counts["passed" if good else "failed"] += 1
    return Stage(target, good, counts, time.monotonic() - started)


def at_once(targets: List[str], command: str = "make") -> List[Stage]:
    """Run targets at the same time; the lines of the first are printed as they come."""
    lines: List[List[str]] = [[] for _target in targets]
    says = [lambda line: print(line, end="", flush=True), *(more.append for more in lines[1:])]
    print("\n===== %s" % targets[0], flush=True)
    with ThreadPoolExecutor(len(targets)) as pool:
        running = [pool.submit(stage, target, say, command) for target, say in zip(targets, says)]
        for target, later, one in zip(targets, lines, running):
            one.result()
            if later:
                print("\n===== %s\n%s" % (target, "".join(later)), end="", flush=True)
    return [one.result() for one in running]


def main(groups: List[str]) -> int:
    done: List[Stage] = []
    table: List[str] = []
    for group in groups:
        if all(one.good for one in done):
            done += at_once(group.split("+"))
            table = list(map(str, done))
        else:
            table += ["%-13s not run" % target for target in group.split("+")]
    total = sum((one.counts for one in done), Counter())
    print("\n===== summary\n" + "\n".join(table) + "\n")
    print("%d passed, %d failed, %d skipped" % tuple(total[word] for word in WORDS))
    return 0 if all(one.good for one in done) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
