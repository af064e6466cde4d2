# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values that people write with units. Pure."""

from __future__ import annotations

import re
from typing import Union

from .errors import Refused

GIB = 1 << 30
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?)?\Z", re.IGNORECASE)


def size(value: Union[str, int, float], option: str) -> int:
    """Bytes of a size: a number, or a number with K, M, G or T (powers of 1000) or Ki, Mi, Gi or Ti (powers of 1024),
    with or without a B, in any case: ``2GiB``, ``2Gi``, ``1.5 GB``, ``512M``, ``1073741824``.

    :param option: the option's name, for the message.
    :raises Refused: it is not a size.
    """
    found = None if isinstance(value, bool) else _SIZE.match(str(value).strip())
    if not found or ("." in found.group(1) and not found.group(2)):
        raise Refused("%s is %r; expected bytes, or a size such as 2GiB or 500MB" % (option, value))
    number, unit, binary = found.groups()
    factor = (1024 if binary else 1000) ** " KMGT".index(unit.upper()) if unit else 1
    return int(float(number) * factor) if "." in number else int(number) * factor


def gib(number: float) -> str:
    """Bytes for a person: ``1.5 GiB``; in MiB below a quarter of a GiB."""
    return "%.1f GiB" % (number / GIB) if number >= GIB / 4 else "%.1f MiB" % (number / (1 << 20))
