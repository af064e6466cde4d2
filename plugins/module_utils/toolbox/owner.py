# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder that root has prepared is given to a user, with everything in it, and returned to root.

Only where nobody but root could have put anything there, or could swap anything meanwhile: no folder on the way or in
it may be written by others, and links, second names and other people's files leave it as it is.
"""

from __future__ import annotations

import os
import stat
from typing import Collection, Iterator, List, NamedTuple, Optional, Tuple

from .files import UnsafePath


class Given(NamedTuple):
    """What belonged to somebody else before."""

    path: str
    inode: int
    uid: int
    gid: int


def obstacle(path: str, names: Collection[str], uid: int) -> Optional[str]:
    """Why a folder cannot be given away; None when it can.

    :param path: absolute.
    :param names: what may be in it.
    :param uid: of the user; what this one owns already may be in it, as a killed run leaves it.
    """
    place = "/"
    for name in ["", *(part for part in path.split("/") if part)]:
        place = os.path.join(place, name)
        why = _not_roots_folder(place, os.lstat(place))
        if why:
            return why
    strange = sorted(set(os.listdir(path)).difference(names))
    if strange:
        return "%s is in it" % os.path.join(path, strange[0])
    device = os.lstat(path).st_dev
    for entry, found in _inside(path):
        if stat.S_ISDIR(found.st_mode):
            why = _not_roots_folder(entry, found) if found.st_uid != uid else None
        elif not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_uid not in (0, uid):
            why = "%s is a link, has a second name, or is not root's" % entry
        else:
            why = None
        if why or found.st_dev != device:
            return why or "%s is on another file system" % entry
    return None


def give(path: str, names: Collection[str], owner: Tuple[int, int]) -> Iterator[Given]:
    """Give a folder to a user, the innermost first, so that the user cannot touch what is still to be given.

    :returns: what was given, one by one.
    :raises UnsafePath: it cannot be given, see :func:`obstacle`; nothing was.
    """
    why = obstacle(path, names, owner[0])
    if why:
        raise UnsafePath(path, "it is not only root's: %s" % why)
    for entry, found in [*reversed(list(_inside(path))), (path, os.lstat(path))]:
        if found.st_uid != owner[0]:
            yield Given(entry, found.st_ino, found.st_uid, found.st_gid)
            os.chown(entry, *owner, follow_symlinks=False)


def take_back(given: List[Given]) -> None:
    """Undo :func:`give`, the outermost first; what is not what was given any more is left alone, and so are folders
    that the user has filled. Those that are new and empty are removed."""
    for entry in reversed(given):
        try:
            if os.lstat(entry.path).st_ino == entry.inode:
                os.chown(entry.path, entry.uid, entry.gid, follow_symlinks=False)
        except FileNotFoundError:
            continue
    if not given:
        return
    top, known = given[-1].path, {entry.path for entry in given}
    for name in os.listdir(top):
        path = os.path.join(top, name)
        if path not in known:
            try:
                os.rmdir(path)
            except OSError:
                pass  # it has something in it, or is not a folder


def _inside(path: str) -> Iterator[Tuple[str, os.stat_result]]:
    """All that is in a folder of root's, each folder before its content; the content of other people's is left out."""
    for folder, below, files in os.walk(path):
        for name in [*below, *files]:
            entry = os.path.join(folder, name)
            found = os.lstat(entry)
            if name in below and (not stat.S_ISDIR(found.st_mode) or found.st_uid != 0):
                below.remove(name)
            yield entry, found


def _not_roots_folder(path: str, found: os.stat_result) -> Optional[str]:
    if not stat.S_ISDIR(found.st_mode):
        return "%s is not a folder" % path
    others = found.st_mode & 0o002 or (found.st_mode & 0o020 and found.st_gid != 0)
    return "others than root may write into %s" % path if found.st_uid != 0 or others else None
