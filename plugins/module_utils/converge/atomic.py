# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes several small files together, so that each holds its old or its new content and the change can be undone.

New content is first written to ``.NAME.new``, and the previous content stays next to it as ``.NAME.previous`` until
the change is proven. So undoing needs no disk space, and the next run finds a change that was killed and can still undo
it. One rename, of a ``.previous`` to ``.NAME.proven``, records that the change is proven. From then on everything next
to the files is rubbish: a kill may leave it, and the next run removes it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Callable, Iterable, List, NamedTuple, Optional, Set

PREVIOUS, NEW, PROVEN = "previous", "new", "proven"
NOTHING = "no-file-before"
"""Target of a ``.previous`` that stands for no file. Not ``/dev/null``: that is how people mask a drop-in."""
TRIES = 10
HINTS = {
    errno.ENOSPC: "free space on its file system",
    errno.EDQUOT: "free space on its file system",
    errno.EROFS: "its file system is mounted read-only: find out why, and mount it writable",
    errno.EACCES: "run as root (become)",
    errno.EPERM: "run as root (become); if it was, look for chattr +i and for a container without the capability",
}


class Wanted(NamedTuple):
    """One file as it must be; ``content`` None means that it must not exist."""

    path: str
    content: Optional[bytes]
    mode: int = 0o644
    directory_mode: int = 0o755
    """Mode of the file's directory if it has to be created."""
    own_directories: int = 1
    """How many of the directories above it are removed with it if they are empty."""


def names(entries: Iterable[str]) -> Set[str]:
    """The files that a directory's entries stand for: those that exist, and those that a killed run left parts of."""
    found = set()
    for entry in entries:
        name, _dot, kind = entry[1:].rpartition(".")
        if not entry.startswith("."):
            found.add(entry)
        elif name and kind in (PREVIOUS, NEW, PROVEN):
            found.add(name)
    return found


def public(path: str, root: str = "") -> bool:
    """Whether every user of the host may read a file: by its mode, and by those of the directories above it."""
    top, place = os.path.realpath(root or "/"), os.path.realpath(root + path)
    try:
        readable = bool(os.stat(place).st_mode & stat.S_IROTH)
        while readable and place not in (top, "/"):
            place = os.path.dirname(place)
            readable = place == top or bool(os.stat(place).st_mode & stat.S_IXOTH)
    except OSError:
        return False
    return readable


def explain(error: OSError) -> str:
    """What could not be changed, why, and what to do."""
    hint = HINTS.get(error.errno or 0)
    where = " %s" % error.filename if error.filename else ""
    return "cannot change%s: %s%s" % (where, error.strerror, ": " + hint if hint else "")


def ordered(files: Iterable[Wanted], there: Callable[[Wanted], bool]) -> List[Wanted]:
    """First those that will exist, then in reverse those that will not: no file ever names a missing one."""
    kept = [file for file in files if there(file)]
    return kept + [file for file in reversed(list(files)) if not there(file)]


class Files:
    """The files of one change. ``root`` is put before every path (for tests).

    A file may name those before it in ``wanted``: they are written before it, and removed after it.
    """

    def __init__(self, wanted: List[Wanted], root: str = "") -> None:
        self.wanted = wanted
        self.root = root
        self._made: List[str] = []

    def _beside(self, path: str, kind: str) -> str:
        directory, name = os.path.split(self.root + path)
        return "%s/.%s.%s" % (directory, name, kind)

    def read(self, path: str) -> Optional[bytes]:
        """The content of a file; None if it does not exist."""
        try:
            with open(self.root + path, "rb") as stream:
                return stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def mode(self, path: str) -> int:
        """The permissions of a file; 0 if it does not exist."""
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

    def _left(self, kind: str) -> List[str]:
        found = (self._beside(file.path, kind) for file in self.wanted)
        return [path for path in found if os.path.lexists(path)]

    def unfinished(self) -> bool:
        """Whether an earlier change of these files was neither proven nor undone."""
        return bool(self._left(PREVIOUS)) and not self._left(PROVEN)

    def rubbish(self) -> List[str]:
        """What a killed run left next to the files and nothing needs any more, in the order of its removal."""
        proven = self._left(PROVEN)
        previous = self._left(PREVIOUS)
        return self._left(NEW) + (previous if proven or not previous else []) + proven

    def sweep(self) -> None:
        """Remove the rubbish. ``.proven`` goes once the rest is known to be gone: without it that would be undone."""
        rubbish = self.rubbish()
        proven = [path for path in rubbish if path.endswith("." + PROVEN)]
        for some in ([path for path in rubbish if path not in proven], proven):
            for path in some:
                os.unlink(path)
            for directory in sorted({os.path.dirname(path) for path in some}):
                _sync(directory)
        if rubbish:
            self._remove_empty()

    def stage(self) -> None:
        """Write all new content next to its place: whatever needs space happens here.

        Raises OSError, with nothing left behind.
        """
        self.sweep()
        try:
            for file in self.changes():
                if file.content is not None:
                    self._stage(file, file.content)
        except OSError as error:
            self.discard()
            raise OSError(error.errno, error.strerror, self.root + file.path) from error

    def _stage(self, file: Wanted, content: bytes) -> None:
        for left in reversed(range(TRIES)):
            try:
                self._make_directory(os.path.dirname(self.root + file.path), file.directory_mode)
                return self._write(self._beside(file.path, NEW), content, file.mode)
            except (FileNotFoundError, FileExistsError):
                if not left:  # else a run for another unit has just created or removed a directory that both need
                    raise

    def _make_directory(self, path: str, mode: int) -> None:
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for number, directory in enumerate(reversed(missing), 1):
            os.mkdir(directory, 0o700)
            self._made.append(directory)
            os.chmod(directory, mode if number == len(missing) else 0o755)  # whatever the umask is
            _sync(os.path.dirname(directory))

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
            _remove(self._beside(file.path, NEW))
        for directory in reversed(self._made):
            _remove_directory(directory)
        self._made.clear()

    def commit(self) -> None:
        """Put the staged content in place, file by file, keeping the previous content."""
        for file in ordered(self.changes(), lambda file: file.content is not None):
            path, previous = self.root + file.path, self._beside(file.path, PREVIOUS)
            if not os.path.lexists(previous):  # one that an unfinished change left is the last proven content
                if not os.path.lexists(path):
                    os.symlink(NOTHING, previous)
                elif file.content is None:
                    os.rename(path, previous)
                else:
                    os.link(path, previous, follow_symlinks=False)
            if file.content is None:
                _remove(path)
            else:
                os.rename(self._beside(file.path, NEW), path)
            _sync(os.path.dirname(path))

    def undo(self) -> None:
        """Restore the content from before the change, unless the change is proven."""
        changed = [file for file in self.wanted if os.path.lexists(self._beside(file.path, PREVIOUS))]
        if not self.unfinished():
            changed = []
        for file in ordered(changed, lambda file: not _is_nothing(self._beside(file.path, PREVIOUS))):
            path, previous = self.root + file.path, self._beside(file.path, PREVIOUS)
            if _is_nothing(previous):
                _remove(path)
                _remove(previous)
            else:
                os.rename(previous, path)
                _remove(previous)  # rename does nothing where both are still one file
            _sync(os.path.dirname(path))
        self.discard()
        if changed:
            self._remove_empty()

    def finish(self) -> None:
        """The change is proven: remove the previous content, and directories that it left empty."""
        previous = self._left(PREVIOUS)
        if previous and not self._left(PROVEN):
            os.rename(previous[0], previous[0][: -len(PREVIOUS)] + PROVEN)
            _sync(os.path.dirname(previous[0]))
        self.sweep()
        self._remove_empty()

    def _remove_empty(self) -> None:
        """Remove the directories that were created for files that do not exist."""
        for file in self.wanted:
            directory = self.root + file.path
            for _level in range(0 if os.path.lexists(directory) else file.own_directories):
                directory = os.path.dirname(directory)
                _remove_directory(directory)


def _is_nothing(previous: str) -> bool:
    return os.path.islink(previous) and os.readlink(previous) == NOTHING


def _remove(path: str) -> None:
    if os.path.lexists(path):  # unlink would complain of a read-only file system even when there is nothing
        os.unlink(path)


def _remove_directory(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # it has a foreign file, or is gone


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
