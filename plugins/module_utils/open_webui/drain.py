# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Before Open WebUI is stopped, the answers that it is writing get time to end.

An answer on the page is a task of the process, not a connection: it is written on when the page is closed, and is lost
with the process. Facts: tasks.py and main.py of Open WebUI 0.12.4.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Mapping

from ..converge.model import Fault, Running
from ..endpoint.client import Endpoint
from ..toolbox.addresses import host_port, reachable
from ..toolbox.http_stream import HttpError
from .proof import sign_in

_LOOK = 10.0  # seconds for a request; a sign-in computes a hash
_PAUSE = 0.25  # seconds between two looks
_CALM = 2  # looks in a row without an answer that is being written: its title comes next


def await_answers(params: Mapping[str, Any], running: Running, warn: Callable[[str], None]) -> None:
    """Wait for the answers that are being written, for ``drain_timeout`` at most.

    :param params: the module's parameters.
    :param warn: called with what was cut, or could not be seen.
    """
    limit = params["drain_timeout"]
    url = "http://" + host_port(reachable(params["host"]), params["port"])
    try:
        left = _at_end(Endpoint(url, sign_in(Endpoint(url), params, _LOOK)), running, limit)
    except HttpError:
        return  # it answers nobody
    except Fault as fault:
        warn("running answers were not waited for: %s" % fault)
        return
    if left:
        warn("%d answer(s) were cut after %.0f s (drain_timeout)" % (left, limit))


def _at_end(signed_in: Endpoint, running: Running, limit: float) -> int:
    """How many answers are still being written at the end of the limit."""
    until, calm = time.monotonic() + limit, 0
    while running.alive():
        tasks = signed_in.ask("GET", "/api/tasks", _LOOK).body.get("tasks")
        number = len(tasks) if isinstance(tasks, list) else 0
        calm = 0 if number else calm + 1
        if calm >= _CALM or time.monotonic() > until:
            return number
        # it sends no word when an answer has ended
        time.sleep(_PAUSE)
    return 0
