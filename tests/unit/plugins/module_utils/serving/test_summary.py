# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The line for a person."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Outcome, Verdict
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import summary
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.model import Installs

H200, RTX = {"name": "NVIDIA H200"}, {"name": "NVIDIA GeForce RTX 4090"}


def line(gpus=(H200, H200), parts=("at :80",), check=False, cpu=False, version=None, installs=None, **outcome):
    program = summary.Program("Ollama", version, installs)
    return summary.line(Outcome(**outcome), gpus, cpu, parts, check, program)


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


FIRST, UPGRADE, AGAIN = Installs("0.32.15", first=True), Installs("0.32.15", "0.32.14"), Installs("0.32.15", "0.32.15")
DRIFT = {"A": {"declared": "1"}, "B": {"declared": None}}


@pytest.mark.parametrize(
    "given, done, would",
    [
        (
            {"installs": FIRST, "drift": DRIFT},
            "installed Ollama 0.32.15 · removed B",
            "install Ollama 0.32.15; remove B",
        ),
        ({"installs": Installs(first=True)}, "installed Ollama 0.32.15", "install Ollama"),
        ({"installs": UPGRADE}, "Ollama 0.32.14 → 0.32.15", "change Ollama 0.32.14 → 0.32.15"),
        ({"installs": AGAIN}, "Ollama 0.32.15, installed again", "change Ollama 0.32.15, installed again"),
        ({"installs": Installs()}, "Ollama ? → 0.32.15", "change Ollama ? → the declared archive"),
        ({"drift": DRIFT}, "Ollama 0.32.15 · changed A · removed B", "change A; remove B"),
    ],
)
def test_what_is_installed_changed_and_removed(given, done, would):
    assert line(changed=True, version="0.32.15", **given) == "ok · 2× H200 · at :80 · %s" % done
    assert line(check=True, changed=True, **given) == "would %s · 2× H200 · at :80" % would


def test_an_unchanged_service_names_its_version_alone():
    assert line(version="0.32.15", drift=DRIFT) == "ok · 2× H200 · at :80 · Ollama 0.32.15"


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
