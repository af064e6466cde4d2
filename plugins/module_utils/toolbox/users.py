# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work in a user's own files is done with that user's rights, in a child process: what it may not do, it cannot do."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import time
from typing import Any, Callable, Generator, List, Mapping, NamedTuple, NoReturn, Optional, Tuple

from .errors import Failed

STRANGER = (1 << 31) - 2
"""User and group id that nothing belongs to."""
_ANSWER = 64 << 20  # bytes; the files that the child finds may make it print anything
_PDEATHSIG, _DUMPABLE = 1, 4  # of prctl


class Ids(NamedTuple):
    """What a process of a user runs with."""

    uid: int
    gid: int
    groups: List[int]


STRANGERS = Ids(STRANGER, STRANGER, [])
"""The ids of a user who does not exist yet."""


def ids_of(user: str) -> Optional[Ids]:
    """The ids of a user by name or number; None where there is no such user."""
    import grp
    import pwd

    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        return None
    more = [group.gr_gid for group in grp.getgrall() if entry.pw_name in group.gr_mem]
    return Ids(entry.pw_uid, entry.pw_gid, [entry.pw_gid, *more])


def home() -> str:
    """The home of whoever runs this. ``HOME`` may be that of the user who became root; programs would then take their
    settings and caches from a folder of that user.
    """
    import pwd

    named = os.environ.get("HOME", "")
    try:
        if os.path.isabs(named) and os.stat(named).st_uid == os.geteuid():
            return named
    except OSError:
        pass
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/"


def as_user(ids: Ids, work: Callable[[], Any], limit: float = 60) -> Any:
    """The result of a function that runs with a user's ids, in a child of its own; without root, with the own ids.

    The child dies with its parent: at once, or once a system call ends that cannot be interrupted.

    :param work: returns what JSON can represent; what it changes in memory is lost. A generator function is given the
        time limit again at each of its yields, and returns its result.
    :param limit: seconds after which the child is killed; it may wait for a pipe or a hanging file system.
    :raises OSError: as in the child, with the same errno and file name.
    :raises Failed: the child failed in another way, or took longer.
    """
    import ctypes

    control, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _child(ids, work, writing, control, parent)
    os.close(writing)
    try:
        said = _read(reading, limit)
    finally:
        os.close(reading)
        _end(child)
    if said is None:
        raise Failed("it took longer than %d s, or printed too much, and was killed" % limit)
    return _result(said)


def beginning(ids: Ids, path: str, size: int) -> bytes:
    """The first bytes of a file, read with a user's rights; a pipe is not waited for.

    :raises OSError: the user cannot read it.
    :raises Failed: it took too long.
    """

    def read() -> str:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as stream:
            return stream.read(size).hex()

    return bytes.fromhex(as_user(ids, read, 20))


_CLEAN = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
"""An environment without anything of root's."""


def output_of(
    ids: Ids,
    command: List[str],
    limit: float,
    largest: int,
    environment: Optional[Mapping[str, str]] = None,
    folder: str = "/",
) -> Tuple[int, str]:
    """Exit status and output, errors included, of a command that runs with a user's rights.

    :param limit: seconds, after which it is ended with all that it has started in its session.
    :param largest: bytes of its output, and of each file that it writes; with more it is ended.
    :param environment: left out, it has nothing of root's.
    :param folder: where it runs.
    :raises OSError: it cannot be run.
    :raises Failed: it took too long.
    """
    import resource  # here: the user may not be able to read root's Python
    import tempfile

    from .command import status_of

    given = _CLEAN if environment is None else environment
    with tempfile.TemporaryFile() as out:

        def run() -> Optional[int]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            return status_of(command, limit, environment=given, folder=folder, output=out)

        status = as_user(ids, run, limit + 5)
        if status is None:
            raise Failed("it did not end within %d s" % limit)
        out.seek(0)
        return status, out.read(largest).decode("utf-8", "replace")


def ids_of_process(pid: int, proc: str = "/proc") -> Ids:
    """The ids that a running process has.

    :raises OSError: it has ended.
    """
    with open("%s/%d/status" % (proc, pid), encoding="utf-8", errors="replace") as file:
        lines = dict(line.partition(":")[::2] for line in file)
    try:
        uid, gid = int(lines["Uid"].split()[1]), int(lines["Gid"].split()[1])
        return Ids(uid, gid, [int(group) for group in lines["Groups"].split()])
    except (KeyError, ValueError, IndexError):
        raise OSError(errno.ESRCH, "the process ended", "%s/%d" % (proc, pid)) from None


def _child(ids: Ids, work: Callable[[], Any], writing: int, control: Any, parent: int) -> NoReturn:
    try:
        try:
            os.umask(0o022)
            if os.geteuid() == 0:
                os.setgroups(ids.groups)
                os.setgid(ids.gid)
                os.setuid(ids.uid)
                if ids.uid:
                    control(_DUMPABLE, 0, 0, 0, 0)  # root's memory is in it
            control(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of ids clears it
            if os.getppid() != parent:
                os._exit(1)
            os.chdir("/")
            result = work()
            if isinstance(result, Generator):
                result = _step_by_step(result, writing)
            said = json.dumps({"result": result})
        except OSError as error:
            path = error.filename if isinstance(error.filename, (str, bytes)) else ""  # else a descriptor
            said = json.dumps({"os": [error.errno, error.strerror, os.fsdecode(path)]})
        except Exception as error:
            said = json.dumps({"error": str(error) or type(error).__name__})
        with os.fdopen(writing, "wb") as stream:
            stream.write(said.encode())
    finally:
        os._exit(0)


def _step_by_step(work: "Generator[None, None, Any]", writing: int) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
        os.write(writing, b" ")


def _read(reading: int, limit: float) -> Optional[bytes]:
    """All that the child says; None when it is silent for longer than the limit. Blanks before it are signs of life."""
    said, until = b"", time.monotonic() + limit
    while True:
        ready, _w, _x = select.select([reading], [], [], max(0, until - time.monotonic()))
        if not ready or len(said) > _ANSWER:
            return None
        chunk = os.read(reading, 1 << 16)
        if not chunk:
            return said
        said += chunk if said else chunk.lstrip(b" ")
        if not said:
            until = time.monotonic() + limit


def _end(child: int) -> None:
    """End the child. One that sleeps in the kernel, as on a hanging file system, dies later: it is not waited for."""
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    for pause in (0, 0.001, 0.01, 0.1, 0.5):
        # waitpid has no time limit: the child is asked for five times, then left to the kernel
        time.sleep(pause)
        if os.waitpid(child, os.WNOHANG)[0]:
            return


def _result(said: bytes) -> Any:
    try:
        answer = json.loads(said)
    except ValueError:
        raise Failed("the process that did it ended without an answer") from None
    if "os" in answer:
        number, words, path = answer["os"]
        raise OSError(number, words, path or None)
    if "error" in answer:
        raise Failed(answer["error"])
    return answer["result"]
