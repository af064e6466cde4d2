# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who could replace a file that root is about to use: every folder on its way counts, not its own mode alone."""

from __future__ import annotations

import os
import stat
from typing import Optional, Sequence

from .files import writers

_LINKS = 40
"""Symbolic links in one path, as in the kernel."""


def intruder(path: str) -> Optional[str]:
    """Why somebody other than root, or whoever runs this, may change what lies at a path; None when nobody may.

    :param path: absolute; it need not exist. A folder counts with what may be put into it.
    """
    if not os.path.isabs(path):
        return "%s is not an absolute path" % path
    place, waiting, links, shared = "/", [part for part in path.split("/") if part][::-1], 0, False
    while True:
        try:
            found = os.lstat(place)
        except FileNotFoundError:
            return "%s does not exist, and any user may create it" % place if shared else None
        except NotADirectoryError:
            return "%s does not lie in a folder" % place
        if found.st_uid not in (0, os.geteuid()):
            return "%s belongs to user %d" % (place, found.st_uid)
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _LINKS:
                return "%s is one of too many symbolic links" % place
            to = os.readlink(place)
            waiting += [part for part in to.split("/") if part][::-1]
            place = "/" if os.path.isabs(to) else os.path.dirname(place)
            continue
        who = writers(found)
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if who and not (sticky and waiting):  # in a sticky folder, what root has created stays root's
            return "%s may be written by %s" % (place, who)
        shared = bool(who)
        if not waiting:
            return None
        place = os.path.normpath(os.path.join(place, waiting.pop()))


def intruder_of(argv: Sequence[str]) -> Optional[str]:
    """Why somebody else may change what a command runs, its program or a script among its words; None for nobody.

    Every absolute path among the words counts, except those of sockets, pipes and devices.
    """
    for number, word in enumerate(argv):
        if number and not (os.path.isabs(word) and _may_be_code(word)):
            continue
        who = intruder(word)
        if who:
            return who
    return None


def _may_be_code(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:  # whoever creates it decides
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def trusted(path: str) -> bool:
    """Whether nobody but root, and whoever runs this, can change a folder or put another one in its place.

    :raises OSError: there is no such folder.
    """
    os.stat(path)
    return intruder(path) is None
