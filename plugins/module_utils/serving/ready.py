# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A unit next to a service that is started once the service answers, so that others can be ordered after it.

The service itself is started as soon as its process runs: a load of many minutes would otherwise hold up the boot, and
every ``systemctl start``.
"""

from __future__ import annotations

import os
import sys
from typing import Dict, Optional

from ..systemd.render import argument
from ..toolbox.source import source_of

_TEXT = """\
# Written by the Ansible collection gpufleet.inference, which replaces this file on its next run.
[Unit]
Description=Waits until %(unit)s answers requests
After=%(unit)s

[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=%(command)s
DynamicUser=yes
ProtectHome=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_INET AF_INET6
"""


def text(unit: str, url: str) -> str:
    """The unit that waits for another one.

    :param url: where the other one answers once it can be used.
    """
    # a host that has none of these units does not need it
    from ..programs import await_ready

    words = [os.path.realpath(sys.executable), "-I", "-c", source_of(await_ready), url]
    return _TEXT % {"unit": unit, "command": " ".join(map(argument, words))}


class ReadyStep:
    """Writes the unit file, or removes it.

    :param path: of the file.
    :param text: None: there is to be none.
    :param root: is put before the path (for tests).
    """

    restarts = False

    def __init__(self, path: str, text: Optional[str], root: str = "") -> None:
        self.path, self.text = root + path, text
        self.before = self._read()

    def needed(self) -> bool:
        return self.before != self.text

    def diff(self) -> Dict[str, str]:
        return {"before": self.before or "", "after": self.text or ""}

    def apply(self) -> None:
        self._put(self.text)

    def undo(self) -> None:
        if self._read() != self.before:
            self._put(self.before)

    def _put(self, text: Optional[str]) -> None:
        from ..toolbox import files

        if text is None:
            files.remove(self.path)
        else:
            files.write_whole(self.path, text.encode("utf-8"))

    def _read(self) -> Optional[str]:
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return None
