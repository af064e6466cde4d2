# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables whose names are nearly those of a role's: Ansible ignores them silently."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Collection, Iterator, Mapping

OURS = "gpufleet.inference."
_NEAR = 0.85  # of 1, as difflib counts; visible_device and keepalive have 0.97 and 0.95


def misspelled(task_vars: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each variable of a task in a role of this collection that seems to be misspelled.

    :param task_vars: the task's variables, the magic ones included.
    """
    name = str(task_vars.get("ansible_role_name") or "")
    if not name.startswith(OURS):
        return
    prefix = name[len(OURS) :] + "_"
    given = [variable for variable in task_vars if variable.startswith(prefix)]
    known = variables(Path(str(task_vars.get("role_path"))) / "meta" / "argument_specs.yml", prefix) if given else ()
    for variable in sorted(given):
        rest = variable[len(prefix) :]
        near = [] if rest in known else difflib.get_close_matches(rest, known, n=1, cutoff=_NEAR)
        if near:
            yield "the role %s has no variable %s, so its value has no effect; did you mean %s?" % (
                name,
                variable,
                prefix + near[0],
            )


def variables(specs: Path, prefix: str) -> Collection[str]:
    """What follows the prefix in the names of a role's variables; the file is not parsed, as each task reads it."""
    try:
        text = specs.read_text(encoding="utf-8")
    except OSError:
        return ()
    return set(re.findall(r"^ +%s(\w+):" % re.escape(prefix), text, re.MULTILINE))
