# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a table of options tells of a configuration for certain, and what it leaves to the parser."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import parser


def option(*takes, bare=False, several=False, choices=None):
    return {"takes": list(takes), "bare": bare, "several": several, "choices": choices}


ALL = ("text", "number", "whole")
TABLE = {
    "model": option(*ALL),
    "served-model-name": option(*ALL, several=True),
    "middleware": option(*ALL),
    "dtype": option(*ALL, choices=["auto", "half"]),
    "max-num-seqs": option("whole"),
    "gpu-memory-utilization": option("number", "whole"),
    "enforce-eager": option(*ALL, bare=True),
    "no-enforce-eager": option(*ALL, bare=True),
    "compilation-config": option(),
}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model": "/srv/models/m 1", "served-model-name": ["a", "b"], "middleware": ["x.Y"]},
        {"dtype": "half", "enforce-eager": True, "max-num-seqs": 64, "gpu-memory-utilization": 0.4},
        {"no-enforce-eager": True, "gpu-memory-utilization": 1, "max-num-seqs": "64"},
    ],
)
def test_certain(config):
    assert parser.certain(config, TABLE)
    assert parser.unknown(config, TABLE) == []


@pytest.mark.parametrize(
    "config",
    [
        {"max-num-seqs": "many"},
        {"max-num-seqs": 1.5},
        {"max-num-seqs": -1},
        {"max-num-seqs": True},
        {"max-num-seqs": "8\n9"},
        {"gpu-memory-utilization": 1e-05},
        {"dtype": "float7"},
        {"middleware": ["x.Y", "x.Z"]},
        {"served-model-name": []},
        {"served-model-name": [None]},
        {"model": None},
        {"model": ""},
        {"model": "-x"},
        {"model": '{"a": 1'},
        {"model": {"a": 1}},
        {"enforce-eager": "yes"},
        {"enforce-eager": False},
        {"compilation-config.pass_config.x": "true"},
        {"compilation-config": 3},
        {"enforce": True},
    ],
)
def test_left_to_the_parser(config):
    assert not parser.certain(config, TABLE)
    assert parser.unknown(config, TABLE) == [], "it may yet be right, if only as an abbreviation"


def test_names_that_no_option_begins_with():
    assert parser.unknown({"max-modle-len": 1, "model": "m", "dtypes": "half"}, TABLE) == ["dtypes", "max-modle-len"]
