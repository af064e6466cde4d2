# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder where a server keeps its models: what it holds, whether the service's user may use it, and moving it.

A store is ``blobs/sha256-HEX`` and ``manifests/REGISTRY/NAMESPACE/MODEL/TAG``. Moving leaves the old store whole until
the service is proven on the new one: on one file system every file gets a second name, which takes no time and no
space; between two it is copied, and each blob must have the digest that its name says.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from contextlib import suppress
from shlex import quote
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.service.model import StepError

CHANGES = ("refuse", "move", "leave")
TOPS = ("blobs", "manifests")
_BLOB = re.compile(r"blobs/sha256-([0-9a-f]{64})\Z")
_NO_SECOND_NAME = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
_MARGIN = 1 << 30  # bytes that stay free when models are copied
_STRANGER = (1 << 31) - 2  # user and group id that nothing belongs to
MOVING = ".gpufleet-moved-from"
"""File of a new store that names the old one, until nothing of it is left there."""


class StoreError(StepError):
    """The store is not as needed; the message says what was found, and what to do."""


class Holding(NamedTuple):
    """What a store has: file, relative to it, to bytes. What is only half pulled does not count."""

    path: str
    files: Dict[str, int]

    @property
    def models(self) -> List[str]:
        return sorted(file for file in self.files if file.startswith("manifests/"))

    def __str__(self) -> str:
        count = len(self.models)
        return "%d model%s, %.1f GB" % (count, "s"[: count != 1], sum(self.files.values()) / 1e9)


def holding(path: str) -> Holding:
    files = {}
    for top in TOPS:
        for folder, _below, names in os.walk(os.path.join(path, top)):
            for name in names:
                file = os.path.join(folder, name)
                relative = os.path.relpath(file, path)
                if top == "manifests" or _BLOB.match(relative):
                    with suppress(FileNotFoundError):  # the server removes models while this one looks
                        files[relative] = os.path.getsize(file)
    return Holding(path, files)


def default_store(user: str) -> Optional[str]:
    """Where a server of this user keeps its models unless told otherwise; None while there is no such user."""
    import pwd

    try:
        return os.path.join(pwd.getpwnam(user).pw_dir, ".ollama", "models")
    except KeyError:
        return None


# --- moving


class MoveStep:
    """Takes the models of one store to another, and removes them from the old one when the service is proven there."""

    restarts = False  # the other value of OLLAMA_MODELS does

    def __init__(self, old: str, new: str, user: str) -> None:
        self.old, self.new, self.user = old, new, user
        self.holding = holding(old)
        self._marker = os.path.join(new, MOVING)
        self._owner = (0, 0)
        self._made: List[str] = []
        self._folders: List[str] = []
        self._applied = False

    def needed(self) -> bool:
        self.holding = holding(self.old)  # another run may have moved them while this one waited for its turn
        return bool(self.holding.files)

    def diff(self) -> Dict[str, str]:
        def said(path: str) -> str:
            return "models in %s (%s)\n" % (path, self.holding)

        return {"before": said(self.old), "after": said(self.new)}

    def apply(self) -> None:
        import pwd

        entry = pwd.getpwnam(self.user)
        self._owner = (entry.pw_uid, entry.pw_gid)
        self._make_folder(self.new)
        with open(self._marker, "w", encoding="utf-8") as marker:
            marker.write(self.old + "\n")
        self._bring(self.holding.files)
        self._applied = True

    def undo(self) -> None:
        for path in [*self._made, self._marker]:
            if os.path.lexists(path):
                os.unlink(path)
        for folder in reversed(self._folders):
            _remove_empty(folder)
        self._applied = False

    def finish(self) -> None:
        """The service is proven on the new store: what was pulled into the old one until then comes, too, and that is
        emptied of what was taken.

        :raises StoreError: not all of it could be brought; the next run goes on.
        """
        if not self._applied:
            return
        late = {file: size for file, size in holding(self.old).files.items() if file not in self.holding.files}
        # what both servers have pulled is the newer one in the new store
        self._bring({file: late[file] for file in late if not os.path.lexists(os.path.join(self.new, file))})
        for file in [*self.holding.files, *late]:
            with suppress(FileNotFoundError):  # the server has removed it in time
                os.unlink(os.path.join(self.old, file))
        for top in TOPS:
            for folder, _below, _files in os.walk(os.path.join(self.old, top), topdown=False):
                _remove_empty(folder)
        _remove_empty(self.old)
        os.unlink(self._marker)

    def _bring(self, files: Mapping[str, int]) -> None:
        for file in sorted(files):  # blobs before manifests: no model is seen before it is whole
            here, there = os.path.join(self.old, file), os.path.join(self.new, file)
            if os.path.lexists(there) and os.path.getsize(there) == files[file]:
                continue
            self._make_folder(os.path.dirname(there))
            try:
                self._take(file, here, there)
            except FileNotFoundError:
                continue  # the server removes a model while this one moves it, its manifest first
            except OSError as error:
                raise StoreError("%s cannot be brought to %s: %s" % (here, there, error.strerror)) from None
            self._made.append(there)

    def _make_folder(self, path: str) -> None:
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            self._make_folder(parent)
        os.mkdir(path, 0o755)
        os.chmod(path, 0o755)
        if (path + "/").startswith(self.new + "/"):  # what lies above it stays with root
            os.chown(path, *self._owner)
        self._folders.append(path)

    def _take(self, file: str, here: str, there: str) -> None:
        if os.path.lexists(there):
            os.unlink(there)  # a blob that is not whole
        try:
            os.link(here, there, follow_symlinks=False)
            return
        except OSError as error:
            if error.errno not in _NO_SECOND_NAME:
                raise
        _copy(file, here, there, self._owner)


def _copy(file: str, here: str, there: str, owner: Tuple[int, int]) -> None:
    """Copy a file of a store; a blob arrives with the digest that its name says, or not at all."""
    import hashlib

    digest, beside = hashlib.sha256(), there + ".gpufleet"
    blob = _BLOB.match(file)
    try:
        with open(here, "rb") as source, open(beside, "wb") as target:
            for chunk in iter(lambda: source.read(1 << 20), b""):
                digest.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        if blob and digest.hexdigest() != blob.group(1):
            raise StoreError(
                "%s is damaged: its SHA-256 is %s; pull the models that use it again, or remove them"
                % (here, digest.hexdigest())
            )
        os.chmod(beside, stat.S_IMODE(os.stat(here).st_mode))
        os.chown(beside, *owner)
        os.rename(beside, there)
    finally:
        if os.path.lexists(beside):
            os.unlink(beside)


def plan(
    former: Optional[str], new: Optional[str], change: str, user: str, unit: str, proc: str = "/proc"
) -> Optional[MoveStep]:
    """What to do about the models of the store that was in force, when another one will be.

    :param change: ``refuse``, ``move`` or ``leave``.
    :returns: the step that moves them, or None.
    :raises StoreError: models would be out of sight, or cannot be moved.
    """
    interrupted = _interrupted(new)
    if interrupted and interrupted != new:
        return MoveStep(interrupted, new or "", user)
    if not (former and new) or os.path.realpath(former) == os.path.realpath(new):
        return None
    old = holding(former)
    there = holding(new).files
    missing = {file: size for file, size in old.files.items() if there.get(file) != size}
    if not (missing and old.models) or change == "leave":
        return None
    if change == "refuse":
        raise StoreError(
            "models_dir changes from %s to %s, where the server would not see %s: set models_dir_change to move (them"
            " there) or leave (them behind), or copy them: mkdir -p %s && cp -a %s/. %s/ && chown -R %s: %s"
            % (former, new, old, quote(new), quote(former), quote(new), user, quote(new))
        )
    _refuse_move(former, new, missing, there, unit, proc)
    return MoveStep(former, new, user)


def _interrupted(new: Optional[str]) -> Optional[str]:
    """The old store of a move that was killed before it was done."""
    if not new:
        return None
    try:
        with open(os.path.join(new, MOVING), encoding="utf-8") as marker:
            return marker.read().strip()
    except OSError:
        return None


def _refuse_move(
    former: str, new: str, missing: Mapping[str, int], there: Mapping[str, int], unit: str, proc: str
) -> None:
    """:raises StoreError: the models cannot be moved, and why."""
    others = [other for other in users_of(former, proc) if other != unit]
    if others:
        raise StoreError(
            "models_dir_change: %s uses the models of %s, too: stop it, or leave them there (leave)"
            % (" and ".join(others), former)
        )
    for file in missing:
        if file.startswith("manifests/") and file in there:
            raise StoreError(
                "models_dir_change: both %s and %s have the model %s, and they differ: remove one of the two files"
                % (os.path.join(former, file), os.path.join(new, file), "/".join(file.split("/")[-2:]))
            )
    place = new
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    if os.stat(place).st_dev != os.stat(former).st_dev:
        needs = sum(missing.values()) + _MARGIN
        free = shutil.disk_usage(place).free
        if free < needs:
            raise StoreError(
                "models_dir_change: %s is on another file system, which has %.1f GB free; the models need %.1f GB"
                " while both copies are there: free %.1f GB" % (new, free / 1e9, needs / 1e9, (needs - free) / 1e9)
            )


def users_of(store: str, proc: str = "/proc") -> List[str]:
    """The units, or else processes, of running servers with this store."""
    from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.processes import unit_of

    found = []
    for pid in filter(str.isdigit, os.listdir(proc)):
        try:
            with open("%s/%s/comm" % (proc, pid), encoding="utf-8", errors="replace") as comm:
                if comm.read().strip() != "ollama":
                    continue
            with open("%s/%s/environ" % (proc, pid), encoding="utf-8", errors="surrogateescape") as environ:
                variables = dict(item.partition("=")[::2] for item in environ.read().split("\0"))
        except OSError:
            continue
        path = variables.get("OLLAMA_MODELS") or os.path.join(variables.get("HOME", "/"), ".ollama", "models")
        if os.path.realpath(path) == os.path.realpath(store):
            found.append(unit_of(int(pid), os.path.dirname(proc)) or "process %s" % pid)
    return sorted(set(found))


# --- may the service's user write there?


def refused(path: str, user: str, to_be_made: bool = False) -> Optional[str]:
    """What keeps a user from using a store, asked of the kernel as that user.

    :param path: of the store; of one that is not there yet, its parents are asked.
    :param to_be_made: a user that does not exist yet will, and nothing belongs to it then; else it is not asked about.
    :returns: a message that names the first file or directory in the way and the command that helps, or None.
    """
    import grp
    import pwd

    uid = gid = _STRANGER
    try:
        uid, gid = pwd.getpwnam(user)[2:4]
    except KeyError:
        if not to_be_made:
            return None
    if os.path.lexists(path) and not os.path.isdir(path):
        return "%s is not a directory" % path
    groups = [group.gr_gid for group in grp.getgrall() if user in group.gr_mem] + [gid]
    asked = _to_ask(path)
    blocked = _first_blocked(asked, uid, gid, groups)
    if blocked is None:
        return None
    place, mode = asked[blocked]
    at = os.stat(place)
    owner = "%s, mode %04o" % (_name_of(at.st_uid), stat.S_IMODE(at.st_mode))
    if mode == os.X_OK:
        return "%s cannot enter %s (owner %s), a parent of %s; chmod o+x %s, or setfacl -m u:%s:x %s" % (
            user,
            place,
            owner,
            path,
            quote(place),
            user,
            quote(place),
        )
    verb = "read" if mode == os.R_OK else "write into"
    return "%s cannot %s %s (owner %s); chown -R %s: %s" % (user, verb, place, owner, user, quote(path))


def _to_ask(path: str) -> List[Tuple[str, int]]:
    """What must be allowed to use a store: to enter its parents, to write into its folders, to read its files."""
    parts = [part for part in path.split("/") if part]
    asked = [("/" + "/".join(parts[:depth]), os.X_OK) for depth in range(1, len(parts))]
    folders = [path, os.path.join(path, "blobs"), os.path.join(path, "manifests")]
    asked += [(folder, os.W_OK | os.X_OK) for folder in folders]
    try:
        asked += [(blob.path, os.R_OK) for blob in os.scandir(folders[1])]
    except OSError:
        pass
    return [(place, mode) for place, mode in asked if os.path.lexists(place)]


def _first_blocked(asked: Sequence[Tuple[str, int]], uid: int, gid: int, groups: List[int]) -> Optional[int]:
    if os.geteuid() != 0:
        return None  # only root can try as somebody else
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            for index, (place, mode) in enumerate(asked):
                if not os.access(place, mode):
                    os.write(writing, b"%d" % index)
                    break
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return int(said) if said and os.path.exists(asked[int(said)][0]) else None


def _name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _remove_empty(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:
        pass  # it has something of someone else's, or is gone
