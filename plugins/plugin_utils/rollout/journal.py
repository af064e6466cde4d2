# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of a rollout: what it means to do is written before it is done. On the controller.

One line for each step, appended and synced to the disk, never rewritten. A torn last line is one that nobody has acted
upon. The kernel releases both locks when the last process of a run has ended.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
import uuid
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from .state import IN_HAND, State, fold

LOCK_WAIT = 5.0
"""Seconds that a killed run's last process gets to end."""

PROCESS = uuid.uuid4().hex
"""Of this process and the workers that Ansible forks from it."""
RECEIPTS = 20
"""Receipts that are read; each is kept."""

_held: Optional[int] = None
"""The run's lock. The workers that Ansible forks hold it as well, so it is free when the last of them has ended."""


class Journal:
    """The state folder of the rollouts of one inventory."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(os.path.expanduser(folder))
        self.path = os.path.join(self.folder, "journal.jsonl")

    def events(self) -> List[Dict[str, Any]]:
        try:
            with open(self.path, "rb") as file:
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        return [event for event in map(_read, lines) if event]

    def state(self) -> State:
        return fold(self.events())

    def own(self) -> State:
        """The state of the run of this process; an empty one before it has a plan, whatever an earlier run has left."""
        state = self.state()
        return state if state.by == PROCESS else State()

    def append(self, event: str, **fields: Any) -> None:
        """Write one event; it is on the disk when this returns."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
            line = (b"\0\n" if torn else b"") + _line(event, fields)  # a torn line stays invalid
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def begin(self, run: str) -> None:
        """Start a new run's journal; it keeps what predictions are made from, and which hosts are reserved for whom."""
        former = self.state()
        away = sorted({*former.away, *former.of("lost", *IN_HAND)})
        self._secure()
        fields = {"run": run, "by": PROCESS, "measured": former.measured, "away": away}
        fields.update(holder=former.holder or uuid.uuid4().hex, reserved=former.reserved)
        self._write("journal.jsonl", _line("begin", fields))

    def resume(self) -> None:
        """Go on with the last run."""
        self.append("resume", by=PROCESS)

    def receipt(self, run: str, found: Dict[str, Any]) -> str:
        """Write the receipt of a run; its path."""
        return self._write("receipt-%s.json" % run, (json.dumps(found, indent=2) + "\n").encode())

    def receipts(self) -> List[Dict[str, Any]]:
        """The last receipts, the newest first."""
        try:
            names = [name for name in os.listdir(self.folder) if name.startswith("receipt-") and name.endswith(".json")]
        except FileNotFoundError:
            return []
        found = []
        for name in sorted(names, reverse=True)[:RECEIPTS]:
            with open(os.path.join(self.folder, name), "rb") as file:
                found.append(_read(file.read()))
        return [receipt for receipt in found if receipt]

    def _write(self, name: str, content: bytes) -> str:
        path = os.path.join(self.folder, name)
        temporary = path + ".new"  # only the holder of the lock writes it
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # else a power cut may bring back the former file
        finally:
            os.close(folder)
        return path

    def _secure(self) -> None:
        """Create the folder.

        :raises OSError: somebody else could write to it.
        """
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        found = os.stat(self.folder)
        if found.st_uid != os.geteuid() or found.st_mode & 0o002:
            raise PermissionError(errno.EPERM, "expected a folder that only its user writes to", self.folder)

    # --- locks

    def lock(self, wait: float = LOCK_WAIT) -> str:
        """Take the run's lock for this process and its children. An earlier request to stop was for another run.

        :returns: who has it, if somebody else does; else an empty string.
        """
        global _held
        if _held is not None:
            return ""
        self._secure()
        descriptor = os.open(os.path.join(self.folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    holder = _holder(descriptor)
                    os.close(descriptor)
                    return holder
                time.sleep(0.1)  # a lock sends no word
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"process %d" % os.getpid(), 0)
        _held = descriptor
        self.withdraw("stop")
        return ""

    def running(self) -> str:
        """Who has the run's lock; empty if nobody does."""
        try:
            descriptor = os.open(os.path.join(self.folder, "lock"), os.O_RDWR)
        except FileNotFoundError:
            return ""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return ""
        except BlockingIOError:
            return _holder(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One decision at a time: what is granted is written before the next host asks."""
        descriptor = os.open(os.path.join(self.folder, "admission.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # --- requests of people: empty files, which any shell can create

    def requested(self) -> str:
        """``stop``, ``pause``, or an empty string."""
        return next((word for word in ("stop", "pause") if os.path.exists(os.path.join(self.folder, word))), "")

    def request(self, word: str) -> None:
        self._secure()
        open(os.path.join(self.folder, word), "w").close()

    def withdraw(self, word: str) -> None:
        try:
            os.unlink(os.path.join(self.folder, word))
        except FileNotFoundError:
            pass


def default_folder(sources: Sequence[Any]) -> str:
    """The state folder of an inventory, by the paths of its sources."""
    paths = [os.path.abspath(source) if os.path.exists(source) else source for source in map(str, sources or ())]
    digest = hashlib.sha256("\0".join(paths).encode()).hexdigest()[:8]
    name = os.path.basename(paths[0]) if paths and os.path.exists(paths[0]) else "inventory"
    return "~/.local/state/gpufleet/rollout/%s-%s" % (name, digest)


def _holder(descriptor: int) -> str:
    """Who has a lock, as its file names it. The tasks of a killed run may hang, as nobody reads their results."""
    said = os.pread(descriptor, 100, 0).decode("utf-8", "replace").strip() or "another process"
    pid = said.rpartition(" ")[2]
    if not pid.isdigit() or not os.path.isdir("/proc/self") or os.path.isdir("/proc/" + pid):
        return said
    held = (os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino)
    tasks = [one for one in os.listdir("/proc") if one.isdigit() and int(one) != os.getpid() and _opened(one, held)]
    return "%s, which was killed; its tasks still run as process %s: end them if they hang" % (
        said,
        ", ".join(tasks) or "?",
    )


def _opened(pid: str, held: Tuple[int, int]) -> bool:
    """Whether a process has opened a file."""
    try:
        found = [os.stat("/proc/%s/fd/%s" % (pid, one)) for one in os.listdir("/proc/%s/fd" % pid)]
    except OSError:  # it has ended, or is somebody else's
        return False
    return held in [(one.st_dev, one.st_ino) for one in found]


def _line(event: str, fields: Dict[str, Any]) -> bytes:
    return json.dumps({"t": round(time.time(), 3), "event": event, **fields}).encode() + b"\n"


def _read(line: bytes) -> Dict[str, Any]:
    """One event, or a receipt; empty for a torn line of a killed run, which a later one has ended."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
