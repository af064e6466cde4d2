# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model of a service: its path on the host, and how long loading it may take. Pure."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Tuple

_RATE = 100e6  # bytes that even slow storage gives in a second


def located(options: Mapping[str, Any]) -> Tuple[Optional[str], str]:
    """The path of a model in ``model_paths`` and its name there; of any other, what ``model`` says, and no name."""
    wanted = options["model"]
    path = options["model_paths"].get(wanted)
    return (path, wanted) if path else (wanted, "")


def start_limit(base: float, size: int) -> int:
    """Seconds that a start may take: so long that slow storage is not taken for a fault. Stalls end it sooner.

    :param base: seconds without the weights.
    :param size: bytes of the weights.
    """
    return int(base + size / _RATE)
