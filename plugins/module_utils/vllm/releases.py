# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between releases of vLLM. Pure.

Each fact was read in the source of the releases before and after the change, as published on PyPI. An empty release is
an unknown one: nothing is rejected because of it.
"""

from __future__ import annotations

import re
from typing import Tuple

Release = Tuple[int, ...]
"""Such as (0, 33, 0)."""


def parse(version: str) -> Release:
    """The numbers of a version such as ``0.33.0+cu129``; empty for a build from source that does not know its own."""
    if version.startswith("0.1.dev"):
        return ()
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def since(release: Release, *first: int) -> bool:
    """Whether a release is this one or a later one; so is an unknown one."""
    return not release or release >= first


def model_is_read(release: Release) -> bool:
    """Whether ``vllm serve`` takes the model from its configuration file."""
    return since(release, 0, 8, 3)


def lists_are_read(release: Release) -> bool:
    """Whether a list in the configuration file becomes several words; else it is one, with brackets."""
    return since(release, 0, 10, 2)


def loads_gguf(release: Release) -> bool:
    """Whether it loads GGUF files without a plugin."""
    return bool(release) and release < (0, 24)


def paths_with_key(release: Release) -> Tuple[str, ...]:
    """How the paths begin on which it asks for the API key."""
    if not since(release, 0, 22):
        return ("/v1",)
    both = ("/v1", "/v2", "/inference")
    return (*both, "/cohere") if since(release, 0, 27) else both


def memory_share(release: Release) -> float:
    """The default of ``gpu_memory_utilization``."""
    return 0.92 if since(release, 0, 20) else 0.9


def yarn_is_applied(release: Release) -> bool:
    """Whether a context is multiplied by the factor of YaRN; later releases expect the product in config.json."""
    return not release or release < (0, 30)


def expert_part(release: Release, block: int) -> int:
    """A GPU's part of an expert must be a multiple of this, if a block of weights shares a scale.

    Later releases refine the scales, down to blocks of 32.
    """
    return min(block, 32) if since(release, 0, 29) else block
