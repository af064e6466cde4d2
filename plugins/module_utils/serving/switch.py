# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The links by which a release of a program is in use, and the way back for as long as a switch is not proven.

A record in the folder of the releases exists from the first change to the last, so a run that was killed in between is
found by the next one. It is empty while a release is unpacked. Then it holds what was in the places of the links, and,
once the switch is proven, the list of what is to stay. Meanwhile no other run installs a release below that prefix.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Collection, Dict, List, Mapping, NamedTuple, Optional, Set, Tuple

from ..converge.model import StepError
from ..toolbox import files

STORE = "lib/gpufleet"
"""Where releases lie, below the prefix."""
MARKER = ".sha256"
"""File of a release that is whole."""
WAIT = 600.0
"""Seconds to wait for another run that installs a release."""


class Layout(NamedTuple):
    """How the releases of a program lie below a prefix, each in its own folder, PREFIX/lib/gpufleet/PROGRAM-KEY."""

    program: str
    prefix: str
    links: Tuple[Tuple[str, str], ...]
    """Place of each link below the prefix, and the path in a release to which it leads; the program comes first."""


class Switch:
    """What lies below a prefix: links, releases, files of the vendor, and the record."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.prefix = layout, layout.prefix
        self.store = os.path.join(self.prefix, STORE)
        self.beginning = layout.program + "-"
        """Of the names of its releases, and of what was set aside for them."""
        self.beginning_aside = layout.program + "-before-"
        """Of the names of folders with files that are not ours and were set aside."""
        self.places = [os.path.join(self.prefix, place) for place, _path in layout.links]
        self.record = os.path.join(self.store, ".%s-switch" % layout.program)
        self._lock_name = "releases of %s in %s" % (layout.program, self.store)
        self.before: Dict[str, Optional[str]] = {}
        """What was in each place: None, ``@TARGET`` of a link, or where the vendor's files were set aside."""
        self.kept: List[str] = []
        self._made: List[str] = []
        self._unlock: Optional[Callable[[], Any]] = None

    # --- reading

    def interrupted(self) -> bool:
        """Whether a run was killed before it was done; one that is still at it was not."""
        if not os.path.lexists(self.record):
            return False
        from ..toolbox import lock

        return not lock.is_held(self._lock_name)

    def unproven(self) -> Dict[str, Optional[str]]:
        """The way back from a switch that was killed before it was proven; empty when there was none."""
        found = self._read()
        return found if isinstance(found, dict) else {}

    def links(self, name: str) -> Dict[str, str]:
        """Each place, and where its link leads when a release is in use."""
        paths = (os.path.join(self.store, name, path) for _place, path in self.layout.links)
        return {place: os.path.relpath(to, os.path.dirname(place)) for place, to in zip(self.places, paths)}

    def in_use(self, name: str) -> bool:
        return all(files.link(path) == to for path, to in self.links(name).items())

    def aside(self) -> Dict[str, str]:
        """Where the vendor's files of each place were last set aside."""
        found: Dict[str, str] = {}
        folders = [os.path.join(self.store, name) for name in self._names() if name.startswith(self.beginning_aside)]
        for place in self.places:
            asides = [os.path.join(folder, os.path.relpath(place, self.prefix)) for folder in folders]
            there = [aside for aside in asides if os.path.lexists(aside)]
            if there:
                found[place] = max(there, key=lambda aside: os.lstat(os.path.dirname(aside)).st_mtime_ns)
        return found

    def leftovers(self) -> List[str]:
        """What a run that was killed may have left, the record last."""
        names = [name for name in self._names() if name.startswith(("." + self.beginning, ".." + self.beginning))]
        names.sort(key=lambda name: name == os.path.basename(self.record))
        beside = [place + files.BESIDE for place in self.places if os.path.lexists(place + files.BESIDE)]
        return [*beside, *(os.path.join(self.store, name) for name in names)]

    def releases(self) -> List[str]:
        """Names in the store of whole or removable folders of ours, those set aside among them."""
        return [name for name in self._names() if name.startswith(self.beginning)]

    def _names(self) -> List[str]:
        return sorted(os.listdir(self.store)) if os.path.isdir(self.store) else []

    def names_in(self, before: Mapping[str, Optional[str]]) -> Set[str]:
        """The folders of the store that what was in the places lies in."""
        parts = (part for previous in before.values() for part in (previous or "").split("/"))
        return {part for part in parts if part.startswith(self.beginning)}

    # --- changing

    def check(self) -> None:
        """:raises StepError: a user other than root could replace the program, or the record of the way back."""
        from ..toolbox.trusted import intruder

        for folder in (os.path.dirname(self.places[0]), self.store):
            why = intruder(folder)
            if why:
                raise StepError(
                    "prefix %s: %s, and root would trust what lies there: let only root write there, or declare "
                    "another prefix" % (self.prefix, why)
                )

    def begin(self) -> None:
        """Have a record before anything else; one that is there stays."""
        self.check()
        self._lock()
        self._made = files.make_folders(self.store)
        for path in self.leftovers():
            if path != self.record:
                discard(path)
        os.close(os.open(self.record, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))

    def to(self, name: str) -> None:
        """Put a release in use; what is in the places now can be restored."""
        found = self._read()
        self.kept = found if isinstance(found, list) else []
        interrupted = found if isinstance(found, dict) else {}
        aside = os.path.join(self.store, self.beginning_aside + name[len(self.beginning) :])

        def previous(path: str) -> Optional[str]:
            if os.path.lexists(path) and not os.path.islink(path):  # whatever was recorded, this is to come back
                return os.path.join(aside, os.path.relpath(path, self.prefix))
            to = files.link(path)
            return interrupted.get(path, "@" + to if to is not None else None)

        self.before = {path: previous(path) for path in self.places}
        self._write(self.before)
        for path, to in self.links(name).items():
            self._made += files.make_folders(os.path.dirname(path))
            if os.path.lexists(path) and not os.path.islink(path):
                self._set_aside(path, str(self.before[path]))
            files.point(path, to)

    def restore(self, before: Mapping[str, Optional[str]]) -> None:
        """Put something else in the places, in the words of ``before``."""
        self.before = dict(before)
        self._write(self.before)
        self.back()

    def back(self) -> None:
        """Bring back what was in the places before."""
        for path, before in reversed(list(self.before.items())):
            if os.path.lexists(path) and not os.path.islink(path):
                continue  # not yet set aside, or back already
            if before is None:
                if os.path.lexists(path):
                    os.unlink(path)
            elif before.startswith("@"):
                files.point(path, before[1:])
            elif os.path.lexists(before):
                if os.path.lexists(path):
                    os.unlink(path)
                os.rename(before, path)
                remove_empty(os.path.dirname(before), self.store)
        self.before = {}

    def proven(self, keep: Set[str]) -> None:
        """From here on there is no way back; only the cleanup is left."""
        self._write(sorted(keep))

    def end(self) -> None:
        """Remove what is left of a switch, the record last."""
        if not self._unlock:
            return
        for path in self.leftovers():
            discard(path)
        remove_empty(self.store, os.path.dirname(self.store))
        for folder in reversed(self._made):
            remove_empty(folder, os.path.dirname(folder))
        self.leave()

    def leave(self) -> None:
        """Let other runs continue."""
        if self._unlock:
            self._unlock()
        self._unlock = None

    def sweep(self, keep: Collection[str]) -> None:
        """Remove the releases that are no longer needed; each takes gigabytes."""
        for name in self.releases():
            if name not in keep:
                discard(os.path.join(self.store, name))

    def _lock(self) -> None:
        """Be alone with the releases.

        :raises StepError: another run is at it for too long.
        """
        from contextlib import ExitStack

        from ..toolbox import lock

        stack = ExitStack()
        try:
            stack.enter_context(lock.held(self._lock_name, WAIT, what="the releases in " + self.store))
        except lock.LockError as error:
            raise StepError(str(error)) from None
        self._unlock = stack.close

    def _set_aside(self, path: str, aside: str) -> None:
        discard(aside)
        files.make_folders(os.path.dirname(aside))
        os.rename(path, aside)

    def _read(self) -> Any:
        import json

        try:
            descriptor = os.open(self.record, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                return json.loads(file.read(1 << 20))
        except (OSError, ValueError):
            return {}

    def _write(self, found: Any) -> None:
        import json

        files.write_whole(self.record, json.dumps(found).encode())


def discard(path: str) -> None:
    """Remove a file, a link, or a folder; a release that is only half removed must not be taken for a whole one."""
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.isdir(path):
        marker = os.path.join(path, MARKER)
        if os.path.lexists(marker):
            os.unlink(marker)
        import shutil  # only for a change

        shutil.rmtree(path, ignore_errors=True)


def remove_empty(folder: str, stop: str) -> None:
    """Remove a folder and its parents below ``stop`` while they are empty."""
    while folder != stop and folder.startswith(stop):
        try:
            os.rmdir(folder)
        except OSError:
            return
        folder = os.path.dirname(folder)
