# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM's sleep mode. An engine that is asleep lists its models and keeps every request waiting.

At level 1 its weights are in the host's memory, at level 2 they are gone: it can then be woken, but not serve.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ..endpoint.client import Endpoint
from ..toolbox.http_stream import HttpError

_GAUGE = "vllm:engine_sleep_state{"
RESIDUE = 3 << 30
"""Bytes of each GPU that an engine keeps while it is asleep: CUDA's context, NCCL's and torch's own memory."""


def level(endpoint: Endpoint, timeout: float = 3.0) -> int:
    """0 for an engine that is awake, else the level at which it sleeps.

    ``/is_sleeping`` exists with ``VLLM_SERVER_DEV_MODE=1``, the metrics since 0.11.

    :param timeout: seconds for each; the first one asks the engine, which may be dead.
    :returns: 0 also where neither says so.
    """
    try:
        said = endpoint.ask("GET", "/is_sleeping", timeout).body.get("is_sleeping")
    except HttpError:
        said = None
    if said is False:
        return 0
    try:
        lines = endpoint.ask("GET", "/metrics", timeout).text.splitlines()
    except HttpError:
        lines = []
    states = [line for line in lines if line.startswith(_GAUGE)]
    if said is not True and (not _values(states, "awake") or any(_values(states, "awake"))):
        return 0
    return 2 if any(_values(states, "discard_all")) else 1


def _values(lines: Sequence[str], state: str) -> Sequence[bool]:
    """Whether each engine is in this state."""
    found = [line.rpartition(" ")[2] for line in lines if 'sleep_state="%s"' % state in line]
    return [value not in ("0", "0.0") for value in found]


def share(whole: float, devices: Sequence[Mapping[str, Any]]) -> float:
    """The share of each GPU's memory that an engine keeps while it is asleep.

    :param whole: its share while it is awake.
    """
    return min([whole, *(RESIDUE / device["memory"]["total_bytes"] for device in devices)])


def host_memory() -> int:
    """Bytes of the host's memory that programs can take; 0 if it is not known."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = [line.split()[1] for line in file if line.startswith("MemAvailable:")]
    except OSError:
        return 0
    return int(found[0]) << 10 if found else 0
