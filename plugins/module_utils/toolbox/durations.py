# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Durations as Go's time.ParseDuration reads and Duration.String prints them. Pure."""

from __future__ import annotations

import re

FOREVER = (1 << 63) - 1
"""Nanoseconds; how Go writes "no limit" as a duration."""

_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")


def parse_go_duration(written: str) -> int:
    """Nanoseconds of a Go duration such as ``5m``, ``1h30m``, ``-1.5h``.

    :raises ValueError: it is none.
    """
    sign, rest = (-1, written[1:]) if written.startswith("-") else (1, written[1:] if written[:1] == "+" else written)
    if rest == "0":
        return 0
    total, at = 0, 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if not part:
            break
        whole, _sep, fraction = part.group(1).partition(".")
        unit = _UNITS[part.group(2)]
        total += int(whole or 0) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
        at = part.end()
    if not rest or at < len(rest) or total > FOREVER:
        raise ValueError("%r is not a Go duration" % written)
    return sign * total


def go_duration(nanoseconds: int) -> str:
    """A duration as Go prints it: ``5m0s``, ``1h30m0s``, ``300ms``, ``0s``."""
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 10**9:
        for unit, scale in (("ms", 10**6), ("µs", 10**3), ("ns", 1)):
            if nanoseconds >= scale:
                return _decimal(nanoseconds, scale) + unit
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    printed = _decimal(rest, 10**9) + "s"
    if hours:
        return "%dh%dm%s" % (hours, minutes, printed)
    return "%dm%s" % (minutes, printed) if minutes else printed


def _decimal(number: int, scale: int) -> str:
    whole, rest = divmod(number, scale)
    digits = len(str(scale)) - 1
    return ("%d.%0*d" % (whole, digits, rest)).rstrip("0").rstrip(".") if rest else str(whole)
