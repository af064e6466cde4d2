# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each created model was made from.

The server rewrites a GGUF when it creates a model from it, so nothing in the store shows which file that was. One small
file per server and model remembers it: the sha256 of the source, the request, and the digest of the model that came
out. A record that is lost, or that no longer fits the model, costs one more create and nothing else.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Optional

from ..toolbox import record

FOLDER = "/var/lib/gpufleet/models"


class Records:
    """The records of one server's models."""

    def __init__(self, server: str, folder: Optional[str] = None) -> None:
        self.folder = os.path.join(folder or FOLDER, _safe(server))

    def path(self, model: str) -> str:
        return os.path.join(self.folder, _safe(model) + ".json")

    def read(self, model: str) -> Dict[str, Any]:
        """What is remembered of a model; nothing when there is no record that can be read."""
        return record.read(self.path(model))

    def write(self, model: str, found: Dict[str, Any]) -> None:
        record.write(self.path(model), found)

    def forget(self, model: str) -> None:
        try:
            os.unlink(self.path(model))
        except OSError:
            pass


def fingerprint(path: str, known: Dict[str, Any]) -> Dict[str, Any]:
    """A file by path, size, time of change and sha256.

    :param known: an earlier fingerprint: while path, size and time are the same, the file is not read again.
    :raises OSError: it cannot be read, or is not a regular file.
    """
    status = os.stat(path)
    found = {"path": path, "size": status.st_size, "changed": status.st_mtime_ns}  # type: Dict[str, Any]
    if all(known.get(key) == value for key, value in found.items()) and len(str(known.get("sha256", ""))) == 64:
        return dict(found, sha256=known["sha256"])
    from ..toolbox.files import follow, sha256

    with follow(path) as file:
        return dict(found, sha256=sha256(file))


def _safe(name: str) -> str:
    """A name as one part of a path; never ``.`` or ``..``, as names of models hold a tag."""
    return name.replace("%", "%25").replace("/", "%2F")
