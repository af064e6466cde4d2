# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stages of `make test`, and the counts with which it closes."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

RUN = runpy.run_path(str(Path(__file__).resolve().parents[1] / "run.py"))
CLOSING = RUN["CLOSING"]


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


@pytest.fixture
def tool(tmp_path: Path) -> str:
    """What stands in for make: a target that another one waits for, and one that fails."""
    script = tmp_path / "make"
    script.write_text(
        "#!/bin/sh\ncd %s\n"
        'case $1 in first) until test -e there; do sleep 0.01; done; echo "3 passed in 1s";;\n'
        'second) touch there; echo "sanity: 2 passed, 1 failed, 1 skipped"; exit 1;; esac\n' % tmp_path
    )
    script.chmod(0o755)
    return str(script)


def test_targets_at_the_same_time(tool: str, capsys: pytest.CaptureFixture) -> None:
    first, second = RUN["at_once"](["first", "second"], tool)
    assert (first.good, first.counts["passed"]) == (True, 3)
    assert (second.good, dict(second.counts)) == (False, {"passed": 2, "failed": 1, "skipped": 1})
    said = capsys.readouterr().out.split("\n\n===== second\n")
    assert "3 passed" in said[0] and "sanity" in said[1], "not between each other's lines"
    assert str(second).startswith("second        FAILED") and str(second).endswith("2 passed, 1 failed, 1 skipped")


def test_a_target_that_counts_nothing_is_one_test(tool: str) -> None:
    (other,) = RUN["at_once"](["other"], tool)
    assert other.good and dict(other.counts) == {"passed": 1}
