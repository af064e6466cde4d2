# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The line for a person."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Outcome, Verdict
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import summary

H200, RTX = {"name": "NVIDIA H200"}, {"name": "NVIDIA GeForce RTX 4090"}


def line(gpus=(H200, H200), parts=("at :80",), check=False, cpu=False, **outcome):
    return summary.line(Outcome(**outcome), gpus, cpu, parts, check)


@pytest.mark.parametrize(
    "gpus, words",
    [((H200, H200), "2× H200"), ((RTX, H200, {"name": ""}), "1× RTX 4090 + 1× H200 + 1× GPU"), ((), "no GPU")],
)
def test_the_gpus(gpus, words):
    assert line(gpus) == "ok · %s · at :80" % words


def test_a_service_without_gpus():
    assert line((), cpu=True) == "ok · CPU · at :80"


def test_a_restart():
    done = {"changed": True, "restarted": True, "downtime_ms": 1896}
    assert line(**done) == "ok · 2× H200 · at :80 · restart 1.9 s"
    assert line(remedied="cpu_fallback", **done) == "ok · 2× H200 · at :80 · restart 1.9 s · was cpu_fallback"
    assert line(verdict=Verdict("stalled")).startswith("stalled · ")


@pytest.mark.parametrize(
    "outcome, words",
    [
        ({"drift": {"B": {}, "A": {}}}, "would change A, B"),
        ({"drift": {"A": {}}, "reasons": ["the file differs", "it runs another program"]}, "would change A ·"),
        ({"drift": {"GPUFLEET_FILES": {}}, "reasons": ["x", "y"]}, "would restart it: x; y ·"),
        ({}, "would change the installation"),
        ({"restarted": True, "remedied": "x", "reasons": ["x: no GPU"]}, "would restart it: x: no GPU"),
        ({"remedied": "x", "reasons": ["x: dead"]}, "would load it again: x: dead"),
    ],
)
def test_in_check_mode_it_says_what_would_be_done(outcome, words):
    said = line(check=True, changed=True, downtime_ms=5, **outcome)
    assert said.startswith(words)
    assert said.endswith("2× H200 · at :80"), "no restart was made"
