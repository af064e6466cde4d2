# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The links that enable a unit: notes which of them systemctl creates and removes, and undoes exactly these.

``systemctl disable`` does not undo ``enable``: each also follows ``Also=``, and some links may have existed before.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, Set

FOLDERS = ("/etc/systemd/system", "/run/systemd/system")
"""Where ``systemctl enable`` puts links, without and with ``--runtime``."""


class Links:
    """What happened to the links since this was created. ``root`` is put before every path (for tests)."""

    def __init__(self, root: str = "") -> None:
        self.root = root
        self._created: Dict[str, str] = {}
        self._removed: Dict[str, str] = {}
        self._folders: Set[str] = set()

    def watch(self, systemctl: Callable[[], str]) -> None:
        """Call ``systemctl``, which gives what it said, and note the links that it says it created or removed.

        Raises whatever ``systemctl`` raises; what it did until then is noted all the same.
        """
        before, folders = self._look()
        said = ""
        try:
            said = systemctl()
        except Exception as error:
            said = str(error)
            raise
        finally:
            after, _folders = self._look()
            # a run for another unit may change links, too, in just this moment
            self._created.update(item for item in after.items() - before.items() if item[0] in said)
            self._removed.update(item for item in before.items() - after.items() if item[0] in said)
            self._folders |= {os.path.dirname(path) for path in self._created} - folders

    def _look(self) -> Any:
        """Path to target of every link, and the folders in which there may be some."""
        links: Dict[str, str] = {}
        folders = set()
        for top in FOLDERS:
            for folder, inner, files in os.walk(self.root + top):
                if folder != self.root + top:
                    inner.clear()
                folders.add(folder[len(self.root) :])
                for path in (os.path.join(folder, name) for name in (*inner, *files)):
                    if os.path.islink(path):
                        links[path[len(self.root) :]] = os.readlink(path)
        return links, folders

    def undo(self) -> None:
        """Remove the links that were created, and restore those that were removed."""
        for path, target in self._created.items():
            place = self.root + path
            if os.path.islink(place) and os.readlink(place) == target:
                os.unlink(place)
        for folder in self._folders:
            try:
                os.rmdir(self.root + folder)
            except OSError:
                pass  # somebody else has created a link there
        for path, target in self._removed.items():
            place = self.root + path
            folder = os.path.dirname(place)
            if not os.path.isdir(folder):
                os.mkdir(folder, 0o700)
                os.chmod(folder, 0o755)  # whatever the umask is
            if not os.path.lexists(place):
                os.symlink(target, place)
        self._created, self._removed, self._folders = {}, {}, set()
