# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run make targets one after the other up to the first failure; close with the time and the counts of each.

run.py A B+C,D    A, then B, and beside it C and after that D. What runs beside B is printed when all of it has ended.
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


def in_turn(targets: List[str], say: Callable[[str], None], command: str) -> List[Stage]:
    """Run targets one after the other up to the first failure."""
    done: List[Stage] = []
    for target in targets:
        if all(one.good for one in done):
            say("\n===== %s\n" % target)
            done.append(stage(target, say, command))
    return done


def at_once(chains: List[str], command: str = "make") -> List[Stage]:
    """Run chains of targets at the same time; the lines of the first are printed as they come."""
    lines: List[List[str]] = [[] for _chain in chains]
    says = [lambda line: print(line, end="", flush=True), *(more.append for more in lines[1:])]
    with ThreadPoolExecutor(len(chains)) as pool:
        running = [pool.submit(in_turn, chain.split(","), say, command) for chain, say in zip(chains, says)]
        for later, one in zip(lines, running):
            one.result()
            print("".join(later), end="", flush=True)
    return [one for chain in running for one in chain.result()]


def main(groups: List[str]) -> int:
    done: List[Stage] = []
    for group in groups:
        if all(one.good for one in done):
            done += at_once(group.split("+"))
    said = {one.target: str(one) for one in done}
    table = [said.get(target, "%-13s not run" % target) for target in re.split("[ +,]", " ".join(groups))]
    total = sum((one.counts for one in done), Counter())
    print("\n===== summary\n" + "\n".join(table) + "\n")
    print("%d passed, %d failed, %d skipped" % tuple(total[word] for word in WORDS))
    return 0 if all(one.good for one in done) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
