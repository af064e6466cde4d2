# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Predictions from measured restarts: where they come from, and how far off they are on a recorded series."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import predict

ROW = {"service": "ollama", "engine": "ollama", "why": "X changes", "restart": True}
KNOWN = {"a": {"ollama": [2.0]}, "b": {"ollama": [4.0, 4.2, 30.0]}, "c": {"vllm@x": [90.0]}}


@pytest.mark.parametrize(
    ("series", "host", "more", "seconds", "basis"),
    [
        (KNOWN, "a", {}, 2.0, "last restart here"),
        (KNOWN, "b", {}, 4.2, "median of the last 3 restarts here"),
        (KNOWN, "a", {"restarts": [7.0, 9.0]}, 8.0, "median of the last 2 restarts here"),
        (KNOWN, "a", {"start": 5.0}, 2.0, "last restart here"),
        (KNOWN, "c", {"start": 5.0}, 5.0, "last start here"),
        (KNOWN, "c", {}, 3.1, "restarts of other hosts"),
        ({}, "c", {}, 10.0, "default"),
        ({}, "c", {"service": "maintenance", "engine": ""}, 600.0, "default"),
        (KNOWN, "a", {"restart": False}, 0.0, "no restart"),
    ],
)
def test_the_nearest_measured_restarts_predict(series, host, more, seconds, basis):
    found = predict.predicted(series, {}, host, dict(ROW, **more))
    assert (found["predicted"], found["basis"]) == (seconds, basis)
    assert bool(found["restarts"]) == ("restart" in basis and basis.endswith("here"))


VLLM = {"service": "vllm@x", "engine": "vllm", "why": "new", "restart": True, "weights": 40 << 30}
LOADED = {
    "a": [dict(VLLM, service="vllm@y", weights=20 << 30, restarts=[30.0, 20.0, 90.0])],
    "b": [dict(VLLM, restarts=[20.0]), dict(VLLM, weights=0, restarts=[9.0])],
    "c": [dict(VLLM, restarts=[])],
}


@pytest.mark.parametrize(
    ("host", "more", "seconds", "basis"),
    [
        ("a", {}, 60.0, "its weights, by restarts measured here"),
        ("c", {}, 30.0, "its weights, by restarts measured on other hosts"),
        ("c", {"weights": 0}, 90.0, "restarts of other hosts"),
        ("c", {"engine": "llama_server"}, 90.0, "restarts of other hosts"),
    ],
)
def test_weights_predict_the_first_restart(host, more, seconds, basis):
    rates = predict.rates(LOADED)
    found = predict.predicted({"z": {"vllm@x": [90.0]}}, rates, host, dict(VLLM, **more))
    assert (found["predicted"], found["basis"], found["restarts"]) == (seconds, basis, [])


def test_the_last_few_restarts_are_remembered():
    series = {}
    for number in range(9):
        predict.remember(series, "a", {"ollama": float(number)})
    assert series == {"a": {"ollama": [4.0, 5.0, 6.0, 7.0, 8.0]}}


def row(seconds, restarts=(), **more):
    return dict(ROW, predicted=seconds, restarts=list(restarts), **more)


@pytest.mark.parametrize(
    ("own", "canary", "seconds", "renewed"),
    [
        (row(10.0), row(10.0), 2.0, 2.0),
        (row(8.0, [8.0]), row(4.0, [4.0]), 5.0, 10.0),  # slower storage stays slower
        (row(8.0, [8.0]), row(10.0), 5.0, 5.0),
        (row(10.0), row(4.0, [4.0]), 5.0, 5.0),
        (row(0.0, [0.001]), row(0.0, [0.001]), 5.0, 5.0),
        (row(10.0), row(10.0), None, None),
        (row(10.0, why="another model"), row(10.0), 2.0, None),
        (row(10.0, service="vllm@x"), row(10.0), 2.0, None),
        (row(0.0, restart=False), row(0.0, restart=False), 2.0, None),
    ],
)
def test_the_canary_renews_the_predictions_for_hosts_that_change_alike(own, canary, seconds, renewed):
    (found,) = predict.renewed([own], [canary], {} if seconds is None else {"ollama": seconds})
    assert found.get("renewed") == renewed and "renewed" not in own


def test_the_error_of_predictions():
    assert predict.error([(2.0, 2.5), (10.0, None), (3.0, 2.5)]) == 0.2
    assert predict.error([(2.0, None)]) is None and predict.error([]) is None


QUIET = [0.28, *[0.26] * 14, 0.28, 0.29, 0.26, 0.26, 0.26, 0.26, 0.28, 0.26, 0.26]
BUSY = [
    *(0.26, 0.28, 0.28, 0.28, 0.27, 0.67, 0.74, 0.28, 0.26, 0.28, 0.28, 0.26),
    *(0.27, 0.28, 0.27, 0.27, 0.26, 0.26, 0.26, 0.26, 0.27, 0.33, 0.27, 0.28),
]
"""Seconds of restarts of a real llama-server until it had answered, on an idle machine, and on one that was overloaded
three times."""


def pairs(series, window):
    """Each restart but the first: predicted from those before it that are remembered, and measured."""
    for number in range(1, len(series)):
        known = {}
        for seconds in series[:number][-window:]:
            predict.remember(known, "a", {"ollama": seconds})
        yield predict.predicted(known, {}, "a", ROW)["predicted"], series[number]


def test_measured_restarts_predict_the_next_one_to_within_a_fifth():
    off = [[predict.error([pair]) > 0.2 for pair in pairs(series, predict.KEPT)] for series in (QUIET, BUSY)]
    assert list(map(sum, off)) == [0, 3], "of 23 restarts each; the three are the slow ones"
    assert predict.error(pairs(BUSY, predict.KEPT)) < predict.error(pairs(BUSY, 1)), "the last one alone is worse"
