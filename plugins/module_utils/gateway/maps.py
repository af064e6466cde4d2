# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps of a gateway, as a step: who may use what, in files of root's and in the running HAProxy, which takes them
without a reload."""

from __future__ import annotations

import os
from typing import Dict, Mapping, Optional

from ..toolbox.errors import Refused
from . import haproxy, runtime

MODE = 0o600


class MapsStep:
    """Writes the maps that differ.

    :param wanted: the content of each map, by its name.
    :param live: whether the running HAProxy gets it at once. Not so where its configuration changes as well: the maps
        of the next configuration belong to the next worker.
    """

    restarts = False

    def __init__(self, wanted: Mapping[str, Mapping[str, str]], live: bool, place: haproxy.Place) -> None:
        self.wanted = {place.map(name): dict(entries) for name, entries in wanted.items()}
        self.socket = place.run + "/admin.sock"
        self.folder = place.folder
        self.live = live and os.path.exists(self.socket)
        self._written: Dict[str, Optional[str]] = {}
        self._given: Dict[str, Dict[str, str]] = {}

    def needed(self) -> bool:
        return any(self._file_differs(path) or self._running_differs(path) for path in self.wanted)

    def diff(self) -> Dict[str, str]:
        """The names of the maps: they hold who may use what, and the keys of engines."""
        names = [path for path in self.wanted if self._file_differs(path) or self._running_differs(path)]
        return {
            "before": "".join("# %s\n<secret>\n" % path for path in names if os.path.exists(path)),
            "after": "".join("# %s, mode %04o\n<secret, changed>\n" % (path, MODE) for path in names),
        }

    def apply(self) -> None:
        from ..toolbox import files

        files.make_folders(self.folder)
        for path, entries in self.wanted.items():
            if self._file_differs(path):
                self._written[path] = _read(path)
                files.write_whole(path, haproxy.map_text(entries).encode(), MODE)
            if self._running_differs(path):
                self._given[path] = self._running(path) or {}
                self._give(path, entries)

    def undo(self) -> None:
        from ..toolbox import files

        for path, entries in self._given.items():
            self._give(path, entries)
        for path, text in self._written.items():
            if text is None:
                files.remove(path)
            else:
                files.write_whole(path, text.encode(), MODE)

    def _file_differs(self, path: str) -> bool:
        try:
            mode = os.lstat(path).st_mode & 0o7777
        except FileNotFoundError:
            return True
        return mode != MODE or _read(path) != haproxy.map_text(self.wanted[path])

    def _running_differs(self, path: str) -> bool:
        if not self.live:
            return False
        running = self._running(path)
        return running is not None and running != self.wanted[path]

    def _running(self, path: str) -> Optional[Dict[str, str]]:
        try:
            return runtime.read_map(path, self.socket)
        except runtime.RuntimeFault:
            return None  # whether it runs at all is for the gate to say

    def _give(self, path: str, entries: Mapping[str, str]) -> None:
        try:
            runtime.replace_map(path, entries, self.socket)
        except runtime.RuntimeFault as error:
            raise Refused(str(error)) from None


def _read(path: str) -> Optional[str]:
    from ..toolbox import files

    found = files.read_regular(path, 64 << 20)
    return None if found is None else found.decode("utf-8", "surrogateescape")
