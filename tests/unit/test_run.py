# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The counts with which `make test` closes."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

CLOSING = runpy.run_path(str(Path(__file__).resolve().parents[1] / "run.py"))["CLOSING"]


@pytest.mark.parametrize(
    ("line", "closes"),
    [
        ("2541 passed in 111.10s (0:01:51)\n", True),
        ("2541 passed, 148 warnings in 76.26s (0:01:16)\n", True),
        ("================== 2 failed, 214 passed in 823.94s (0:13:43) ===================\n", True),
        ("1 error in 0.52s\n", True),
        ("molecule: 10 passed, 0 failed, 0 skipped\n", True),
        ("0 passed, 0 failed, 1 skipped (second ansible-core: no Python >= 3.12 here)\n", True),
        ("1 failed: [gpu1] (item=tiny) =>\n", False),
        ("tests/unit/test_run.py::test_closing 1 passed\n", False),
    ],
)
def test_only_closing_lines_count(line: str, closes: bool) -> None:
    assert bool(CLOSING.match(line)) is closes
