# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the result of a self check goes: a file for node_exporter's textfile collector, and the verdict of before."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, Iterable, Mapping, Sequence

from ..serving import generations
from ..toolbox import files, record
from ..toolbox.errors import Refused
from . import words
from .unit import METRICS, VERDICT


def report(question: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> str:
    """Write the metrics, and remember the verdict.

    :param question: ``calls``, ``secrets`` and ``textfile_folder``.
    :param answers: those of state_check.py, one for each call.
    :returns: the line for the journal; empty where the verdict is the one of before.
    :raises OSError: a file cannot be written.
    """
    checks = words.judge(question["calls"], answers, question["secrets"])
    numbers = _generations(unit for one in checks for unit in one.units)
    times = os.times()
    cpu = round(sum(times[:4]), 3)
    text = words.metrics(checks, numbers, round(time.time(), 3), cpu)
    files.write_whole("%s/%s" % (question["textfile_folder"], METRICS), text.encode("utf-8"))
    verdict = words.verdict(checks)
    changed = record.read(VERDICT).get("verdict") != verdict
    with open(VERDICT + ".new", "w", encoding="utf-8") as file:  # only root can enter the folder
        json.dump({"verdict": verdict}, file)
    os.replace(VERDICT + ".new", VERDICT)
    return words.line(checks) if changed else ""


def _generations(units: Iterable[str]) -> Dict[str, int]:
    found = {}
    for unit in units:
        try:
            history = generations.read(unit)
        except Refused:
            continue
        if history:
            found[unit] = history[-1]["number"]
    return found
