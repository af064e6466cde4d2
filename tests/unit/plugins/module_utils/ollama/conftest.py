# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Four GPUs as the facts show them, a running unit, and a server to answer for it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import moving
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import access

UNIT = "ollama.service"
GIB = 1 << 30


def uuid(index: int) -> str:
    return "GPU-0000000%d-0000-4000-8000-000000000001" % index


def device(index: int, held: int = 0, unit: str = UNIT) -> Dict[str, Any]:
    """One GPU of the facts, as far as the Ollama part looks at it; `held` bytes by a process of `unit`."""
    processes = [{"pid": 100, "name": "llama-server", "type": "compute", "used_bytes": held, "unit": unit}]
    return {
        "index": index,
        "uuid": uuid(index),
        "name": "NVIDIA H200",
        "pci_bus_id": "0000:00:0%d.0" % (6 + index),
        "minor": index,
        "unavailable": {},
        "memory": {"total_bytes": 140 * GIB, "free_bytes": 139 * GIB},
        "display_active": False,
        "mig": {"enabled": False},
        "health": {"ok": True, "fit": True, "lost": False, "reasons": []},
        "processes": processes if held else [],
    }


def facts(held: Tuple[int, ...] = (0, 0, 0, 0), source: str = "nvml", unit: str = UNIT) -> Dict[str, Any]:
    devices = [device(index, bytes_, unit) for index, bytes_ in enumerate(held)]
    return {"source": source, "count": len(devices), "fault": None, "devices": devices}


class FakeRunning:
    """A unit's running invocation, as the engine hands it to a gate."""

    unit, invocation_id = UNIT, "one"

    def __init__(self, log: List[str], environ: Dict[str, str], timeout: float = 60.0) -> None:
        self.log, self.environ = log, environ
        self.is_alive: Callable[[], bool] = lambda: True
        self.started_monotonic = time.monotonic()
        self.deadline = self.started_monotonic + timeout
        self.system = self
        self.pids = [100]
        self.listening: Optional[Tuple[int, str]] = (100, "ollama")
        self.behind: List[str] = []
        """What was said and journald has not read yet."""

    def sync_journal(self) -> None:
        self.log, self.behind = self.log + self.behind, []

    def listener(self, port: int) -> Optional[Tuple[int, str]]:
        return self.listening

    def journal(self, max_lines: int = 1000) -> List[str]:
        return list(self.log)

    def journal_from_start(self) -> Iterator[str]:
        return iter(self.log)

    def alive(self) -> bool:
        return self.is_alive()

    def dying(self) -> bool:
        return not self.is_alive()


class FakeOllama:
    """Answers by path: (status, body), or a function of the request's body; requests are kept."""

    def __init__(self) -> None:
        self.answers: Dict[str, Any] = {
            "/api/version": (200, {"version": "0.32.15"}),
            "/api/ps": (200, {"models": []}),
            "/api/generate": (200, {"model": "m70b", "done": True, "eval_count": 1}),
        }
        self.requests: List[Tuple[str, Optional[Dict[str, Any]]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    document = json.loads(body) if body else None
                except ValueError:
                    document = body
                fake.requests.append((self.path, document))
                answer = fake.answers[self.path]
                answer = answer(document) if callable(answer) else answer
                if answer is None:
                    return
                status, content = answer
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_HEAD = do_DELETE = do_GET

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def loads(self, size: int, on_gpu: Optional[int] = None, name: str = "m70b:latest") -> None:
        """What /api/ps says is loaded, in bytes."""
        entry = {"name": name, "size": size, "size_vram": size if on_gpu is None else on_gpu}
        self.answers["/api/ps"] = (200, {"models": [entry]})


@pytest.fixture
def ollama():
    fake = FakeOllama()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def fakes():
    """This file: `fakes.facts()`, `fakes.FakeRunning(...)`."""
    return sys.modules[__name__]


def _in_this_process(ids: Any, work: Callable[[], Any], limit: float = 60) -> Any:
    result = work()
    if not hasattr(result, "send"):
        return result
    while True:
        try:
            next(result)
        except StopIteration as end:
            return end.value


@pytest.fixture
def no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done as the user is done in this process: a fork of a whole pytest costs more than the work."""
    monkeypatch.setattr(access, "as_user", _in_this_process)
    monkeypatch.setattr(moving, "as_user", _in_this_process)


# --- a power cut between any two changes of the disk

CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "symlink", "link", "fchmod", "chmod", "truncate")


class Killed(BaseException):
    """Power is gone: nothing more is changed, whatever wants to clean up."""


class Listing:
    """What os.scandir gives, the marker of a release last, as a file system may well have it."""

    def __init__(self, found):
        with found:
            self.entries = sorted(found, key=lambda entry: (entry.name == ".sha256", entry.name), reverse=True)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.close()

    def __iter__(self):
        return self

    def __next__(self):
        if not self.entries:
            raise StopIteration
        return self.entries.pop()

    def close(self):
        self.entries = []


class Power:
    """`power.fails_after(n)`: the change number n of the disk, and all after it, are not made."""

    def __init__(self, monkeypatch):
        self.left = None
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        opens = os.open

        def opened(path, flags, *more, **options):
            if flags & os.O_CREAT:
                self._count()
            return opens(path, flags, *more, **options)

        monkeypatch.setattr(os, "open", opened)
        scans = os.scandir

        def scandir(path="."):
            return Listing(scans(path))

        monkeypatch.setattr(os, "scandir", scandir)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def _counted(self, change):
        def counted(*arguments, **options):
            self._count()
            return change(*arguments, **options)

        return counted

    def _count(self):
        if self.left is not None:
            if self.left <= 0:
                raise Killed
            self.left -= 1

    def fails_after(self, number, work):
        """Whether the work was killed."""
        self.left = number
        try:
            work()
        except Killed:
            self.left = None  # the kernel frees locks
            return True
        finally:
            self.left = None
        return False


@pytest.fixture
def power(monkeypatch):
    return Power(monkeypatch)


@pytest.fixture
def memory():
    """A folder in memory, where there is one: thousands of small changes are made in it."""
    shared = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)
