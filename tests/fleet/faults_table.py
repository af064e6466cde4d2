# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of faults saw, as a table of docs/faults.md. The fixture `rows` collects it.

FAULTS_TABLE=path    write the table of the file of tests that is run; test_faults.py then runs the cases that other
                     files of this folder hold, too
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, NamedTuple

TABLE = os.environ.get("FAULTS_TABLE", "")

UNTOUCHED = "untouched, same process"
BACK = "rolled back, restarted"
DECLARED = "in the declared state, verified"


class Row(NamedTuple):
    """A fault as a user meets it."""

    fault: str
    seen: str
    seconds: float
    after: str


def write(rows: List[Row]) -> None:
    """Write the table where it was asked for."""
    if TABLE:
        lines = ["| fault | what the user sees | known after | the service afterwards |", "| --- | --- | --- | --- |"]
        for row in rows:
            cells = (row.fault, row.seen.replace("|", "\\|"), "%.1f s" % row.seconds, row.after)
            lines.append("| %s |" % " | ".join(cells))
        Path(TABLE).write_text("\n".join(lines) + "\n")
