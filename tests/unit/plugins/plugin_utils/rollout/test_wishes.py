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
    wishes.known(["rollout_width", "rollout_check", "ollama_rollout", "rollouts"])
    for name in ("rollout_min_redy", "rollout_do", "rollout_"):
        with pytest.raises(ValueError, match="^%s: no such variable; there are rollout_min_ready, " % name):
            wishes.known(["rollout_width", name])


@pytest.mark.parametrize(("wish", "found"), [(0, 0.0), ("60", 60.0), (0.5, 0.5)])
def test_seconds(wish, found):
    assert wishes.seconds(wish) == found


@pytest.mark.parametrize("wish", [-1, "a while", "", None, [1], "nan", "inf", "1e999"])
def test_no_seconds(wish):
    with pytest.raises(ValueError, match="expected seconds, got"):
        wishes.seconds(wish)


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
