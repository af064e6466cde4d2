# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver's errors in the kernel's log: the Xid errors since boot, as far back as the log reaches.

Reading /dev/kmsg takes a few milliseconds; asking the journal would take a process.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any, Dict, List, Tuple

from .select import pci_bus_id

#: ``PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;NVRM: Xid (PCI:0000:3b:00): 79, ...``
_XID = re.compile(rb"^\d+,\d+,(\d+),[^;]*;NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d{1,4}),", re.MULTILINE)
_MOST = 100000  # records; the kernel's buffer has a megabyte at most


def read(root: str = "/") -> List[Dict[str, Any]]:
    """The Xid errors by GPU and code, the latest first.

    :returns: ``pci_bus_id``, ``code`` (int), ``count``, ``age_seconds`` (of the last one). Empty if the log cannot
        be read, as by users other than root.
    """
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    last: Dict[Tuple[str, int], Tuple[int, float]] = {}
    for microseconds, place, code in _XID.findall(_content(os.path.join(root, "dev/kmsg"))):
        key = pci_bus_id(place.decode() + ("" if b"." in place else ".0")), int(code)
        last[key] = last.get(key, (0, 0.0))[0] + 1, int(microseconds) / 1e6
    found = [
        {"pci_bus_id": key[0], "code": key[1], "count": count, "age_seconds": max(0, round(now - when))}
        for key, (count, when) in last.items()
    ]
    return sorted(found, key=lambda xid: xid["age_seconds"])


def _content(path: str) -> bytes:
    """The whole log; each read returns one record, until there are no more."""
    parts: List[bytes] = []
    try:
        log = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        for _number in range(_MOST):
            try:
                parts.append(os.read(log, 8192))
            except BrokenPipeError:  # the record was overwritten meanwhile: the next read continues after it
                continue
            if not parts[-1]:
                break
    except OSError:  # no more records
        pass
    finally:
        os.close(log)
    return b"".join(parts)
