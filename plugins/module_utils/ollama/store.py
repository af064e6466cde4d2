# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder where a server keeps its models: what it holds, and whether the service's user may use it.

A store is ``blobs/sha256-HEX`` and ``manifests/REGISTRY/NAMESPACE/MODEL/TAG``. It belongs to the service's user, who
may put links, pipes or a million files there: it is inspected with that user's rights, within a time limit.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from shlex import quote
from typing import Any, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import install_record
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.users import STRANGERS, Ids, as_user, ids_of

CHANGES = ("refuse", "move", "leave")
TOPS = ("blobs", "manifests")
BLOB = re.compile(r"blobs/sha256-([0-9a-f]{64})\Z")
_DEPTH = 4  # of a manifest below ``manifests``
_LARGEST = 16 << 20  # bytes of a manifest, which has some thousand
_LIMIT = 60  # seconds to look through a store


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


def holding(path: str, strict: bool = False) -> Holding:
    """What the store at a path has, found with the rights of the calling process: call it through ``as_user``.

    :param strict: a folder that cannot be listed is an error.
    :raises OSError: see strict.
    """
    files = {}
    for top in TOPS:
        for folder, below, names in os.walk(os.path.join(path, top), onerror=_unless_gone if strict else None):
            depth = os.path.relpath(folder, path).count("/") + 1
            if top == "blobs" or depth == _DEPTH:
                del below[:]
            for name in names:
                relative = os.path.relpath(os.path.join(folder, name), path)
                if BLOB.match(relative) if top == "blobs" else depth == _DEPTH:
                    size = _size(os.path.join(folder, name))
                    if size is not None and (top == "blobs" or size <= _LARGEST):
                        files[relative] = size
    return Holding(path, files)


def _size(path: str) -> Optional[int]:
    """Bytes of a regular file; None for anything else, and where the server has removed it meanwhile."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _unless_gone(error: OSError) -> None:
    """A folder that is not there holds nothing; of one that cannot be read nobody knows."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE):
        raise error


def ids(user: str) -> Ids:
    """The ids of a service's user; of one that does not exist yet, ids that nothing belongs to."""
    return ids_of(user) or STRANGERS


def with_rights_of(user: str, work: Any, limit: float = _LIMIT) -> Any:
    """The result of ``as_user``.

    :raises StoreError: the user may not do it, or it takes too long.
    """
    try:
        return as_user(ids(user), work, limit)
    except Failed as error:
        raise StoreError(str(error)) from None
    except OSError as error:
        refuse(error, user)


def refuse(error: OSError, user: str) -> NoReturn:
    """:raises StoreError: what a user could not do in a store."""
    raise StoreError("%s: %s (as user %s)" % (error.filename or "the store", error.strerror, user)) from None


def default_store(user: str) -> Optional[str]:
    """Where a server of this user keeps its models unless told otherwise; None while there is no such user."""
    import pwd

    try:
        return os.path.join(pwd.getpwnam(user).pw_dir, ".ollama", "models")
    except KeyError:
        return None


def move_record(unit: str) -> str:
    """Path of the file that remembers unfinished moves of a unit's models; root's alone, unlike the stores."""
    return os.path.join(os.path.dirname(install_record.PATH), "move-%s.json" % unit)


def move_unfinished(unit: str) -> bool:
    """Whether a killed run left a record of a move, or the beginning of one."""
    folder, name = os.path.split(move_record(unit))
    return any(os.path.lexists(os.path.join(folder, each)) for each in (name, ".%s.new" % name))


# --- may the service's user write there?


def refused(path: str, user: str, to_be_made: bool = False, parents_only: bool = False) -> Optional[str]:
    """What keeps a user from using a store, asked of the kernel as that user.

    :param path: of the store; of one that is not there yet, its parents are asked.
    :param to_be_made: a user that does not exist yet will, and nothing belongs to it then; else it is not asked about.
    :param parents_only: the store itself is about to be given to the user.
    :returns: a message that names the first file or directory in the way and the command that helps, or None.
    """
    if os.geteuid() != 0 or not (to_be_made or ids_of(user)):
        return None  # only root can try as somebody else
    try:
        blocked = with_rights_of(user, lambda: _first_blocked(path, parents_only))
    except StoreError as error:
        return "%s cannot be inspected: %s" % (path, error)
    if blocked is None:
        return None
    place, mode, uid, permissions = blocked
    if mode == os.F_OK:
        return "%s is not a directory" % path
    owner = "%s, mode %04o" % (_name_of(uid), permissions)
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


def _first_blocked(path: str, parents_only: bool) -> Optional[List[Any]]:
    """The first place that the calling process may not use as a store needs it: path, kind of access, owner, mode."""
    for place, mode in _to_ask(path, parents_only):
        if not os.path.lexists(place):
            continue
        allowed = os.path.isdir(place) if mode == os.F_OK else os.access(place, mode)
        if not allowed:
            try:
                at = os.stat(place)
            except OSError:
                at = os.lstat(place)
            return [place, mode, at.st_uid, stat.S_IMODE(at.st_mode)]
    return None


def _to_ask(path: str, parents_only: bool) -> Iterator[Tuple[str, int]]:
    """What must be allowed to use a store: to enter its parents, to write into its folders, to read its files."""
    parts = [part for part in path.split("/") if part]
    for depth in range(1, len(parts)):
        yield "/" + "/".join(parts[:depth]), os.X_OK
    if parents_only:
        return
    yield path, os.F_OK
    for folder in (path, *(os.path.join(path, top) for top in TOPS)):
        yield folder, os.W_OK | os.X_OK
    try:
        for blob in os.scandir(os.path.join(path, "blobs")):
            yield blob.path, os.R_OK
    except OSError:
        pass


def _name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
