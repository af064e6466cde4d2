# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Before Open WebUI is stopped, the answers that it is writing get time to end.

An answer on the page is a task of the process, not a connection: it is written on when the page is closed, and is lost
with the process. Facts: tasks.py and main.py of Open WebUI 0.12.4.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Mapping, TypeVar

from ..converge.model import Fault, Running
from ..endpoint.client import Endpoint
from ..toolbox.addresses import host_port, reachable
from ..toolbox.http_stream import HttpError
from .proof import sign_in

_LOOK = 10.0  # seconds for a request; a sign-in computes a hash
_PAUSE = 0.25  # seconds between two looks
_CALM = 2  # looks in a row without an answer that is being written: its title comes next
_T = TypeVar("_T")


def await_answers(params: Mapping[str, Any], running: Running, warn: Callable[[str], None]) -> None:
    """Wait for the answers that are being written, for ``drain_timeout`` at most, and the request that is under way.

    :param params: the module's parameters.
    :param warn: called with what was cut, or could not be seen.
    """
    limit = params["drain_timeout"]
    until = time.monotonic() + limit
    url = "http://" + host_port(reachable(params["host"]), params["port"])
    token = ""
    try:
        token = _patiently(lambda: sign_in(Endpoint(url), params, _LOOK), running, until)
        left = _at_end(Endpoint(url, token), running, until)
    except (HttpError, Fault) as error:
        serves = token or not isinstance(error, HttpError) or error.timed_out
        if serves and running.alive():
            warn("running answers were not waited for: %s" % error)
        return
    if left:
        warn("%d answer(s) were cut after %.0f s (drain_timeout)" % (left, limit))


def _at_end(signed_in: Endpoint, running: Running, until: float) -> int:
    """How many answers are still being written at the end of the time."""
    calm = 0
    while running.alive():
        answer = _patiently(lambda: signed_in.ask("GET", "/api/tasks", _LOOK), running, until)
        tasks = answer.body.get("tasks")
        if answer.status != 200 or not isinstance(tasks, list):
            raise Fault(
                "not_seen",
                "%s/api/tasks answers %d (%s), expected 200 with the list of them; it is for administrators"
                % (signed_in.url, answer.status, answer.error),
            )
        calm = 0 if tasks else calm + 1
        if calm >= _CALM or time.monotonic() > until:
            return len(tasks)
        # it sends no word when an answer has ended
        time.sleep(_PAUSE)
    return 0


def _patiently(ask: Callable[[], _T], running: Running, until: float) -> _T:
    """What is answered. A server that is too busy to answer in time is asked again."""
    while True:
        try:
            return ask()
        except HttpError as error:
            if not error.timed_out or time.monotonic() > until or not running.alive():
                raise
