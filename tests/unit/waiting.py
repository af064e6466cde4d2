# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for another thread or process that cannot be asked to say when it is ready."""

from __future__ import annotations

import time
from typing import Any, Callable


def until(condition: Callable[[], Any], limit: float = 60, said: Callable[[], str] = str) -> Any:
    """The first true value of a condition, within so many seconds.

    :param said: what to show where it never comes.
    """
    end = time.monotonic() + limit
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, "not within %d s. %s" % (limit, said())
        time.sleep(0.02)
