# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a vLLM's engine is asleep: it lists its models and keeps every request waiting."""

from __future__ import annotations

import re

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint import Endpoint
from ansible_collections.gpufleet.inference.plugins.module_utils.http_stream import HttpError

_AWAKE = re.compile(r'^vllm:engine_sleep_state\{[^}\n]*sleep_state="awake"[^}\n]*\}[ \t]+([0-9.]+)', re.MULTILINE)


def asleep(endpoint: Endpoint, timeout: float = 3.0) -> bool:
    """What ``/is_sleeping`` says, which exists with ``VLLM_SERVER_DEV_MODE=1``, else the metrics (0.11 and later).

    :param timeout: seconds for each; the first one asks the engine, which may be dead.
    :returns: False also where neither tells.
    """
    try:
        said = endpoint.ask("GET", "/is_sleeping", timeout).body.get("is_sleeping")
    except HttpError:
        said = None
    if isinstance(said, bool):
        return said
    try:
        awake = _AWAKE.findall(endpoint.ask("GET", "/metrics", timeout).text)
    except HttpError:
        return False
    return bool(awake) and all(value.strip("0.") == "" for value in awake)
