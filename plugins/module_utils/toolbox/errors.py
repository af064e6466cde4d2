# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors that end a module. Each message says what was found, what was expected, where, and what to do."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence


class Refused(Exception):
    """The declaration is wrong, or cannot be met on this host. Nothing was changed."""


class Needed(Exception):
    """Files are needed on this host; call again when they are here. Nothing was changed."""

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__(", ".join(files))
        self.files = list(files)


class Failed(Exception):
    """Something was tried and failed; ``result`` reports what was done and rolled back, as the module returns it.

    :param result: the module's result without ``msg``; ``changed: false`` if left out.
    """

    def __init__(self, message: str, result: Optional[Mapping[str, Any]] = None) -> None:
        super().__init__(message)
        self.result: Dict[str, Any] = dict(result or {"changed": False})
