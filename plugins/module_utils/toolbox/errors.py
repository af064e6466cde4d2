# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors that end a run before anything was changed. Each message says what was found, what was expected, and where."""

from __future__ import annotations

from typing import Sequence


class Refused(Exception):
    """What is declared is wrong, or cannot be had on this host. Nothing was changed."""


class Needed(Exception):
    """Files that lie on the controller are needed on this host; call again once they are here. Nothing was changed."""

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__(", ".join(files))
        self.files = list(files)
