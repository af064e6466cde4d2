# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text written by somebody else, made safe for a terminal. Pure."""

from __future__ import annotations

import re
from typing import Iterable

_SEQUENCE = re.compile("(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]")
"""Colors and cursor movements, which mean nothing to a reader."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and line ends, those that reverse the direction of a line, and halves of characters."""


def printable(text: str) -> str:
    """The text without anything that a terminal obeys; lines end with ``\\n``, every odd character becomes ``?``."""
    return _CONTROL.sub("?", _SEQUENCE.sub("", text)).replace("\r\n", "\n").replace("\r", "\n")


def one_line(text: str, limit: int = 300) -> str:
    """The same on one line of at most ``limit`` characters."""
    return " ".join(printable(text).split())[:limit]


def near(name: str, known: Iterable[str]) -> str:
    """``; did you mean NAME?`` with the known name that is nearest; empty where none is near."""
    import difflib  # only for names that are not known

    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return "; did you mean %s?" % found[0] if found else ""
