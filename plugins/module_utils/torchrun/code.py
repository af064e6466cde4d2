# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The script of a job on this host, and the Python files around it, as digests that are compared among the hosts."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Any, Callable, Dict, Iterator, Mapping, Optional

from ..toolbox.errors import Failed

FILES = 500
"""Python files that are compared, the first in the order of their names."""
ENTRIES = 20000
"""Entries of folders that are looked at for them: there may be a data set next to a script."""
SIZE = 4 << 20
"""Bytes read of a file."""
LIMIT = 20.0
"""Seconds for all of it: it may lie on a file system that hangs."""


def of_job(params: Mapping[str, Any], warn: Callable[[str], Any]) -> Optional[Dict[str, Any]]:
    """``path`` and ``digest`` of the script, ``folder``, and ``files``: digests by name of the Python files below it.

    Read with the rights of the job's user, as root may have none on a network file system, and the digest of a file
    that only root can read is nobody's business.

    :param params: of the module: ``script``, ``working_directory`` and ``user``.
    :returns: None where neither is declared, or there is no such user, which torchrun_job reports.
    """
    script, folder = params["script"], params["working_directory"] or os.path.dirname(params["script"] or "")
    if not folder:
        return None
    from ..toolbox.users import as_user, ids_of

    ids = ids_of(params["user"])
    if ids is None:
        return None

    def work() -> Dict[str, Any]:
        files = {name: _digest(os.path.join(folder, name)) for name in _python_files(folder)}
        return {"path": script, "digest": script and _digest(script), "folder": folder, "files": files}

    try:
        found: Dict[str, Any] = as_user(ids, work, LIMIT)
    except (OSError, Failed) as error:
        warn("the files in %s are not compared with those of other hosts: %s" % (folder, error))
        return None
    return found


def _digest(path: str) -> Optional[str]:
    """None where the file cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return hashlib.sha256(stream.read(SIZE)).hexdigest()[:12] if regular else None
    except OSError:
        return None


def _python_files(top: str) -> Iterator[str]:
    """Names relative to the folder, in an order that is the same on all hosts; nothing hidden."""
    entries, left = 0, FILES
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        entries += len(folders) + len(names)
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith(".") and left:
                left -= 1
                yield os.path.relpath(os.path.join(folder, name), top)
        if entries > ENTRIES or not left:
            return
