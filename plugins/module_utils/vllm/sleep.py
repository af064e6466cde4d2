# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a vLLM's engine is asleep: it lists its models and keeps every request waiting."""

from __future__ import annotations

from ..endpoint.client import Endpoint
from ..toolbox.http_stream import HttpError

_GAUGE, _AWAKE = "vllm:engine_sleep_state{", 'sleep_state="awake"'


def asleep(endpoint: Endpoint, timeout: float = 3.0) -> bool:
    """What ``/is_sleeping`` says, which exists with ``VLLM_SERVER_DEV_MODE=1``, else the metrics (0.11 and later).

    :param timeout: seconds for each; the first one asks the engine, which may be dead.
    :returns: False also where neither says so.
    """
    try:
        said = endpoint.ask("GET", "/is_sleeping", timeout).body.get("is_sleeping")
    except HttpError:
        said = None
    if isinstance(said, bool):
        return said
    try:
        lines = endpoint.ask("GET", "/metrics", timeout).text.splitlines()
    except HttpError:
        return False
    awake = [line.rpartition(" ")[2] for line in lines if line.startswith(_GAUGE) and _AWAKE in line]
    return bool(awake) and all(value in ("0", "0.0") for value in awake)
