# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of a host, also by two runs at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.gpufleet.inference.plugins.module_utils.service import made


def test_what_was_made_is_remembered_until_it_is_dropped(remembered: Path) -> None:
    for name in ("a", "b", "a"):
        made.add("units", name)
    assert made.remembered("units") == ["a", "b"] and made.remembered("users") == []
    made.drop("units", "a")
    made.drop("units", "never")
    assert made.remembered("units") == ["b"]
    made.drop("units", "b")
    assert not remembered.parent.exists()


def _many(begin: str) -> None:
    for number in range(20):
        made.add("units", "%s%d" % (begin, number))
        made.drop("users", begin)


def test_runs_at_once_lose_nothing_of_each_other(remembered: Path) -> None:
    with ThreadPoolExecutor(3) as runs:
        list(runs.map(_many, "abc"))
    assert len(made.remembered("units")) == 60
