# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes away what this collection has installed for an Ollama service, and brings back what was there before.

Where the vendor's files were set aside, or the unit is somebody else's with a program of its own, the service goes on
with that. Else it is stopped and its unit, releases, user and empty folders are removed. Models stay, and with them the
user that owns them, unless their removal is asked for.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import account, engine, install_record
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.processes import unit_of
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import install, records
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import store as stores
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import switch as switches
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files


class Release:
    """What of our releases lies below a prefix, and whom they serve."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.switch = switches.Switch(prefix)
        self.store = self.switch.store
        self.links = [path for path in self.switch.places if self._is_ours(path)]
        self.folders = [os.path.join(self.store, name) for name in self.switch.releases()] + self.switch.leftovers()

    @staticmethod
    def _is_ours(path: str) -> bool:
        return os.path.islink(path) and "gpufleet/ollama-" in os.readlink(path)

    def coming_back(self) -> Dict[str, str]:
        """Files of the vendor that were set aside, to the places where they were, unless other ones are there now."""
        aside = self.switch.aside()
        return {aside[place]: place for place in aside if place in self.links or not os.path.lexists(place)}

    def check(self) -> None:
        """:raises install.InstallError: root cannot rely on what lies there."""
        if self.links or self.folders:
            self.switch.check()

    def other_users(
        self, units: Sequence[str], wanted: str = "/etc/systemd/system/*.wants/ollama*.service"
    ) -> List[str]:
        """Other units that run our program, or start it at boot where no other one comes back in its place."""
        found = set() if self.coming_back() else {os.path.basename(path) for path in glob.glob(wanted)}
        ours = os.path.realpath(self.store) + "/ollama-"
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                program = os.readlink("/proc/%s/exe" % pid)
            except OSError:
                continue
            set_aside = program.startswith(os.path.join(os.path.realpath(self.store), switches.ASIDE))
            if program.startswith(ours) and program.endswith("/bin/ollama") and not set_aside:
                found.add(unit_of(int(pid)) or "process %s" % pid)
        return sorted(found - set(units))


class RestoreStep:
    """The vendor's own files back in their places, instead of our links."""

    restarts = True

    def __init__(self, release: Release) -> None:
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


def check(units: Sequence[str], prefix: str) -> None:
    """What was installed for the units must serve no other one.

    :param units: all that are being taken away.
    :raises install.InstallError: it does; nothing was touched.
    """
    release = Release(prefix)
    release.check()
    others = release.other_users(units) if release.links else []
    for path in _units_of_ours(units[-1]):
        others += [name for name in _instances(path) if name not in [*units, *others]]
    if others:
        raise install.InstallError(
            "%s: what was installed is used by %s as well; take that away first, or name all of them in instances"
            % (units[-1], " and ".join(others))
        )


def uninstall(
    unit: str, prefix: str, remove_models: bool, user: str, places: Sequence[str], check_mode: bool, system: Any
) -> Dict[str, Any]:
    """Take away what was installed for a unit, once ``check`` has let it pass.

    :param user: whom the unit runs as.
    :param places: where models are.
    :returns: the module's result.
    :raises engine.ServiceError: the previous state is restored, or a rest cannot be removed.
    """
    release, ours, beside = Release(prefix), _units_of_ours(unit), _template_beside(unit)
    loaded = system.show(unit).get("LoadState") == "loaded"
    restore = RestoreStep(release)
    # somebody's unit goes on if it has a program then; one of ours does where upstream's installer has come over it,
    # which knows no instances
    program = os.path.join(prefix, "bin", "ollama")
    if restore.needed():
        there = os.path.lexists(program) and program not in release.links
        goes_on = loaded and not ours and (there or program in release.coming_back().values())
    else:
        goes_on = loaded and (not ours or "@" not in unit and os.path.lexists(program))
    change = engine.Change(unit=unit, state="absent")
    if loaded and not goes_on:
        change = engine.Change(unit=unit, enabled=False if ours else None, started=False)

    def theirs() -> Tuple[List[stores.Holding], bool, bool, List[str]]:
        """Which models exist, whether they and the user are kept, and which of its folders are removed."""
        holdings = [stores.holding(path) for path in dict.fromkeys([*places, *install_record.remembered("stores")])]
        keeps_models = any(holding.files for holding in holdings) and not remove_models
        account_goes = not goes_on and not keeps_models and user in install_record.remembered("users")
        tops = [os.path.join(holding.path, top) for holding in holdings for top in stores.TOPS if holding.files]
        homes = [path for path in install_record.remembered("homes") if path == install.HOME]
        owned = [path for path in tops if remove_models and os.path.lexists(path)]
        return holdings, keeps_models, account_goes, owned + (homes if account_goes else [])

    _refuse_mounts(unit, theirs()[-1])
    steps = [restore] if goes_on else []
    outcome = engine.converge(change, steps=steps, check_mode=check_mode, system=system)

    holdings, keeps_models, account_goes, owned = theirs()  # once no server writes there any more
    gone = [*beside, *([] if goes_on else ours), *release.folders]
    if remove_models and os.path.isdir(records.FOLDER):
        gone.append(records.FOLDER)
    names = [*([] if goes_on else release.links), *gone, *owned, *(["user " + user] if account_goes else [])]
    if names:
        former = outcome.diff or {"before": "", "after": "", "before_header": unit, "after_header": unit}
        outcome.diff = dict(former, before=former["before"] + "".join("%s\n" % name for name in names))
    outcome.changed = outcome.changed or bool(names)
    if names and not check_mode:
        try:
            if restore.needed() and not goes_on:
                restore.apply()
            _remove(gone, owned, user if account_goes else None)
            if beside or (ours and not goes_on):
                system.reload()
        except (OSError, engine.StepError) as error:
            release.switch.leave()
            outcome.verdict = engine.Verdict("not_removed", str(error))
            message = "%s: not everything can be removed: %s; run this again" % (unit, error)
            raise engine.ServiceError(message, outcome) from None
    if not check_mode:
        release.switch.end()
        _tidy(prefix, [holding.path for holding in holdings])
        _remember([] if goes_on else holdings, [*ours, *beside])
    kept = "; ".join("its models stay in %s (%s)" % (one.path, one) for one in holdings if one.files and keeps_models)
    return dict(outcome.as_result(), msg=_sentence(unit, outcome.changed, check_mode, goes_on, kept))


def _units_of_ours(unit: str) -> List[str]:
    """Unit files that this collection has made for a unit."""
    name, at, _instance = unit.partition("@")
    files = [unit, name + "@.service"] if at else [unit]
    return [path for path in install_record.remembered("units") if os.path.basename(path) in files]


def _template_beside(unit: str) -> List[str]:
    """The unit file that this collection has made for instances beside a service, of which none is left."""
    name = unit.replace(".service", "@.service")
    found = [path for path in install_record.remembered("units") if "@" not in unit and os.path.basename(path) == name]
    return [path for path in found if not _instances(path)]


def _instances(template: str) -> List[str]:
    """Instances of a unit file of ours that are declared, or started at boot."""
    folder, pattern = os.path.dirname(template), os.path.basename(template).replace("@.", "@?*.")
    if "@" not in pattern:
        return []
    found = glob.glob(os.path.join(glob.escape(folder), pattern + ".d", engine.DROP_IN))
    names = {os.path.basename(os.path.dirname(path))[: -len(".d")] for path in found}
    return sorted(names.union(map(os.path.basename, glob.glob(os.path.join(glob.escape(folder), "*.wants", pattern)))))


def _refuse_mounts(unit: str, paths: Sequence[str]) -> None:
    """What is mounted below a folder is not ours to empty.

    :raises install.InstallError: something is; nothing was touched.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        mounts = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in table]
    for path in paths:
        real = os.path.realpath(path)
        for mount in mounts:
            if (mount + "/").startswith(real + "/"):
                raise install.InstallError(
                    "%s: %s is to be removed, but %s is mounted: unmount it" % (unit, path, mount)
                )


def _remove(gone: List[str], owned: List[str], user: Optional[str]) -> None:
    """:param owned: folders of the service's user, or in his."""
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


def _tidy(prefix: str, places: List[str]) -> None:
    """Remove folders of ours that are empty by now."""
    _remove_empty([os.path.join(prefix, switches.STORE)])
    # folders that were made for a store, from the inside out
    for folder in reversed(install_record.remembered("directories")):
        if any((place + "/").startswith(folder + "/") for place in places):
            _remove_empty([folder])
    _remove_empty([os.path.dirname(install_record.PATH)])


def _remember(holdings: List[stores.Holding], units: List[str]) -> None:
    """Where models stay, for a later run that is told to remove them."""
    for path in units:
        install_record.drop("units", path)
    for holding in holdings:
        change = install_record.add if stores.holding(holding.path).files else install_record.drop
        change("stores", holding.path)


def _remove_empty(folders: List[str]) -> None:
    for folder in folders:
        try:
            with files.folder(os.path.dirname(folder)) as parent:
                os.rmdir(os.path.basename(folder), dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError:
            continue  # it holds something, or is no longer what was made
        install_record.drop("directories", folder)


def _sentence(unit: str, changed: bool, check_mode: bool, goes_on: bool, kept: str) -> str:
    if not changed:
        return "%s: nothing of this collection is installed" % unit
    done = "would be" if check_mode else "is"
    if goes_on:
        return "%s: what was there before %s in force again" % (unit, done)
    return "%s %s uninstalled%s" % (unit, done, kept and "; " + kept)
