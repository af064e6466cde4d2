# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this collection has created on a host, remembered so that it, and nothing else, can be removed again.

Recorded before it is created: a run killed in between leaves a record of nothing, never something without a record.
Every word lasts through a power cut once it is given.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import Dict, Iterator, List

PATH = "/var/lib/gpufleet/made.json"
WAIT = 60
"""Seconds to wait for another run that writes here, which takes milliseconds."""


def remembered(kind: str) -> List[str]:
    """Names of one kind (``users``, ``homes``, ``units``, ``directories``), the oldest first."""
    return _read().get(kind, [])


def add(kind: str, name: str) -> None:
    """Remember what is about to be created; :func:`drop` it if that fails.

    :raises OSError: it cannot be recorded: nothing may be created.
    """
    with _alone():
        found = _read()
        if name not in found.setdefault(kind, []):
            found[kind].append(name)
            _write(found)


def drop(kind: str, name: str) -> None:
    """Forget what is gone."""
    with _alone():
        found = _read()
        if name in found.get(kind, []):
            found[kind].remove(name)
            _write({kind: names for kind, names in found.items() if names})


@contextmanager
def _alone() -> Iterator[None]:
    """Two runs on one host, for two services, must not lose each other's words."""
    from ..toolbox import lock

    with lock.held("made.json", WAIT, what=PATH):
        yield


def _read() -> Dict[str, List[str]]:
    try:
        with open(PATH, encoding="utf-8") as file:
            found = json.load(file)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(found: Dict[str, List[str]]) -> None:
    from ..toolbox import files

    folder = os.path.dirname(PATH)
    if found:
        files.make_folders(folder)
        files.write_whole(PATH, json.dumps(found, indent=1, sort_keys=True).encode())
        return
    files.remove(PATH)
    with files.folder(folder) as descriptor:
        files.sync(descriptor)
    try:
        os.rmdir(folder)
    except OSError:
        pass  # there is more in it
