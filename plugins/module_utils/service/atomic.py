# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes several small files together, so that each holds its old or its new content and the change can be undone.

What a file held before stays beside it as ``.NAME.former`` until the change is proven. So undoing needs no space on
the disk, and a change that was killed in the middle is found, and can still be undone, by the next run.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import List, Optional


@dataclass
class Wanted:
    """One file as it is to be; ``content`` None means that it is not to be there."""

    path: str
    content: Optional[bytes]
    mode: int = 0o644
    directory_mode: int = 0o755
    """Mode of the file's directory if that has to be made."""
    own_directories: int = 1
    """How many of the directories above it are removed with it when they are empty."""


class Files:
    """The files of one change. ``root`` is put before every path (for tests)."""

    def __init__(self, wanted: List[Wanted], root: str = "") -> None:
        self.wanted = wanted
        self.root = root
        self._made: List[str] = []

    def _beside(self, path: str, suffix: str) -> str:
        directory, name = os.path.split(self.root + path)
        return "%s/.%s.%s" % (directory, name, suffix)

    def read(self, path: str) -> Optional[bytes]:
        """The content of a file, None when there is none."""
        try:
            with open(self.root + path, "rb") as stream:
                return stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def mode(self, path: str) -> int:
        """The permissions of a file, 0 when there is none."""
        try:
            return stat.S_IMODE(os.lstat(self.root + path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def changes(self) -> List[Wanted]:
        """The files that are not as wanted: content, mode or owner (root, that is whoever runs this)."""
        return [file for file in self.wanted if not self._as_wanted(file)]

    def _as_wanted(self, file: Wanted) -> bool:
        try:
            status = os.lstat(self.root + file.path)
        except (FileNotFoundError, NotADirectoryError):
            return file.content is None
        return (
            file.content is not None
            and stat.S_ISREG(status.st_mode)
            and stat.S_IMODE(status.st_mode) == file.mode
            and status.st_uid == os.geteuid()
            and self.read(file.path) == file.content
        )

    def unfinished(self) -> bool:
        """Whether an earlier change of these files was neither finished nor undone."""
        return any(os.path.lexists(self._beside(file.path, "former")) for file in self.wanted)

    def stage(self) -> None:
        """Write all new content beside its place: whatever takes space, or may fail for lack of it, happens here.

        Raises OSError, with nothing left behind.
        """
        try:
            for file in self.changes():
                if file.content is not None:
                    self._make_directory(os.path.dirname(self.root + file.path), file.directory_mode)
                    self._write(self._beside(file.path, "new"), file.content, file.mode)
        except OSError as error:
            self.discard()
            raise OSError(error.errno, error.strerror, self.root + file.path) from error

    def _make_directory(self, path: str, mode: int) -> None:
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for number, directory in enumerate(reversed(missing), 1):
            os.mkdir(directory)
            os.chmod(directory, mode if number == len(missing) else 0o755)  # whatever the umask is
            self._made.append(directory)

    @staticmethod
    def _write(path: str, content: bytes, mode: int) -> None:
        _remove(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def discard(self) -> None:
        """Undo ``stage``."""
        for file in self.wanted:
            _remove(self._beside(file.path, "new"))
        self._remove_made()

    def commit(self) -> None:
        """Put the staged content in place, file by file in the given order, keeping what was there."""
        for file in self.changes():
            path, former = self.root + file.path, self._beside(file.path, "former")
            if not os.path.lexists(former):  # one that an unfinished change left is the last proven content
                if not os.path.lexists(path):
                    os.symlink(os.devnull, former)
                elif file.content is None:
                    os.rename(path, former)
                else:
                    os.link(path, former, follow_symlinks=False)
            if file.content is None:
                _remove(path)
            else:
                os.rename(self._beside(file.path, "new"), path)
            _sync(os.path.dirname(path))

    def undo(self) -> None:
        """Put back what was there before the change, the last file first."""
        for file in reversed(self.wanted):
            path, former = self.root + file.path, self._beside(file.path, "former")
            if os.path.islink(former) and os.readlink(former) == os.devnull:
                _remove(path)
                _remove(former)
            elif os.path.lexists(former):
                os.rename(former, path)
                _remove(former)  # rename does nothing where both are still one file
            else:
                continue
            _sync(os.path.dirname(path))
        self.discard()

    def finish(self) -> None:
        """The change is proven: forget what was before, and remove directories that it left empty."""
        for file in self.wanted:
            _remove(self._beside(file.path, "former"))
            _remove(self._beside(file.path, "new"))
        for file in self.wanted:
            directory = self.root + file.path
            for _level in range(file.own_directories if file.content is None else 0):
                directory = os.path.dirname(directory)
                _remove_directory(directory)

    def _remove_made(self) -> None:
        for directory in reversed(self._made):
            _remove_directory(directory)
        self._made.clear()


def _remove(path: str) -> None:
    if os.path.lexists(path):  # unlink would complain of a read-only file system even when there is nothing
        os.unlink(path)


def _remove_directory(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # it has something of someone else's, or is gone


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
