# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work in the files of a service's user, with that user's rights, and whether that user may use a folder or
read a file."""

from __future__ import annotations

import os
import stat
from shlex import quote
from typing import Any, Callable, Iterable, Iterator, List, NoReturn, Optional, Tuple

from ..converge.model import StepError
from ..toolbox.errors import Failed, Refused
from ..toolbox.users import STRANGERS, Ids, as_user, beginning, ids_of

LIMIT = 60
"""Seconds to look through a folder."""

OTHER_FOLDER = "choose a folder that is in no home"
"""Advice for a folder in a home: nobody should open a home to a service."""


def ids(user: str) -> Ids:
    """The ids of a user; of one that does not exist yet, ids that nothing belongs to."""
    return ids_of(user) or STRANGERS


def with_rights_of(user: str, work: Any, limit: float = LIMIT) -> Any:
    """The result of ``as_user``.

    :raises StepError: the user may not do it, or it takes too long.
    """
    try:
        return as_user(ids(user), work, limit)
    except Failed as error:
        raise StepError(str(error)) from None
    except OSError as error:
        refuse(error, user)


def refuse(error: OSError, user: str) -> NoReturn:
    """:raises StepError: what a user could not do in a store."""
    raise StepError("%s: %s (as user %s)" % (error.filename or "the store", error.strerror, user)) from None


def check_readable(option: str, path: str, user: str) -> None:
    """:raises Refused: the user cannot read the file that an option names."""
    try:
        beginning(ids(user), path, 1)
    except (OSError, Failed) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Refused("%s: user %s cannot read %s: %s" % (option, user, path, reason)) from None


def refused(
    path: str,
    user: str,
    to_be_made: bool = False,
    parents_only: bool = False,
    inside: Callable[[str], Iterable[Tuple[str, int]]] = lambda path: (),
) -> Optional[str]:
    """What keeps a user from using a folder as its own, asked of the kernel as that user.

    :param path: of the folder; of one that is not there yet, its parents are asked.
    :param to_be_made: a user that does not exist yet will, and nothing belongs to it then; else it is not asked about.
    :param parents_only: the folder itself is about to be given to the user.
    :param inside: further places in it, each with the access that is needed.
    :returns: a message that names the first file or directory in the way and the command that helps, or None.
    """
    if os.geteuid() != 0 or not (to_be_made or ids_of(user)):
        return None  # only root can try as somebody else
    try:
        blocked = with_rights_of(user, lambda: _first_blocked(path, parents_only, inside))
    except StepError as error:
        return "%s cannot be inspected: %s" % (path, error)
    if blocked is None:
        return None
    place, mode, uid, permissions = blocked
    if mode == os.F_OK:
        return "%s is not a directory" % path
    owner = "%s, mode %04o" % (_name_of(uid), permissions)
    if mode == os.X_OK and (place + "/").startswith(("/root/", "/home/")):
        return "%s cannot enter %s (owner %s), a parent of %s; %s, such as /srv/%s" % (
            *(user, place, owner, path),
            *(OTHER_FOLDER, user),
        )
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


def _first_blocked(
    path: str, parents_only: bool, inside: Callable[[str], Iterable[Tuple[str, int]]]
) -> Optional[List[Any]]:
    """The first place that the calling process may not use as it must: path, kind of access, owner, mode."""
    for place, mode in _to_ask(path, parents_only, inside):
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


def _to_ask(
    path: str, parents_only: bool, inside: Callable[[str], Iterable[Tuple[str, int]]]
) -> Iterator[Tuple[str, int]]:
    """What must be allowed: to enter its parents, to write into it, and what is needed inside."""
    parts = [part for part in path.split("/") if part]
    for depth in range(1, len(parts)):
        yield "/" + "/".join(parts[:depth]), os.X_OK
    if parents_only:
        return
    yield path, os.F_OK
    yield path, os.W_OK | os.X_OK
    yield from inside(path)


def _name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
