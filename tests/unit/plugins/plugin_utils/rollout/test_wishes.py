# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person may ask of a rollout."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import wishes
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.plan import Unit

UNITS = [Unit(("a",)), Unit(("b", "c")), Unit(("d",))]


def test_a_misspelt_variable_is_refused():
    wishes.known(["rollout_width", "rollout_check", "ollama_rollout", "rollouts"], ["rollout_width"])
    for name in ("rollout_min_redy", "rollout_do", "rollout_", "rollout_admission"):
        with pytest.raises(ValueError, match="^%s: no such variable; there are rollout_min_ready, " % name):
            wishes.known(["rollout_width", name], [name])


@pytest.mark.parametrize(("wish", "found"), [(0, 0.0), ("60", 60.0), (0.5, 0.5)])
def test_seconds(wish, found):
    assert wishes.seconds(wish) == found


@pytest.mark.parametrize("wish", [-1, "a while", "", None, [1], "nan", "inf", "1e999"])
def test_no_seconds(wish):
    with pytest.raises(ValueError, match="expected seconds, got"):
        wishes.seconds(wish)


@pytest.mark.parametrize(
    ("wish", "found"),
    [
        (2, (2, None)),
        ("25%", (3, None)),
        ({"total": "25%", "in_a_row": 1}, (3, 1)),
        ({"total": 0}, (0, None)),
        ({"in_a_row": "25%"}, (10, 3)),
        ({}, (10, None)),
    ],
)
def test_failures_in_all_and_in_a_row(wish, found):
    assert wishes.failures(wish, 10) == found


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"total": 1, "inarow": 2}, "expected total and in_a_row, got inarow"),
        ({"in_a_row": "few"}, "'few' is neither a number nor a share"),
        (["a"], "is neither a number nor a share"),
    ],
)
def test_other_limits_of_failures_are_refused(wish, said):
    with pytest.raises(ValueError, match=said):
        wishes.failures(wish, 10)


@pytest.mark.parametrize(
    ("wish", "found"),
    [(None, ["a"]), ("d", ["d"]), ("d,a", ["a", "d"]), (["c"], ["b", "c"]), ("", []), ([], []), ("e", ["a"])],
)
def test_the_canary(wish, found):
    assert wishes.canary(wish, "abcde", UNITS) == found


def test_the_canary_is_a_host_of_the_run():
    with pytest.raises(ValueError, match="f is not a host of this run"):
        wishes.canary(["f"], "abcde", UNITS)
    assert wishes.canary(None, "abcde", UNITS[:1]) == [], "nothing is left to be spared"
