# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small web server for the parts that speak HTTP; a unit's running invocation and GPUs as the facts show them."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest


class FakeWeb:
    """Answers by path: (status, body), or a function that gives it; None hangs up. Requests and headers are kept."""

    def __init__(self) -> None:
        self.answers: Dict[str, Any] = {}
        self.requests: List[Tuple[str, Any]] = []
        self.headers: List[Dict[str, str]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake.requests.append((self.path, json.loads(body) if body else None))
                fake.headers.append(dict(self.headers))
                answer = fake.answers.get(self.path, (404, {"detail": "Not Found"}))
                answer = answer() if callable(answer) else answer
                if answer is None:
                    return
                status, content = answer
                content = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                try:
                    self.wfile.write(content)
                except BrokenPipeError:
                    pass  # it did not wait

            do_POST = do_GET

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = "http://127.0.0.1:%d" % self.port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def web():
    fake = FakeWeb()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


class Killed(BaseException):
    """The process is as good as dead."""


class Kills:
    """Ends a piece of work at a change of a file system, as a kill would: nothing that comes after it is done either,
    though Python still unwinds. Changes are seen by audit hooks, so none is missed, whoever makes it."""

    CHANGES = ("mkdir", "rename", "remove", "rmdir", "symlink", "link", "chmod", "chown", "truncate", "utime")

    def __init__(self) -> None:
        self.left: Optional[int] = None
        self.thread = 0
        self.points = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, words: Tuple[Any, ...]) -> None:
        if self.left is None or threading.get_ident() != self.thread:
            return
        changes = event[:3] == "os." and event[3:] in self.CHANGES
        if event == "open" and isinstance(words[2], int):
            changes = bool(words[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        if changes:
            self.left -= 1
            if self.left < 0:
                raise Killed()

    def at(self, number: int, work: Callable[[], Any]) -> bool:
        """Do a piece of work and end it before its change of this number, the first being 0; whether it was ended."""
        self.thread, self.left = threading.get_ident(), number
        try:
            work()
        except Killed:
            return True
        finally:
            killed, self.left = self.left < 0, None
        assert not killed, "somebody catches BaseException and goes on"
        return False

    def each(self, prepare: Callable[[], Callable[[], Any]]) -> Any:
        """`for number in kills.each(prepare)`: ends the work that ``prepare`` gives at each of its points in turn."""
        while self.at(self.points, prepare()):
            yield self.points
            self.points += 1


_kills: List[Kills] = []


@pytest.fixture
def kills():
    if not _kills:  # audit hooks stay
        _kills.append(Kills())
    _kills[0].points = 0
    return _kills[0]


UNIT = "vllm@chat.service"
GIB = 1 << 30


def device(index: int, held: int = 0, unit: str = UNIT, pid: int = 100) -> Dict[str, Any]:
    processes = [{"pid": pid, "name": "VLLM::Worker", "type": "compute", "used_bytes": held, "unit": unit}]
    return {
        "index": index,
        "minor": index,
        "uuid": "GPU-%d" % index,
        "name": "NVIDIA H200",
        "pci_bus_id": "0000:00:0%d.0" % index,
        "memory": {"total_bytes": 140 * GIB, "free_bytes": 140 * GIB - held},
        "display_active": False,
        "mig": {"enabled": False},
        "health": {"ok": True, "fit": True, "lost": False, "reasons": []},
        "processes": processes if held else [],
    }


def facts(held: Tuple[int, ...] = (0, 0, 0, 0), source: str = "nvml", **more: Any) -> Dict[str, Any]:
    devices = [device(index, bytes_, **more) for index, bytes_ in enumerate(held)]
    return {"source": source, "count": len(devices), "fault": None, "devices": devices}


class FakeSystem:
    def __init__(self, listener: Optional[Tuple[int, str]]) -> None:
        self._listener, self.synced = listener, False

    def listener(self, port: int) -> Optional[Tuple[int, str]]:
        return self._listener

    def sync_journal(self) -> None:
        self.synced = True


class FakeRunning:
    """A unit's running invocation, as the engine hands it to a gate."""

    unit = UNIT
    pids = [99, 100]
    main_pid = 99
    invocation_id = "first"

    def __init__(self, timeout: float = 60.0, listener: Optional[Tuple[int, str]] = (99, "python")) -> None:
        self.log: List[str] = []
        self.environ: Dict[str, str] = {}
        self.is_alive: Callable[[], bool] = lambda: True
        self.started_monotonic = time.monotonic()
        self.deadline = self.started_monotonic + timeout
        self.system = FakeSystem(listener)

    def journal(self, max_lines: int = 1000) -> List[str]:
        return list(self.log[-max_lines:])

    def alive(self) -> bool:
        return self.is_alive()

    def dying(self) -> bool:
        return not self.is_alive()


@pytest.fixture
def fakes():
    """This file: `fakes.facts()`, `fakes.FakeRunning()`."""
    return sys.modules[__name__]
