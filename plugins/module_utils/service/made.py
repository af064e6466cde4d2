# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this collection has made on a host, remembered so that it, and nothing else, can be taken away again."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from typing import Dict, Iterator, List

PATH = "/var/lib/gpufleet/made.json"
LOCK = "/run/lock/gpufleet-made.lock"


def remembered(kind: str) -> List[str]:
    """Names of one kind (``users``, ``homes``, ``units``, ``directories``), the oldest first."""
    return _read().get(kind, [])


def add(kind: str, name: str) -> None:
    with _alone():
        found = _read()
        if name not in found.setdefault(kind, []):
            found[kind].append(name)
            _write(found)


def drop(kind: str, name: str) -> None:
    with _alone():
        found = _read()
        if name in found.get(kind, []):
            found[kind].remove(name)
            _write({kind: names for kind, names in found.items() if names})


@contextmanager
def _alone() -> Iterator[None]:
    """Two runs on one host, for two services, must not lose each other's words."""
    with open(LOCK, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read() -> Dict[str, List[str]]:
    try:
        with open(PATH, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(found: Dict[str, List[str]]) -> None:
    if found:
        os.makedirs(os.path.dirname(PATH), mode=0o755, exist_ok=True)
        beside = PATH + ".new"
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1, sort_keys=True)
        os.rename(beside, PATH)
    elif os.path.lexists(PATH):
        os.unlink(PATH)
        try:
            os.rmdir(os.path.dirname(PATH))
        except OSError:
            pass  # there is more in it
