# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files in places where somebody else may write, too: root follows no link there, waits for no pipe and trusts no name.

A path is walked folder by folder with descriptors, so nothing can be swapped between a check and its use. A symbolic
link is followed if only root could have created it, such as ``/var/run -> /run``; in a user's folder it is an error.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import BinaryIO, Callable, Iterator, List, Optional, Tuple

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # needs no right to list the folder
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20
_LINKS = 40
"""Symbolic links in one path, as in the kernel."""
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISREG, "a file"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnsafePath(OSError):
    """What lies at a path is not what may be used there. ``strerror`` says what was found, and what to do."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(errno.ELOOP, found, path)


def kind(mode: int) -> str:
    """What a file of this ``st_mode`` is, in words."""
    return next((words for test, words in _KINDS if test(mode)), "no file")


# --- folders


@contextmanager
def folder(path: str) -> Iterator[int]:
    """Open a folder by an absolute path; gives a descriptor for ``dir_fd``, closed at the end.

    :raises UnsafePath: somebody other than root could have made a link on the way.
    :raises OSError: there is no such folder.
    """
    descriptor, _shared = _walk(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def give_folder(path: str, owner: Tuple[int, int]) -> None:
    """Give an existing folder to a user, if only root can have put it there.

    :raises UnsafePath: somebody else could have.
    """
    descriptor, shared = _walk(path)
    try:
        if shared:
            raise UnsafePath(
                path, "it is in a folder that others than root may write into, and belongs to another user"
            )
        os.chown(".", *owner, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def make_folders(path: str, owner: Tuple[int, int] = (-1, -1)) -> List[str]:
    """Create a folder and its missing parents with mode 0755, whatever the umask is.

    :param owner: user and group id of the folder itself; its parents stay with whoever runs this.
    :returns: the paths that were created, the outermost first; none where the folder exists, which is then left alone.
    :raises UnsafePath: something else lies there, or a link on the way is not root's.
    """
    missing = missing_folders(path)
    descriptor, _shared = _walk(os.path.dirname(missing[0]) if missing else os.path.normpath(path))
    try:
        for made in missing:
            os.mkdir(os.path.basename(made), 0o700, dir_fd=descriptor)
            below = _own_folder(descriptor, made)
            os.close(descriptor)
            descriptor = below
            if made == missing[-1] and owner != (-1, -1):
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, 0o755)  # a chown clears set-id bits
    finally:
        os.close(descriptor)
    return missing


def missing_folders(path: str) -> List[str]:
    """A folder and those of its parents that are not there, the outermost first; ``path`` is absolute."""
    missing: List[str] = []
    place = os.path.normpath(os.path.join("/", path))
    while not os.path.lexists(place):
        missing.append(place)
        place = os.path.dirname(place)
    return missing[::-1]


def _own_folder(parent: int, path: str) -> int:
    """Open the folder that was created a moment ago, and no other one that took its place."""
    try:
        descriptor = os.open(os.path.basename(path), _FOLDER, dir_fd=parent)
    except OSError as error:
        raise UnsafePath(
            path, "somebody put something else in the place of the new folder (%s)" % error.strerror
        ) from None
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or os.listdir(descriptor):
        os.close(descriptor)
        raise UnsafePath(path, "somebody put a folder of user %d in the place of the new one" % found.st_uid)
    return descriptor


def _walk(path: str) -> Tuple[int, bool]:
    """A descriptor of a folder, and whether others than root could have put it, or one above it, there."""
    if not os.path.isabs(path) or ".." in path.split("/"):
        raise UnsafePath(path, "not an absolute path without ..: declare one")
    descriptor, names, links = os.open("/", _PASS), [name for name in path.split("/") if name][::-1], 0
    shared = False  # whether others could have put there what comes next
    try:
        while names:
            name = names.pop()
            if name in (".", ""):
                continue
            shared = shared or _writable_by_others(os.fstat(descriptor))
            try:
                below = os.open(name, _PASS, dir_fd=descriptor)
            except OSError as error:
                # Linux reports ENOTDIR for a link here, too
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False) if error.errno != errno.ENOENT else None
                if found is None or not stat.S_ISLNK(found.st_mode):
                    raise OSError(error.errno, error.strerror, path) from None
                links += 1
                if shared or links > _LINKS:
                    raise UnsafePath(
                        path,
                        "%s is a symbolic link in a folder that others than root may write into: "
                        "remove it, or declare the path that it leads to" % name,
                    ) from None
                to = os.readlink(name, dir_fd=descriptor)
                names += [part for part in to.split("/") if part][::-1]
                if os.path.isabs(to):
                    os.close(descriptor)
                    descriptor = os.open("/", _PASS)
                continue
            os.close(descriptor)
            descriptor = below
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, shared


def _writable_by_others(found: os.stat_result) -> bool:
    """Whether anyone but root, and whoever runs this, may put files into a folder."""
    return found.st_uid not in (0, os.geteuid()) or bool(writers(found))


def writers(found: os.stat_result) -> str:
    """Whom the mode allows to write, other than its owner and whoever runs this; empty where nobody."""
    if found.st_mode & stat.S_IWOTH:
        return "any user"
    if found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.getegid()) and _has_members(found.st_gid):
        return "group %d" % found.st_gid
    return ""


def _has_members(gid: int) -> bool:
    """Debian has given /usr/local to the group staff, to which nobody belongs."""
    import grp
    import pwd

    try:
        members = set(grp.getgrgid(gid).gr_mem) - {"root"}
    except KeyError:
        return True  # nothing is known of a number without a name
    return bool(members) or any(entry.pw_gid == gid for entry in pwd.getpwall())


# --- files


def read_regular(path: str, limit: int) -> Optional[bytes]:
    """The first ``limit`` bytes of a regular file; None when there is none.

    :raises UnsafePath: it is a link, a pipe, a device, or lies behind a link that is not root's.
    """
    descriptor = open_regular(path)
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(limit)


def open_regular(path: str) -> Optional[int]:
    """A descriptor for reading a regular file; None when there is none.

    :raises UnsafePath: as :func:`read_regular`.
    """
    directory, name = os.path.split(path)
    try:
        with folder(directory) as parent:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):  # to open a device may do something
                raise UnsafePath(path, "it is %s, expected a regular file" % kind(found.st_mode))
            descriptor = os.open(name, _READ, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafePath(path, "it was replaced while it was opened, expected a regular file")
    return descriptor


def follow(path: str) -> BinaryIO:
    """Open a regular file for reading, wherever links lead to: for work that is done with a user's own rights.

    :raises OSError: there is none, or it is a pipe, a device, a folder.
    """
    descriptor = -1
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):  # to open a device may do something
            descriptor = os.open(path, _READ & ~os.O_NOFOLLOW)
            found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is %s, expected a regular file" % kind(found.st_mode), path)
        return os.fdopen(descriptor, "rb")
    except OSError:
        if descriptor >= 0:
            os.close(descriptor)
        raise


def chunks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The rest of a stream, in pieces that fit into memory.

    :param read: the stream's ``read``, or its ``read1`` where what has come is wanted at once.
    """
    return iter(lambda: read(_PIECE), b"")


def sha256(stream: BinaryIO) -> str:
    """The SHA-256 of the rest of a stream, in hexadecimal digits."""
    import hashlib

    digest = hashlib.sha256()
    for piece in chunks(stream.read):
        digest.update(piece)
    return digest.hexdigest()


def write_whole(path: str, content: bytes, mode: int = 0o644, owner: Tuple[int, int] = (-1, -1)) -> None:
    """Write a file so that it has its previous or its new content, even after a power cut; its folder exists.

    :raises OSError: there is no space, or the folder cannot be used (UnsafePath); the previous content is still there.
    """
    directory, name = os.path.split(path)
    temporary = ".%s.new" % name
    with folder(directory) as parent:
        _unlink(temporary, parent)
        descriptor = os.open(temporary, _CREATE, 0o600, dir_fd=parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                if owner != (-1, -1):
                    os.fchown(descriptor, *owner)
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except Exception as error:
            _unlink(temporary, parent)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, path) from error
            raise
        sync(parent)


BESIDE = ".gpufleet"
"""Ends the name of a link that is to replace another one; a killed run may leave it."""


def link(path: str) -> Optional[str]:
    """Where a link leads; None when there is none."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def point(path: str, to: str) -> None:
    """Have a link lead somewhere, in place of the one that is there, in a folder that only root may write into."""
    beside = path + BESIDE
    if os.path.lexists(beside):
        os.unlink(beside)
    os.symlink(to, beside)
    os.replace(beside, path)
    sync_folder(os.path.dirname(path))


def sync(descriptor: int) -> None:
    """Make the names in an opened folder survive a power cut."""
    listing = os.open(".", _FOLDER, dir_fd=descriptor)
    try:
        os.fsync(listing)
    finally:
        os.close(listing)


def sync_folder(path: str) -> None:
    """The same for a folder by its path, which may be a link that whoever runs this trusts.

    :raises OSError: there is no such folder, or the disk fails.
    """
    descriptor = os.open(os.path.join(path, "."), _PASS)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(path: str) -> None:
    """Make everything written to a folder's file system survive a power cut.

    :raises OSError: something could not be written.
    """
    import ctypes

    descriptor = os.open(os.path.join(path, "."), _FOLDER)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    finally:
        os.close(descriptor)


def remove(path: str) -> bool:
    """Remove a file or a link, never what a link leads to; whether there was one.

    :raises OSError: it is a folder, or lies behind a link that is not root's (UnsafePath).
    """
    directory, name = os.path.split(path)
    try:
        with folder(directory) as parent:
            return _unlink(name, parent)
    except (FileNotFoundError, NotADirectoryError):
        return False


def remove_folder(path: str) -> None:
    """Remove an empty folder.

    :raises OSError: it is not empty, not there, no folder, or lies behind a link that is not root's (UnsafePath).
    """
    directory, name = os.path.split(os.path.normpath(path))
    with folder(directory) as parent:
        os.rmdir(name, dir_fd=parent)


def remove_tree(path: str) -> None:
    """Remove a folder with all that is in it, following no link; nothing where there is none. What cannot be removed
    stays, without an error.

    :raises UnsafePath: it lies behind a link that is not root's.
    """
    import shutil

    directory, name = os.path.split(os.path.normpath(path))
    try:
        with folder(directory) as parent:
            shutil.rmtree("/proc/self/fd/%d/%s" % (parent, name), ignore_errors=True)
    except (FileNotFoundError, NotADirectoryError):
        pass


def _unlink(name: str, parent: int) -> bool:
    try:
        os.stat(
            name, dir_fd=parent, follow_symlinks=False
        )  # a read-only file system complains even of what is not there
    except FileNotFoundError:
        return False
    os.unlink(name, dir_fd=parent)
    return True
