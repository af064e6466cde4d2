# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the roles' molecule scenarios on one lab; close with how many succeeded.

scenarios.py LAB [SCENARIO...]    all scenarios unless some are given

Molecule's notes of what it has done lie in a folder of this run, as it would take those of an interrupted run for its
own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List

SCENARIOS = Path(__file__).resolve().parent.parent / "extensions" / "molecule"
# A line of molecule's own closing table
ENDED = re.compile(r"(?P<scenario>\w+) +: actions=\d+ .*\bmissing=(?P<missing>\d+) +failed=(?P<failed>\d+)")


def main(lab: str, names: List[str]) -> int:
    """What has no result has failed."""
    # default creates and removes the lab, whatever is run
    all_of_them = {path.parent.name for path in SCENARIOS.glob("*/molecule.yml")} - {"default"}
    # vllm_real first: vllm leaves its services to the scenario after it
    names = names or sorted(all_of_them, key=lambda name: (name != "vllm_real", name))
    words = [word for name in names for word in ("-s", name)]
    good = set()
    with tempfile.TemporaryDirectory(prefix="molecule-") as notes:
        environ = {**os.environ, "MOLECULE_LAB": lab, "MOLECULE_EPHEMERAL_DIRECTORY": notes, "NO_COLOR": "1"}
        with subprocess.Popen(
            ["molecule", "test", *words], env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as running:
            for line in running.stdout:
                print(line, end="", flush=True)
                ended = ENDED.match(line)
                if ended and ended["missing"] == ended["failed"] == "0":
                    good.add(ended["scenario"])
    passed = len(good.intersection(names))
    failed = max(len(names) - passed, int(running.returncode != 0))
    print("\nmolecule: %d passed, %d failed, 0 skipped" % (passed, failed))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
