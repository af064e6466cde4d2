# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps of a convergence: the user that a service runs as, and directories that belong to it."""

from __future__ import annotations

import os
import subprocess
from typing import Any, Collection, Dict, List, Optional, Sequence

from . import install_record
from .model import StepError

GROUPS = ("render", "video")
"""May open GPUs, on hosts that have these groups."""


class UserStep:
    """A system user with a home, in the groups that may open GPUs unless others are given."""

    restarts = True  # a process keeps the groups it was started with

    def __init__(self, user: str, home: str, groups: Sequence[str] = GROUPS) -> None:
        self.user, self.home, self.groups = user, home, groups
        self.command = ["useradd", "-r", "-s", "/bin/false", "-U", "-m", "-d", home, user]
        """Creates the user; can also be run manually."""
        self._made_user = self._made_home = False
        self._joined: List[str] = []

    def needed(self) -> bool:
        return not exists(self.user) or bool(self._missing_groups())

    def diff(self) -> Dict[str, str]:
        groups = self._missing_groups()
        after = "user %s%s\n" % (self.user, ", in groups %s" % ", ".join(groups) if groups else "")
        return {"before": "", "after": after}

    def apply(self) -> None:
        if not exists(self.user):
            self._made_home = not os.path.isdir(self.home)
            install_record.add(
                "users", self.user
            )  # first: of a run that is killed in between, nothing is left that nobody knows
            if self._made_home:
                install_record.add("homes", self.home)
            try:
                run(self.command)
            except StepError:
                if not exists(self.user):  # else another run has created it, and counts on the record
                    install_record.drop("users", self.user)
                    install_record.drop("homes", self.home)
                raise
            self._made_user = True
        for group in self._missing_groups():
            run(["usermod", "-a", "-G", group, self.user])
            self._joined.append(group)

    def undo(self) -> None:
        if self._made_user:
            if exists(self.user):
                run(["userdel", "-f", self.user])  # also while a process of the failed unit is still there
            if self._made_home:
                from ..toolbox import files

                files.remove_tree(self.home)
            install_record.drop("users", self.user)
            install_record.drop("homes", self.home)
        else:
            for group in self._joined:
                run(["gpasswd", "-d", self.user, group])

    def _missing_groups(self) -> List[str]:
        import grp

        missing = []
        for group in self.groups:
            try:
                if self.user not in grp.getgrnam(group).gr_mem:
                    missing.append(group)
            except KeyError:
                continue
        return missing


class DirectoryStep:
    """A directory that belongs to the service's user. It is created if it is missing; an existing one is left alone,
    unless the user is to own it."""

    restarts = False

    def __init__(self, path: str, user: str) -> None:
        self.path, self.user = path, user
        self._names: Optional[Collection[str]] = None
        self._made: List[str] = []
        self._given: List[Any] = []

    def give(self, names: Collection[str]) -> Optional[str]:
        """Plan to give the user a directory that root has prepared, with all that is in it.

        :param names: what may be in it.
        :returns: why it stays root's, as something in it is not only root's; None when it will be given.
        """
        from ..toolbox import owner, users

        try:
            why = owner.obstacle(self.path, names, (users.ids_of(self.user) or users.STRANGERS).uid)
        except OSError as error:
            why = "%s: %s" % (error.filename, error.strerror)
        self._names = None if why else names
        return why

    def needed(self) -> bool:
        return self._names is not None or not os.path.lexists(self.path)

    def diff(self) -> Dict[str, str]:
        before = "" if self._names is None else "directory %s of root\n" % self.path
        return {"before": before, "after": "directory %s of %s\n" % (self.path, self.user)}

    def apply(self) -> None:
        """:raises StepError: the directory cannot be created, or given, without following a foreign link."""
        import pwd

        from ..toolbox import files, owner

        entry = pwd.getpwnam(self.user)
        try:
            if self._names is not None and os.path.lexists(self.path):
                for given in owner.give(self.path, self._names, (entry.pw_uid, entry.pw_gid)):
                    self._given.append(given)
                return
            self._made = files.missing_folders(self.path)
            for path in self._made:  # recorded first, so that a killed run leaves none without a record
                install_record.add("directories", path)
            files.make_folders(self.path, (entry.pw_uid, entry.pw_gid))
        except files.UnsafePath as error:
            raise StepError("%s cannot be used: %s" % (error.filename, error.strerror)) from None

    def undo(self) -> Optional[str]:
        from ..toolbox import files, owner

        owner.take_back(self._given)
        for path in reversed(self._made):
            try:
                files.remove_folder(path)
            except (FileNotFoundError, files.UnsafePath):
                pass  # it was never created, or its user has put something else in its place
            except OSError:  # it is not ours to remove
                return "the directory %s remains, as something was put into it" % path
            install_record.drop("directories", path)
        return None


def exists(user: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def run(command: List[str]) -> None:
    """:raises StepError: it fails; the message quotes the command and its output."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False
        )
    except OSError as error:
        raise StepError("%s: %s" % (command[0], error.strerror)) from None
    if done.returncode:
        words = done.stdout.decode("utf-8", "replace").strip()
        raise StepError("%s: exit status %d: %s" % (" ".join(command), done.returncode, words))
