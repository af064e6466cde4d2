# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small JSON file in a folder that only root may write into, by which a later run knows what an earlier one did."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Mapping

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_LARGEST = 16 << 20  # bytes


def read(path: str) -> Dict[str, Any]:
    """The record; empty where there is none that can be read. Follows no link to it, and waits for no pipe."""
    try:
        with os.fdopen(os.open(path, _READ), "rb") as file:
            found = json.loads(file.read(_LARGEST).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: str, record: Mapping[str, Any], mode: int = 0o644) -> None:
    """Write the record as a whole, with its folder.

    :raises OSError: there is no space, or the folder cannot be used; the previous record is still there.
    """
    from . import files

    files.make_folders(os.path.dirname(path))
    files.write_whole(path, json.dumps(record, indent=1, sort_keys=True).encode("utf-8"), mode)


def places(path: str) -> List[str]:
    """What exists of a record: the file, and what a killed run left of a new one."""
    folder, name = os.path.split(path)
    return [place for place in (path, "%s/.%s.new" % (folder, name)) if os.path.lexists(place)]


def forget(path: str) -> None:
    """Remove the record, and its folder once that is empty.

    :raises OSError: one of them cannot be removed.
    """
    from . import files

    for place in places(path):
        files.remove(place)
    folder = os.path.dirname(path)
    if os.path.isdir(folder) and not os.listdir(folder):
        files.remove_folder(folder)
