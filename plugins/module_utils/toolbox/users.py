# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work in a user's own files is done with that user's rights, in a child process: what it may not do, it cannot do."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from typing import Any, Callable, List, NamedTuple, NoReturn, Optional

STRANGER = (1 << 31) - 2
"""User and group id that nothing belongs to."""
_ANSWER = 64 << 20  # bytes; the child may be made to say anything by the files that it finds


class Ids(NamedTuple):
    """What a process of a user runs with."""

    uid: int
    gid: int
    groups: List[int]


class UserError(Exception):
    """Work done as a user failed; the message says what the child said, or how it ended."""


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


def as_user(ids: Ids, work: Callable[[], Any], limit: float = 60) -> Any:
    """The result of a function that runs with a user's ids, in a child of its own; who is not root is who he is.

    :param work: returns what JSON can tell; what it changes in memory is lost.
    :param limit: seconds after which the child is killed; it may wait for a pipe or a hanging file system.
    :raises OSError: as in the child, with the same errno and file name.
    :raises UserError: the child failed in another way, or took longer.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _child(ids, work, writing)
    os.close(writing)
    try:
        said = _read(reading, time.monotonic() + limit)
    finally:
        os.close(reading)
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(child, 0)
    if said is None:
        raise UserError("it took longer than %d s, or said too much, and was ended" % limit)
    return _result(said)


def _child(ids: Ids, work: Callable[[], Any], writing: int) -> NoReturn:
    try:
        try:
            os.umask(0o022)
            if os.geteuid() == 0:
                os.setgroups(ids.groups)
                os.setgid(ids.gid)
                os.setuid(ids.uid)
            os.chdir("/")
            said = json.dumps({"result": work()})
        except OSError as error:
            said = json.dumps({"os": [error.errno, error.strerror, os.fsdecode(error.filename or "")]})
        except Exception as error:
            said = json.dumps({"error": str(error) or type(error).__name__})
        with os.fdopen(writing, "wb") as stream:
            stream.write(said.encode())
    finally:
        os._exit(0)


def _read(reading: int, until: float) -> Optional[bytes]:
    """All that the child says; None when it has not ended in time."""
    said = b""
    while True:
        ready, _w, _x = select.select([reading], [], [], max(0, until - time.monotonic()))
        if not ready or len(said) > _ANSWER:
            return None
        chunk = os.read(reading, 1 << 16)
        if not chunk:
            return said
        said += chunk


def _result(said: bytes) -> Any:
    try:
        answer = json.loads(said)
    except ValueError:
        raise UserError("the process that did it ended without an answer") from None
    if "os" in answer:
        number, words, path = answer["os"]
        raise OSError(number, words, path or None)
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["result"]
