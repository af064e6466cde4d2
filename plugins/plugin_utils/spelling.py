# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables whose names are nearly those of a role's: Ansible passes over them without a word."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Collection, Iterator, Mapping

OURS = "gpufleet.inference."
_NEAR = 0.85  # of 1, as difflib counts; visible_device and keepalive have 0.97 and 0.95


def misspelt(task_vars: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each variable of a task in a role of this collection that seems to be a misspelt one.

    :param task_vars: the task's variables, the magic ones included.
    """
    name = str(task_vars.get("ansible_role_name") or "")
    if not name.startswith(OURS):
        return
    begin = name[len(OURS) :] + "_"
    known = variables(Path(str(task_vars.get("role_path"))) / "meta" / "argument_specs.yml", begin)
    for variable in sorted(task_vars):
        rest = variable[len(begin) :]
        if variable.startswith(begin) and rest not in known:
            near = difflib.get_close_matches(rest, known, n=1, cutoff=_NEAR)
            if near:
                yield "the role %s has no variable %s, so its value does nothing; did you mean %s?" % (
                    name,
                    variable,
                    begin + near[0],
                )


def variables(specs: Path, begin: str) -> Collection[str]:
    """What follows ``begin`` in the names of a role's variables; not parsed, as each task asks."""
    try:
        text = specs.read_text(encoding="utf-8")
    except OSError:
        return ()
    return set(re.findall(r"^ +%s(\w+):" % re.escape(begin), text, re.MULTILINE))
