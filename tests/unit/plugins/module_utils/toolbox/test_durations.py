# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Durations as Go reads and prints them."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.durations import (
    FOREVER,
    go_duration,
    parse_go_duration,
)


@pytest.mark.parametrize(
    "nanoseconds, printed",
    [
        (0, "0s"),
        (1, "1ns"),
        (1500, "1.5µs"),
        (2_000_000, "2ms"),
        (10**9, "1s"),
        (61 * 10**9, "1m1s"),
        (3600 * 10**9 + 5 * 10**8, "1h0m0.5s"),
        (FOREVER, "2562047h47m16.854775807s"),
    ],
)
def test_go_prints_durations(nanoseconds, printed):
    assert go_duration(nanoseconds) == printed
    assert parse_go_duration(printed) == nanoseconds


@pytest.mark.parametrize("written", ["", "-", "5", "1d", "m5", "5m ", ".s", "1e3s"])
def test_what_is_no_go_duration(written):
    with pytest.raises(ValueError):
        parse_go_duration(written)
