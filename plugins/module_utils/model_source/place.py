# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a model lies on a host: a folder for each revision, whole or not there.

ROOT/SOURCE/ORGANISATION/NAME/COMMIT/           whole, as gpufleet.json in it confirms, which is written last
ROOT/SOURCE/ORGANISATION/NAME/refs/REVISION     the commit that a branch or tag was when it was asked for
ROOT/SOURCE/ORGANISATION/NAME/.COMMIT.part/     unfinished, closed to all others; the next run continues there

NAME and what is below belong to root. Who may write above it cannot divert root, which works from the opened folder.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from contextlib import contextmanager, suppress
from typing import Any, Dict, Iterator, List, Mapping, Optional
from urllib.parse import quote

from ..toolbox import record
from ..toolbox.errors import Failed, Refused
from ..toolbox.values import gib
from . import hub
from .hub import MARKER

STALE = 7 * 86400
"""Seconds after which an unfinished download that no run has continued is removed."""
WAIT = 3600
"""Seconds to wait for another run that loads the same revision."""
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COMMIT = re.compile(r"[0-9a-f]{40,64}\Z")
_LARGEST = 16 << 20  # bytes of a record


class Place:
    """Where a model lies on this host."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.source, self.name = params["source"], params["name"]
        url = params.get("url")
        if self.source == "git":
            if not url:
                raise Refused("source is git: give url, what git clone takes")
            self.revision = params["revision"] or "HEAD"
        else:
            if url and not url.startswith(("http://", "https://")):
                raise Refused("url: expected http:// or https:// before the address of a hub")
            self.revision = params["revision"] or hub.BRANCHES[self.source]
        hub.check_name(self.name)
        hub.check_revision(self.revision)
        self.folder = self._at = os.path.join(params["root"], self.source, *self.name.split("/"))
        self.shown = "%s of %s" % (self.revision, self.name)
        self.key = "%s %s %s" % (self.source, self.name, self.revision)
        """Its name among hosts."""

    # --- what is there

    def pinned(self) -> bool:
        """Whether the revision is a commit; ModelScope does not report the commit of a revision."""
        return self.source != "modelscope" and bool(re.match(r"[0-9a-f]{40}\Z", self.revision))

    def path(self, commit: str) -> str:
        return os.path.join(self.folder, commit)

    def commit(self) -> Optional[str]:
        """The commit that the revision is or was found to be; nothing when it was never asked for."""
        if self.pinned():
            return self.revision
        found = _text(os.path.join(self.folder, self._ref())).strip()
        return found if _COMMIT.match(found) else None

    def commits(self, start: str) -> List[str]:
        """The commits that are here, whole or not, whose names begin so."""
        try:
            return [name for name in os.listdir(self.folder) if name.startswith(start) and _COMMIT.match(name)]
        except OSError:
            return []

    def whole(self, commit: str) -> bool:
        """Whether all files are there, in their sizes."""
        files: Any = self.record(commit).get("files")
        try:
            return bool(files) and all(
                os.stat(os.path.join(self.path(commit), name)).st_size == size for name, size in files.items()
            )
        except OSError:
            return False

    def record(self, commit: str) -> Dict[str, Any]:
        return record.read(os.path.join(self.path(commit), MARKER))

    def stale(self) -> List[str]:
        """Names of what killed runs have left: downloads only when no run has continued them for a week."""
        try:
            names = os.listdir(self._at)
        except OSError:
            return []
        left = [name for name in names if name.startswith(".") and name.endswith(".part")]
        return sorted(name for name in left if self._outlived(name) and self._free(name))

    def _outlived(self, name: str) -> bool:
        """Whether nobody will continue what is unfinished there."""
        if name == ".clone.part" or self.whole(name[1:-5]):
            return True
        with suppress(OSError):
            return time.time() - os.lstat(os.path.join(self._at, name)).st_mtime > STALE
        return False

    def _free(self, name: str) -> bool:
        try:
            descriptor = os.open(os.path.join(self._at, name), _FOLDER)
        except OSError as error:
            return error.errno == errno.ENOTDIR
        try:
            return _locked(descriptor)
        finally:
            os.close(descriptor)

    # --- changes, all within opened()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Create the model's folder if it is missing, and work in it, whatever becomes of the path to it meanwhile.

        :raises Refused: somebody other than root may write into it.
        :raises OSError: it cannot be created; UnsafePath where somebody else could have put a link on the way.
        """
        from ..toolbox import files

        for _attempt in range(5):  # other runs create the same parents
            try:
                files.make_folders(self.folder)
                break
            except FileExistsError:
                continue
        with files.folder(self.folder) as descriptor:
            found = os.fstat(descriptor)
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise Refused(
                    "%s belongs to user %d, with mode %04o; expected a folder of root into which nobody else may "
                    "write: correct both with chown and chmod, or declare another root"
                    % (self.folder, found.st_uid, found.st_mode & 0o7777)
                )
            self._at = "/proc/self/fd/%d" % descriptor
            try:
                yield
            except OSError as error:
                name = os.fsdecode(error.filename or "")
                if name.startswith(self._at):
                    error.filename = self.folder + name[len(self._at) :]
                raise
            finally:
                self._at = self.folder

    def part(self, name: str) -> str:
        return os.path.join(self._at, ".%s.part" % name)

    @contextmanager
    def unfinished(self, name: str) -> Iterator[int]:
        """Have the folder for what is unfinished for oneself, with what an earlier run left in it.

        :returns: its descriptor; a child process that inherits it holds the folder, too, until it ends.
        :raises Failed: another run still has it after WAIT.
        """
        part, until = self.part(name), time.monotonic() + WAIT
        while True:
            try:
                os.mkdir(part, 0o700)
            except FileExistsError:
                pass
            try:
                descriptor = os.open(part, _FOLDER)
            except FileNotFoundError:  # the other run has just finished it
                continue
            try:
                if not _locked(descriptor):
                    if time.monotonic() > until:
                        raise Failed("%s: another run has been loading it for %d s" % (self.shown, WAIT))
                    # flock itself has no time limit: it is tried again until WAIT is over
                    time.sleep(0.1)
                elif _same(part, descriptor):  # not finished or removed by the one that was waited for
                    os.fchmod(descriptor, 0o700)
                    try:
                        yield descriptor
                    finally:
                        with suppress(OSError):  # finished, or kept for the next run
                            os.rmdir(part)
                    return
            finally:
                os.close(descriptor)

    def finish(self, part: str, commit: str, files: Mapping[str, int], sha256: Optional[Mapping[str, str]]) -> None:
        """Turn a folder of unfinished files into the model with one rename, after all of it is on the disk.

        :param sha256: known checksums, kept for others.
        """
        from ..toolbox.files import sync_all, sync_folder

        path = os.path.join(self._at, commit)
        known: Dict[str, Any] = {"name": self.name, "source": self.source, "commit": commit, "files": dict(files)}
        if sha256:
            known["sha256"] = dict(sha256)
        with open(os.path.join(part, MARKER), "w", encoding="utf-8") as file:
            json.dump(known, file, sort_keys=True, indent=1)
        os.chmod(part, 0o755)
        sync_all(part)
        if os.path.isdir(path):  # damaged
            shutil.rmtree(path)
        os.rename(part, path)
        sync_folder(self._at)

    def remember(self, commit: str) -> None:
        """Note what the revision is, so that the next run need not ask."""
        if self.commit() == commit:
            return
        ref = os.path.join(self._at, self._ref())
        beside = self.part("ref-" + os.path.basename(ref))
        os.makedirs(os.path.dirname(ref), exist_ok=True)
        with open(beside, "w", encoding="ascii") as file:
            file.write(commit + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, ref)
        from ..toolbox.files import sync_folder

        sync_folder(os.path.dirname(ref))

    def remove_stale(self) -> List[str]:
        """Remove what :meth:`stale` names, unless a run is at work there.

        :returns: the names of those removed.
        """
        removed = []
        for name in self.stale():
            if os.path.isdir(os.path.join(self._at, name)):
                with self.unfinished(name[1:-5]):
                    empty(self.part(name[1:-5]))
            else:
                os.unlink(os.path.join(self._at, name))
            removed.append(name)
        return removed

    def _ref(self) -> str:
        return os.path.join("refs", quote(self.revision, safe=""))


def _text(path: str) -> str:
    """The text of a small file; empty where there is none. Waits for no pipe."""
    try:
        with os.fdopen(os.open(path, _READ), "rb") as file:
            return file.read(_LARGEST).decode("utf-8", "replace")
    except OSError:
        return ""


def empty(folder: str) -> None:
    """Remove what is in a folder, following no link."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _locked(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _same(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def check_space(folder: str, needed: int, margin: int) -> None:
    """:raises Refused: with the figures, when a file system has not enough left."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if needed + margin > free:
        raise Refused(
            "the file system of %s has %s free; needed are %s, and %s shall be left (free_space_margin)"
            % (folder, gib(free), gib(needed), gib(margin))
        )


def result(place: Place, commit: str, changed: bool, said: str, size: int = 0) -> Dict[str, Any]:
    path = place.path(commit)
    return {
        "changed": changed,
        "msg": said,
        "path": path,
        "commit": commit,
        "bytes": size,
        "diff": {"before": "", "after": path + "\n"} if changed else {},
    }
