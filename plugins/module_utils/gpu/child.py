# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work in a child process that may hang: what it has reported by the deadline counts, and the caller continues."""

from __future__ import annotations

import io
import marshal
import os
import select
import signal
import time
from typing import Any, Callable, List, Optional, Tuple

#: Gives one part of the result to the parent: (name, plain data).
Emit = Callable[[str, Any], None]


def run(work: Callable[[Emit], None], timeout: float) -> Tuple[List[Tuple[str, Any]], Optional[str]]:
    """Run ``work(emit)`` in a child for at most ``timeout`` seconds.

    :returns: the parts it emitted, in order, and why it did not finish: ``"timeout"``, the text of its exception, or
        None when it finished.
    """
    deadline = time.monotonic() + timeout
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(work, writing)  # never returns
    os.close(writing)
    try:
        data, ended = _read_until(reading, deadline)
    finally:
        os.close(reading)
        if not _reaped(pid):
            _kill(pid)
    parts = _parts(data)
    if not ended:
        return parts, "timeout"
    if parts and parts[-1][0] == "ended":
        return parts[:-1], parts[-1][1]
    return parts, "the process that read the GPUs died"


def _be_child(work: Callable[[Emit], None], writing: int) -> None:
    """Everything the child does, up to its exit."""
    try:
        os.setsid()  # so that the parent can kill what the child starts as well
        _let_go_of_files(writing)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(signum, signal.SIG_DFL)

        def emit(name: str, data: Any) -> None:
            view = marshal.dumps((name, data))
            while view:
                view = view[os.write(writing, view) :]

        try:
            work(emit)
            emit("ended", None)
        except Exception as error:
            emit("ended", "%s: %s" % (type(error).__name__, error))
    finally:
        os._exit(0)


def _let_go_of_files(writing: int) -> None:
    """Close every file of the parent: a child that cannot be killed must keep no SSH connection and no lock."""
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number not in (0, 1, 2, writing):
            try:
                os.close(number)
            except OSError:  # the one that listed them
                pass
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


def _read_until(reading: int, deadline: float) -> Tuple[bytes, bool]:
    """What comes out of a pipe until its end, or the deadline; whether it was the end."""
    data = b""
    poller = select.poll()
    poller.register(reading, select.POLLIN | select.POLLHUP)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            return data, False
        chunk = os.read(reading, 65536)
        if not chunk:
            return data, True
        data += chunk


def _parts(data: bytes) -> List[Tuple[str, Any]]:
    parts = []
    source = io.BytesIO(data)
    while source.tell() < len(data):
        try:
            parts.append(marshal.load(source))
        except (EOFError, ValueError, TypeError):  # cut off in the middle
            break
    return parts


def _reaped(pid: int) -> bool:
    """Whether a child has ended. Waits a moment for one that is about to, no longer: it may hang on its way out."""
    for wait in (0, 0.001, 0.005, 0.02):
        # waitpid has no time limit, and the child may hang in the kernel
        time.sleep(wait)
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
    return False


def _kill(pid: int) -> None:
    """End a child and what it started. One that sleeps in the kernel dies later: it is not waited for."""
    for end in (os.killpg, os.kill):
        try:
            end(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    _reaped(pid)
