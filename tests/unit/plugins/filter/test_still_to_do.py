# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts the roles are run on."""

from __future__ import annotations

from typing import Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.filter.still_to_do import AS_DECLARED, NONE, SHARING, FilterModule

still_to_do = FilterModule().filters()["still_to_do"]


@pytest.mark.parametrize(
    "groups, pattern",
    [
        ({}, NONE),
        ({"ollama": []}, NONE),
        ({"vllm": ["a"]}, NONE),
        ({"ollama": ["a", "b"]}, "ollama"),
        ({"ollama": ["a", "b"], AS_DECLARED: ["c"]}, "ollama:!gpufleet_as_declared"),
        ({"ollama": ["a", "b"], AS_DECLARED: ["a"]}, "ollama:!gpufleet_as_declared"),
        ({"ollama": ["a", "b"], AS_DECLARED: ["b", "a", "c"]}, NONE),
        ({"ollama": ["a", "b"], SHARING: ["b", "a"]}, NONE),
        ({"ollama": ["a", "b"], SHARING: ["b"], AS_DECLARED: ["a"]}, NONE),
        ({"ollama": ["a", "b"], SHARING: ["b"]}, "ollama"),
        ({"ollama": ["a", "b", "c"], SHARING: ["b"], AS_DECLARED: ["a"]}, "ollama:!gpufleet_as_declared"),
    ],
)
def test_the_hosts(groups: Dict[str, List[str]], pattern: str) -> None:
    assert still_to_do(groups, "ollama") == pattern
