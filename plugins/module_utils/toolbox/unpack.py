# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpacks a tar archive that nobody vouches for: nothing is written, linked or read outside of its folder.

Members are placed one by one with descriptors. A link in the archive is followed only as far as it stays inside, and
an earlier member is replaced, never written through. Owners, modes and times in the archive are not taken over.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import Any, BinaryIO, Iterator, List, Optional

from .errors import Failed
from .files import chunks, kind

MEMBERS = 100000
BYTES = 64 << 30
"""Of all files of one archive together."""
HEADERS = 2 << 20
"""Bytes that the header of one member, or what follows the last one, may take; tarfile keeps them in memory."""
DEPTH = 32
"""Folders within each other."""
_LINKS = 40
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AHEAD = 1 << 18


def unpack(stream: BinaryIO, folder: str) -> None:
    """Unpack a tar archive over what is in a folder that nobody else may write into.

    Files are 0644, or 0755 where the archive has them executable, folders 0755, all owned by whoever runs this.

    :param stream: the archive without compression, read to its end.
    :raises Failed: some of it may have been unpacked, nothing of it outside of ``folder``.
    :raises tarfile.TarError, EOFError, ValueError: it is damaged.
    :raises OSError: there is not enough space, or the folder cannot be written.
    """
    import tarfile

    metered: Any = _Metered(stream)
    top = os.open(folder, _FOLDER)
    try:
        tree, count, total = _Tree(top), 0, 0
        with tarfile.open(fileobj=metered, mode="r|", bufsize=_AHEAD) as tar:
            while True:
                metered.left = HEADERS
                member = tar.next()
                if member is None:
                    break
                count, total = count + 1, total + max(0, member.size)
                if count > MEMBERS or total > BYTES:
                    raise Failed("holds more than %d files, or %d bytes" % (MEMBERS, BYTES))
                metered.left = None
                tree.place(tar, member)
                tar.members = []  # type: ignore[attr-defined]  # it would remember them all
        metered.left = HEADERS
        while metered.read(_AHEAD):  # whoever unpacks it waits until all is read
            pass
    finally:
        os.close(top)
    _check_links(folder)


class _Metered:
    """A stream of which tarfile gets no more than it is granted: a header may claim any size."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.left: Optional[int] = HEADERS

    def read(self, size: int) -> bytes:
        found = self.stream.read(size)
        if self.left is not None:
            self.left -= len(found)
            if self.left < 0:
                raise Failed("holds a header, or something behind its end, of more than %d bytes" % HEADERS)
        return found


class _Tree:
    """The folder into which an archive is unpacked."""

    def __init__(self, top: int) -> None:
        self.top = top

    def place(self, tar: Any, member: Any) -> None:
        parts = _parts(member.name)
        if member.issparse():
            raise Failed("holds a sparse file, %r" % member.name)
        if member.isdir():
            with self._folder(parts):
                return
        if not parts:
            raise Failed("holds the unsafe name %r" % member.name)
        if member.isreg():
            self._file(tar, member, parts)
        elif member.issym():
            self._link(member, parts)
        elif member.islnk():
            self._second_name(member, parts)
        else:
            raise Failed(
                "holds %s, %r" % ("a named pipe" if member.isfifo() else "a device or something unknown", member.name)
            )

    def _file(self, tar: Any, member: Any, parts: List[str]) -> None:
        if member.mode & (stat.S_ISUID | stat.S_ISGID):
            raise Failed("holds a set-uid or set-gid program, %r" % member.name)
        if member.size < 0:
            raise Failed("holds %r of %d bytes" % (member.name, member.size))
        space = os.fstatvfs(self.top)
        free = space.f_bavail * space.f_frsize
        if member.size > free:
            no_space = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, "%s: %s has %d bytes, %d are free" % (no_space, member.name, member.size, free))
        with self._folder(parts[:-1]) as parent:
            _make_room(parts[-1], parent, member.name)
            descriptor = os.open(parts[-1], _CREATE, 0o600, dir_fd=parent)
            with os.fdopen(descriptor, "wb", buffering=0) as file, tar.extractfile(member) as source:
                for chunk in chunks(source.read):
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[file.write(rest) :]
                os.fchmod(descriptor, 0o755 if member.mode & stat.S_IXUSR else 0o644)

    def _link(self, member: Any, parts: List[str]) -> None:
        """Where it leads is looked at when it is followed, and when all is there."""
        with self._folder(parts[:-1]) as parent:
            _make_room(parts[-1], parent, member.name)
            os.symlink(_checked(member.linkname), parts[-1], dir_fd=parent)

    def _second_name(self, member: Any, parts: List[str]) -> None:
        known = _parts(member.linkname)
        if not known or known == parts:
            raise Failed("holds the unsafe name %r" % member.linkname)
        with self._folder(known[:-1]) as there, self._folder(parts[:-1]) as here:
            try:
                found = os.stat(known[-1], dir_fd=there, follow_symlinks=False).st_mode
            except FileNotFoundError:
                found = 0
            if not stat.S_ISREG(found):
                words = "%s, %r, as a second name of %s" % (member.name, member.linkname, kind(found))
                raise Failed("holds %s" % words)
            _make_room(parts[-1], here, member.name)
            os.link(known[-1], parts[-1], src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)

    @contextmanager
    def _folder(self, parts: List[str]) -> Iterator[int]:
        """A descriptor of the folder that a path really leads to; missing ones are created."""
        name, waiting, links, folders = "/".join(parts), parts[::-1], 0, [os.dup(self.top)]
        try:
            while waiting:
                part = waiting.pop()
                if part in ("", "."):
                    continue
                if part == "..":
                    os.close(folders.pop())
                    if not folders:
                        raise Failed("holds the unsafe name %r, which leads out by a link" % name)
                    continue
                if not _open_or_make(part, folders):
                    links += 1
                    to = _link_to(part, folders[-1], name)
                    if links > _LINKS or os.path.isabs(to):
                        raise Failed("holds the unsafe name %r, which leads out by a link" % name)
                    waiting += to.split("/")[::-1]
                if len(folders) > DEPTH:
                    raise Failed("holds the unsafe name %.200r, more than %d folders deep" % (name, DEPTH))
            yield folders[-1]
        finally:
            for descriptor in folders:
                os.close(descriptor)


def _open_or_make(part: str, folders: List[int]) -> bool:
    """Add a folder's descriptor; False where something else lies there."""
    try:
        folders.append(os.open(part, _FOLDER, dir_fd=folders[-1]))
    except FileNotFoundError:
        os.mkdir(part, 0o755, dir_fd=folders[-1])
        folders.append(os.open(part, _FOLDER, dir_fd=folders[-1]))
        os.fchmod(folders[-1], 0o755)  # whatever the umask is
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        return False
    return True


def _link_to(part: str, parent: int, name: str) -> str:
    try:
        return os.readlink(part, dir_fd=parent)
    except OSError:
        raise Failed("holds %r both as a file and as a folder" % name) from None


def _make_room(part: str, parent: int, name: str) -> None:
    """A later member replaces an earlier one; nothing is written through it."""
    try:
        found = os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found):
        raise Failed("holds %r both as a file and as a folder" % name)
    os.unlink(part, dir_fd=parent)


def _parts(name: str) -> List[str]:
    """The folders and the file of a name."""
    parts = [part for part in _checked(name).split("/") if part not in ("", ".")]
    if os.path.isabs(name) or ".." in parts:
        raise Failed("holds the unsafe name %r" % name)
    return parts


def _checked(name: str) -> str:
    if not name or any(character < " " or character == "\x7f" for character in name):
        raise Failed("holds the unsafe name %r" % name)
    return name


def _check_links(folder: str) -> None:
    """What a link leads to may have changed with a later member: it is what lies there now that counts."""
    inside = os.path.realpath(folder) + "/"
    for where, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = os.path.join(where, name)
            if os.path.islink(path) and not (os.path.realpath(path) + "/").startswith(inside):
                raise Failed("holds the link %r, which leads out of it" % os.path.relpath(path, folder))
