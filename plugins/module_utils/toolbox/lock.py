# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks between runs on one host. They live in a folder that only root can enter, so nobody else can hold or forge one.

The kernel frees the lock of a killed run. A forked child never holds one, even while its parent does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, Optional, Set, Tuple

from .files import kind

FOLDER = "/run/gpufleet"
FOLDER_OF_USER = "/run/user/%d/gpufleet"
"""For a run without root, by its user id."""
LONGEST_NAME = 200
"""Bytes of a lock's name; of a longer one the end counts."""

_held: Set[int] = set()


class LockError(OSError):
    """The lock cannot be acquired; the message says why, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EBUSY, message)

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def held(
    name: str, limit: float, waiting: Optional[Callable[[str], None]] = None, *, what: str = "", root: str = ""
) -> Iterator[None]:
    """Hold a lock.

    :param name: of the lock, such as a unit or a path.
    :param limit: seconds to wait for it.
    :param waiting: called again and again meanwhile with the PID of the process that holds it, or ``unknown``.
    :param what: the thing it protects, for the message; the name if empty.
    :param root: put before the lock's path (for tests).
    :raises LockError: it is not free within the limit, or its folder cannot be trusted.
    :raises OSError: the folder or the file cannot be opened, for lack of rights or space.
    """
    folder, file = _place(name, root)
    path = os.path.join(folder, file)
    until = time.monotonic() + limit
    directory = _open_folder(folder)
    try:
        while True:
            descriptor = _open(directory, file, path)
            holder = _lock(descriptor)
            if not holder and _is_at(descriptor, directory, file):
                break
            os.close(descriptor)
            if not holder:  # the last holder has removed the file
                continue
            if time.monotonic() > until:
                raise LockError(
                    "another run, process %s, is still busy with %s after %d s (lock %s): try again later"
                    % (holder, what or name, limit, path)
                )
            if waiting:
                waiting(holder)
            # flock itself has no time limit: it is tried again until the limit
            time.sleep(0.1)
        _held.add(descriptor)
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, b"%d\n" % os.getpid())
            yield
        finally:
            try:
                if _is_at(descriptor, directory, file):
                    os.unlink(file, dir_fd=directory)
            finally:
                _held.discard(descriptor)
                os.close(descriptor)
    finally:
        os.close(directory)


def is_held(name: str, *, root: str = "") -> bool:
    """Whether a run holds a lock; writes nothing."""
    try:
        descriptor = os.open(
            os.path.join(*_place(name, root)), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _place(name: str, root: str) -> Tuple[str, str]:
    """The folder and the file of a lock."""
    folder = root + (FOLDER_OF_USER % os.geteuid() if os.geteuid() else FOLDER)
    return folder, os.fsdecode(os.fsencode(name.replace("/", "-"))[-LONGEST_NAME:]) + ".lock"


def _open_folder(path: str) -> int:
    """A descriptor for the folder of the locks, which nobody else can enter."""
    with suppress(FileExistsError):
        os.makedirs(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise _not_ours(path, found, "folder")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.fchmod(descriptor, 0o700)
    return descriptor


def _open(directory: int, name: str, path: str) -> int:
    """A descriptor for the file of a lock. Others can have put something in its place only if root let them."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise OSError(error.errno, error.strerror, path) from None
        raise _not_ours(path, os.stat(name, dir_fd=directory, follow_symlinks=False), "file") from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink < 2:
        return descriptor
    os.close(descriptor)
    raise _not_ours(path, found, "file")


def _not_ours(path: str, found: os.stat_result, expected: str) -> LockError:
    return LockError(
        "%s is %s of user %d; expected a %s of user %d without another name: find out who put it there, and remove it"
        % (path, kind(found.st_mode), found.st_uid, expected, os.geteuid())
    )


def _lock(descriptor: int) -> str:
    """Lock an open file; gives the PID that its holder has written into it, or ``unknown``, where it is locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 20).strip()
        return text.decode() if text.isdigit() else "unknown"
    return ""


def _is_at(descriptor: int, directory: int, name: str) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _let_go() -> None:
    """In a forked child: the lock is the parent's, and must end with it."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
