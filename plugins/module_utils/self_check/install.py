# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the self check on a host, proves that it runs, and removes it."""

from __future__ import annotations

import base64
import json
import os
import zlib
from typing import Any, Dict, List, Mapping, Optional

from ..converge.atomic import Files, Wanted, explain
from ..systemd.manager import ManagerError, System
from ..toolbox import files
from ..toolbox.errors import Failed
from .unit import FOLDER, METRICS, SERVICE, STATE, TIMER, UNITS, question

_LIMIT = 180
"""Seconds for the first check, which compiles the code."""


def place(params: Mapping[str, Any], units: Mapping[str, str], root: str, system: Optional[Any]) -> None:
    """Write everything, start the timer, and wait for the first check.

    :param units: the unit files by their path.
    :raises Failed: a file cannot be written, or the check does not run; the previous state is restored.
    """
    system = system or System()
    texts: Dict[str, str] = json.loads(zlib.decompress(base64.b64decode(params["question"])))
    wanted = [Wanted("%s/%s" % (FOLDER, name), texts[name].encode(), 0o600, 0o700) for name in sorted(texts)]
    # question.json first: it is the file whose leftovers show that a run was interrupted
    wanted.sort(key=lambda file: not file.path.endswith("/question.json"))
    change = Files(wanted + [Wanted(path, text.encode()) for path, text in units.items()], root)
    before = question(root)
    try:
        change.undo()  # what a killed run has left
        files.make_folders(root + params["textfile_folder"])
        change.stage()
        change.commit()
        wrong = _started(system)
    except (OSError, ManagerError) as error:
        wrong = explain(error) if isinstance(error, OSError) else str(error)
    if wrong:
        _put_back(change, system, bool(before))
        raise Failed("the self check does not run: %s. The previous state is restored" % wrong)
    change.finish()
    old = before.get("textfile_folder")
    if old and old != params["textfile_folder"]:
        files.remove("%s%s/%s" % (root, old, METRICS))


def _started(system: Any) -> str:
    """What went wrong at the start of the timer and the first check; empty where nothing did."""
    system.reload()
    system.enable(TIMER)
    wrong = system.restart(TIMER, _LIMIT, _LIMIT) or system.start(SERVICE, _LIMIT)
    return "%s: %s (see journalctl -u %s)" % (SERVICE, wrong, SERVICE) if wrong else ""


def _put_back(change: Files, system: Any, again: bool) -> None:
    """Undo the change; the timer of before runs again, or none does.

    :param again: there was one.
    """
    try:
        if not again:
            system.disable(TIMER)
            system.stop(TIMER, _LIMIT)
        change.undo()
        system.reload()
        if again:
            system.restart(TIMER, _LIMIT, _LIMIT)
    except ManagerError:
        change.undo()  # the next run finds that the timer does not run


def remove(root: str, system: Optional[Any]) -> None:
    """Remove the self check and its metrics.

    :raises Failed: something cannot be removed.
    """
    system = system or System()
    units: List[str] = ["%s%s/%s" % (root, UNITS, name) for name in (TIMER, SERVICE)]
    try:
        if os.path.lexists(units[0]):
            system.disable(TIMER)
            system.stop(TIMER, _LIMIT)
        if os.path.lexists(units[1]):
            system.stop(SERVICE, _LIMIT)
        folder = question(root).get("textfile_folder")
        if folder:
            files.remove("%s%s/%s" % (root, folder, METRICS))
        for unit in units:
            files.remove(unit)
        system.reload()
        files.remove_tree(root + STATE)
        files.remove_tree(root + FOLDER)
    except (OSError, ManagerError) as error:
        said = explain(error) if isinstance(error, OSError) else str(error)
        raise Failed(
            "the self check is not removed completely: %s. Run it again once this is repaired" % said
        ) from None
