# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On a lab host: what a call costs that finds nothing to do: processes started and CPU time, the median of several."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Change
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.run import converge

arguments = json.loads(Path(sys.argv[1]).read_text())
started = []
sys.addaudithook(lambda event, args: started.append(args[0]) if event in ("subprocess.Popen", "os.fork") else None)


def cpu():
    return sum(
        use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


runs = []
for _ in range(arguments.pop("runs")):
    started.clear()
    before, wall = cpu(), time.monotonic()
    outcome = converge(Change(**arguments))
    runs.append((len(started), cpu() - before, time.monotonic() - wall, outcome.changed))
print(
    json.dumps(
        {
            "processes": max(run[0] for run in runs),
            "cpu_ms": round(1000 * statistics.median(run[1] for run in runs), 2),
            "wall_ms": round(1000 * statistics.median(run[2] for run in runs), 2),
            "changed": any(run[3] for run in runs),
        }
    )
)
