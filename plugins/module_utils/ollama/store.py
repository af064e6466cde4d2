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
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from ..converge import install_record
from ..converge.model import StepError
from ..serving import access
from .names import REGISTRY

TOPS = ("blobs", "manifests")
BLOB = re.compile(r"blobs/sha256-([0-9a-f]{64})\Z")
_DEPTH = 4  # of a manifest below ``manifests``
_LARGEST = 16 << 20  # bytes of a manifest, which has some thousand


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


def names_in(path: str, user: str) -> List[str]:
    """The models of a store as people call them, found with the rights of a user; none where it may not look."""
    try:
        found = access.with_rights_of(user, lambda: holding(path).models)
    except StepError:
        return []
    called = (":".join(file[len("manifests/") :].rsplit("/", 1)) for file in found)
    return [re.sub("^%s/(library/)?|:latest$" % re.escape(REGISTRY), "", name) for name in called]


def _size(path: str) -> Optional[int]:
    """Bytes of a regular file; None for anything else, and where the server has removed it meanwhile."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _unless_gone(error: OSError) -> None:
    """A folder that is not there holds nothing; one that cannot be read is unknown."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE):
        raise error


def default_store(user: str) -> Optional[str]:
    """Where a server of this user keeps its models by default; None while there is no such user."""
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


def refused(path: str, user: str, to_be_made: bool = False, parents_only: bool = False) -> Optional[str]:
    """What keeps a user from using a store; see access.refused."""
    return access.refused(path, user, to_be_made, parents_only, _inside)


def _inside(path: str) -> Iterator[Tuple[str, int]]:
    """What a server must be allowed: to write into its folders, to read its files."""
    for top in TOPS:
        yield os.path.join(path, top), os.W_OK | os.X_OK
    try:
        for blob in os.scandir(os.path.join(path, "blobs")):
            yield blob.path, os.R_OK
    except OSError:
        pass
