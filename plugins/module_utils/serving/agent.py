# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent of a host (``programs/gateway_agent.py``), as other parts know it: what it reads, and asking it."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, Dict

CONFIG = "/etc/gpufleet/gateway-agent.json"
"""What it reads; a host without it has no gateways."""
MARKS = "/run/gpufleet-agent"
"""Folder of the marks of services that take no new requests; see drain.py."""
_LIMIT = 2.0  # seconds that it may take
_LARGEST = 1 << 20  # bytes of an answer


def marked(unit: str) -> bool:
    """Whether a run has taken a service out of its load balancers, or found it unfit. Costs one system call."""
    return os.path.lexists(os.path.join(MARKS, unit))


def ask(port: int) -> Dict[str, Any]:
    """``services``: what it last said of each unit (``said``), and since when each gateway knows that it is drained
    (``drained``), and how often each was told since then that it is ready (``ready``); ``gateways``: when each last
    asked; ``started``. All times are on CLOCK_MONOTONIC. Empty where it gives no usable answer.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_LIMIT) as connection:
            connection.sendall(b"?\n")
            content, until = b"", time.monotonic() + _LIMIT
            while len(content) < _LARGEST and time.monotonic() < until:
                part = connection.recv(65536)
                if not part:
                    break
                content += part
        found = json.loads(content.decode("utf-8"))
    except (OSError, ValueError, RecursionError):  # any user may listen there while it is down
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("services"), dict) else {}
