# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate that is asked again: until when, and for which faults."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Fault, Running, Verdict

FOREVER, PAST = float("inf"), float("-inf")
OLD, GONE, OK = Fault("old_configuration", "x"), Fault("not_reloaded", "x"), Verdict("ok")


@pytest.mark.parametrize(
    ("answers", "changed", "deadline", "dying", "name", "left"),
    [
        ([OLD, OLD, OK], True, FOREVER, False, "ok", 0),
        ([OLD, OK], False, FOREVER, False, "old_configuration", 1),
        ([OLD, OK], True, PAST, False, "old_configuration", 1),
        ([OLD, OK], True, FOREVER, True, "old_configuration", 1),
        ([OLD, GONE, OK], True, FOREVER, False, "not_reloaded", 1),
    ],
)
def test_it_is_asked_until(
    answers: List[Any], changed: bool, deadline: float, dying: bool, name: str, left: int
) -> None:
    answers = list(answers)

    def look() -> Verdict:
        answer = answers.pop(0)
        if isinstance(answer, Fault):
            raise answer
        return answer

    process: Any = SimpleNamespace(ended_within=lambda _seconds: dying)
    system: Any = None
    running = Running("x.service", 1, "i", {}, 0.0, deadline, "/x", process, system)
    assert running.await_ok(look, changed).name == name and len(answers) == left
