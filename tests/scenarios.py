# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles' molecule scenarios, dealt to two labs that work at the same time; closes with how many went well.

scenarios.py NAME [SCENARIO...]     NAME begins the labs' names; all scenarios unless some are given
scenarios.py NAME --without SCENARIO...

One molecule has one lab for all its scenarios. Its notes of what it has done lie in a folder of this run, as it would
take those of an interrupted run for its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import List

SCENARIOS = Path(__file__).resolve().parent.parent / "extensions" / "molecule"
LABS = 2
# How many times as long as the others a scenario takes, about; those start first, and the labs end together.
WEIGHTS = {"vllm_real": 7, "torchrun": 2}
# A line of molecule's own closing table
ENDED = re.compile(r"(?P<scenario>\w+) +: actions=\d+ .*\bmissing=(?P<missing>\d+) +failed=(?P<failed>\d+)")


def run(lab: str, names: List[str], counts: Counter) -> None:
    """Run scenarios on one lab, each of their lines behind the lab's number; what has no result has failed."""
    words = [word for name in names for word in ("-s", name)]
    good = set()
    with tempfile.TemporaryDirectory(prefix="molecule-") as notes:
        environ = {**os.environ, "MOLECULE_LAB": lab, "MOLECULE_EPHEMERAL_DIRECTORY": notes, "NO_COLOR": "1"}
        with subprocess.Popen(
            ["molecule", "test", *words], env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as running:
            for line in running.stdout:
                print("%s| %s" % (lab[-1], line), end="", flush=True)
                ended = ENDED.match(line)
                if ended and ended["missing"] == ended["failed"] == "0":
                    good.add(ended["scenario"])
    passed = len(good.intersection(names))
    counts.update(passed=passed, failed=max(len(names) - passed, int(running.returncode != 0)))


def deal(names: List[str]) -> List[List[str]]:
    """The scenarios of each lab."""
    hands: List[List[str]] = [[] for _ in range(LABS)]
    for name in sorted(names, key=lambda name: -WEIGHTS.get(name, 1)):
        min(hands, key=lambda hand: sum(WEIGHTS.get(one, 1) for one in hand)).append(name)
    return [hand for hand in hands if hand]


def main(prefix: str, names: List[str]) -> int:
    all_of_them = sorted(path.parent.name for path in SCENARIOS.glob("*/molecule.yml"))
    if not names or names[0] == "--without":
        names = [name for name in all_of_them if name not in names]
    names = [name for name in names if name != "default"]  # it creates and removes the lab, whatever is run
    counts: Counter = Counter()
    threads = [
        threading.Thread(target=run, args=("%s%d" % (prefix, number), hand, counts))
        for number, hand in enumerate(deal(names), 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts["failed"] += max(0, len(names) - counts["passed"] - counts["failed"])  # of a lab that broke down
    print("\nmolecule: %(passed)d passed, %(failed)d failed, 0 skipped" % counts)
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
