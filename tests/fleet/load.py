# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that ask a service during a change."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any, Callable, List


def fault_of_stream(address: str, port: int, body: str, **headers: str) -> str:
    """What went wrong with one streamed answer of Ollama's, if anything did."""
    connection = http.client.HTTPConnection(address, port, timeout=60)
    try:
        connection.request("POST", "/api/generate", body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        if answer.status != 200:
            return "failed: %d" % answer.status
        last = answer.read().strip().rpartition(b"\n")[2]
        return "" if json.loads(last or b"{}").get("done") else "cut"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return "cut: %s" % error
    finally:
        connection.close()


class Load:
    """Clients that ask again and again. The block begins once they get answers, and its value is the list of them.

    :param ask: called with the number of the client; an error that it raises counts as its answer.
    """

    def __init__(self, ask: Callable[[int], Any], clients: int = 4) -> None:
        self.ask, self.ended = ask, threading.Event()
        self.answers: List[Any] = []
        self.threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def _client(self, number: int) -> None:
        while not self.ended.is_set():
            try:
                self.answers.append(self.ask(number))
            except Exception as error:
                self.answers.append(error)

    def __enter__(self) -> List[Any]:
        for thread in self.threads:
            thread.start()
        until = time.monotonic() + 60
        while len(self.answers) < 2 * len(self.threads) and time.monotonic() < until:
            time.sleep(0.05)  # a list cannot be waited for
        return self.answers

    def __exit__(self, *_error: Any) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()
