# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removes what this collection installed for a service, and restores what was there before.

Where the vendor's files were set aside, or the unit is a foreign one with a program of its own, the service continues
with that. Otherwise it is stopped, and its unit, releases, user and empty folders are removed.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

from ..converge import account, install_record
from ..converge import run as convergence
from ..converge.model import Change, ServiceError, StepError, Verdict
from ..converge.override import DROP_IN
from ..gpu.processes import unit_of
from ..toolbox import files, record
from ..toolbox.errors import Refused
from . import fingerprint, generations
from . import switch as switches
from .switch import Layout


class Data(NamedTuple):
    """The data and the user of a service, and what of them is removed."""

    removed: Sequence[str] = ()
    """Folders of the user's own, or in one."""
    user: str = ""
    """Removed with them; empty: stays."""
    records: Sequence[str] = ()
    """Files and folders of root's that go as well."""
    places: Sequence[str] = ()
    """Where data is or was: of the folders that were created for it the empty ones are removed."""
    kept: str = ""
    """What stays, for the message."""


DataOf = Callable[[bool], Data]
"""Asked before the stop and again after it, with whether the service continues with what was there before."""


class Installed:
    """What of our releases of a program lies below a prefix, and whom they serve."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.switch = switches.Switch(layout)
        self.store = self.switch.store
        self.links = [path for path in self.switch.places if self._is_ours(path)]
        self.folders = [os.path.join(self.store, name) for name in self.switch.releases()] + self.switch.leftovers()

    def _is_ours(self, path: str) -> bool:
        return os.path.islink(path) and "gpufleet/" + self.switch.beginning in os.readlink(path)

    def coming_back(self) -> Dict[str, str]:
        """Files of the vendor that were set aside, to the places where they were, unless other ones are there now."""
        aside = self.switch.aside()
        return {aside[place]: place for place in aside if place in self.links or not os.path.lexists(place)}

    def check(self) -> None:
        """:raises Refused: root cannot rely on what lies there."""
        if self.links or self.folders:
            self.switch.check()

    def other_users(self, units: Sequence[str], wanted: str) -> List[str]:
        """Other units that run our program, or start it at boot where no other one comes back in its place.

        :param wanted: pattern of the links of those that are started at boot.
        """
        found = set() if self.coming_back() else {os.path.basename(path) for path in glob.glob(wanted)}
        ours = os.path.join(os.path.realpath(self.store), self.switch.beginning)
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                program = os.readlink("/proc/%s/exe" % pid)
            except OSError:
                continue
            set_aside = program.startswith(os.path.join(os.path.realpath(self.store), self.switch.beginning_aside))
            if program.startswith(ours) and program.endswith("/" + self.layout.links[0][1]) and not set_aside:
                found.add(unit_of(int(pid)) or "process %s" % pid)
        return sorted(found - set(units))


class RestoreStep:
    """The vendor's own files back in their places, instead of our links."""

    restarts = True

    def __init__(self, release: Installed) -> None:
        self.release = release
        self._removed: Dict[str, str] = {}
        self._moved: Dict[str, str] = {}

    def needed(self) -> bool:
        return bool(self.release.links or self.release.coming_back())

    def diff(self) -> Dict[str, str]:
        back = self.release.coming_back().values()
        return {
            "before": "".join("%s -> %s\n" % (path, os.readlink(path)) for path in self.release.links),
            "after": "".join("%s, as it was before\n" % path for path in back),
        }

    def apply(self) -> None:
        """The switch's record has the next run end it, should this one be killed."""
        release = self.release
        aside = {place: aside for aside, place in release.coming_back().items()}
        self._removed = {path: os.readlink(path) for path in release.links}
        release.switch.begin()
        release.switch.restore({place: aside.get(place) for place in [*release.links, *aside]})
        self._moved = {aside[place]: place for place in aside}

    def undo(self) -> None:
        for aside, path in self._moved.items():
            files.make_folders(os.path.dirname(aside))
            os.rename(path, aside)
        for path, target in self._removed.items():
            if not os.path.lexists(path):
                os.symlink(target, path)
        self.release.switch.end()


def check(units: Sequence[str], layout: Layout) -> None:
    """What was installed for the units must serve no other one.

    :param units: all that are being uninstalled.
    :raises Refused: it does; nothing was changed.
    """
    installed, base = Installed(layout), re.split(r"[@.]", units[-1])[0]
    installed.check()
    wanted = "/etc/systemd/system/*.wants/%s*.service" % base
    others = installed.other_users(units, wanted) if installed.links else []
    for path in _units_of_ours(units[-1]):
        others += [name for name in _instances(path) if name not in [*units, *others]]
    if others:
        raise Refused(
            "%s: what was installed is used by %s as well; uninstall that first, or name all of them in instances"
            % (units[-1], " and ".join(others))
        )


def uninstall(unit: str, layout: Layout, data_of: DataOf, check_mode: bool, system: Any) -> Dict[str, Any]:
    """Remove what was installed for a unit, once ``check`` has let it pass.

    :returns: the module's result.
    :raises engine.ServiceError: the previous state is restored, or a rest cannot be removed.
    """
    installed, ours, beside = Installed(layout), _units_of_ours(unit), _template_beside(unit)
    loaded = system.show(unit).get("LoadState") == "loaded"
    restore = RestoreStep(installed)
    goes_on = loaded and _goes_on(unit, installed, bool(ours), restore.needed())
    change = Change(unit=unit, state="absent")
    if loaded and not goes_on:
        change = Change(unit=unit, enabled=False if ours else None, started=False)
    _refuse_mounts(unit, data_of(goes_on).removed)
    outcome = convergence.converge(change, steps=[restore] if goes_on else [], check_mode=check_mode, system=system)

    data = data_of(goes_on)  # once no server writes there any more
    recorded = [path for part in (generations, fingerprint) for path in record.places(part.place_of(unit))]
    gone = [*beside, *([] if goes_on else ours), *installed.folders, *data.records, *recorded]
    links = [] if goes_on else installed.links
    names = [*links, *gone, *data.removed, *(["user " + data.user] if data.user else [])]
    if names:
        before = outcome.diff or {"before": "", "after": "", "before_header": unit, "after_header": unit}
        outcome.diff = dict(before, before=before["before"] + "".join("%s\n" % name for name in names))
    outcome.changed = outcome.changed or bool(names)
    if names and not check_mode:
        try:
            if restore.needed() and not goes_on:
                restore.apply()
            _remove(gone, data.removed, data.user)
            if beside or (ours and not goes_on):
                system.reload()
        except (OSError, StepError) as error:
            installed.switch.leave()
            outcome.verdict = Verdict("not_removed", str(error))
            message = "%s: not everything can be removed: %s; run this again" % (unit, error)
            raise ServiceError(message, outcome) from None
    if not check_mode:
        installed.switch.end()
        _tidy(installed.store, data.places)
        for path in [*ours, *beside]:
            install_record.drop("units", path)
    return dict(outcome.as_result(), msg=_sentence(unit, outcome.changed, check_mode, goes_on, data.kept))


def _goes_on(unit: str, installed: Installed, ours: bool, restored: bool) -> bool:
    """Whether a loaded unit continues with a program that is not ours.

    A foreign unit does if there is one then; one of ours does where the vendor's installer, which knows no instances,
    has come over it.
    """
    program = installed.switch.places[0]
    if restored:
        there = os.path.lexists(program) and program not in installed.links
        return not ours and (there or program in installed.coming_back().values())
    return not ours or ("@" not in unit and os.path.lexists(program))


def _units_of_ours(unit: str) -> List[str]:
    """Unit files that this collection created for a unit."""
    name, at, _instance = unit.partition("@")
    files = [unit, name + "@.service"] if at else [unit]
    return [path for path in install_record.remembered("units") if os.path.basename(path) in files]


def _template_beside(unit: str) -> List[str]:
    """The unit file that this collection created for instances next to a service, once none is left."""
    name = unit.replace(".service", "@.service")
    found = [path for path in install_record.remembered("units") if "@" not in unit and os.path.basename(path) == name]
    return [path for path in found if not _instances(path)]


def _instances(template: str) -> List[str]:
    """Instances of a unit file of ours that are declared, or started at boot."""
    folder, pattern = os.path.dirname(template), os.path.basename(template).replace("@.", "@?*.")
    if "@" not in pattern:
        return []
    found = glob.glob(os.path.join(glob.escape(folder), pattern + ".d", DROP_IN))
    names = {os.path.basename(os.path.dirname(path))[: -len(".d")] for path in found}
    return sorted(names.union(map(os.path.basename, glob.glob(os.path.join(glob.escape(folder), "*.wants", pattern)))))


def _refuse_mounts(unit: str, paths: Sequence[str]) -> None:
    """What is mounted below a folder is not ours to empty.

    :raises Refused: something is; nothing was touched.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        mounts = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in table]
    for path in paths:
        real = os.path.realpath(path)
        for mount in mounts:
            if (mount + "/").startswith(real + "/"):
                raise Refused("%s: %s is to be removed, but %s is mounted: unmount it" % (unit, path, mount))


def _remove(gone: Sequence[str], owned: Sequence[str], user: str) -> None:
    """:param owned: folders of the service's user, or in one."""
    for path in gone:
        switches.discard(path)
        if os.path.lexists(path):
            raise OSError(errno.ENOTEMPTY, "%s cannot be removed" % path)
    for path in owned:
        if not (os.path.islink(path) and files.remove(path)):
            files.remove_tree(path)
        if os.path.lexists(path):
            raise OSError(errno.ENOTEMPTY, "%s cannot be removed" % path)
        install_record.drop("homes", path)
    if user:
        if account.exists(user):  # a killed run may have recorded, but not created it
            account.run(["userdel", user])
        install_record.drop("users", user)


def _tidy(store: str, places: Sequence[str]) -> None:
    """Remove folders of ours that are empty by now."""
    _remove_empty([store])
    # folders that were created for data, from the inside out
    for folder in reversed(install_record.remembered("directories")):
        if any((place + "/").startswith(folder + "/") for place in places):
            _remove_empty([folder])
    _remove_empty([generations.FOLDER, os.path.dirname(install_record.PATH)])


def _remove_empty(folders: List[str]) -> None:
    for folder in folders:
        try:
            with files.folder(os.path.dirname(folder)) as parent:
                os.rmdir(os.path.basename(folder), dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError:
            continue  # it holds something, or is no longer what was created
        install_record.drop("directories", folder)


def _sentence(unit: str, changed: bool, check_mode: bool, goes_on: bool, kept: str) -> str:
    if not changed:
        return "%s: nothing of this collection is installed" % unit
    done = "would be" if check_mode else "is"
    if goes_on:
        return "%s: what was there before %s in force again" % (unit, done)
    return "%s %s uninstalled%s" % (unit, done, kept and "; " + kept)
