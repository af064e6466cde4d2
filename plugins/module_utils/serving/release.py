# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release of a program that comes as archives: installed next to the one in use, and switched to by links.

    PREFIX/lib/gpufleet/PROGRAM-KEY12/...          what its archives hold
    PREFIX/bin/PROGRAM -> ../lib/gpufleet/PROGRAM-KEY12/...

So a switch is atomic, and the previous release stays for the way back.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Optional, Sequence

from ..converge.model import Step, StepError
from ..toolbox import files
from ..toolbox.errors import Failed, Needed, Refused
from .model import Host
from .sources import UNVERIFIED, Release, Source, is_url, without_secrets
from .switch import MARKER, Layout, Switch, discard


def with_checksums(release: Release, remote_src: bool) -> Release:
    """The same release, each of its archives with a checksum.

    :param remote_src: archives without a URL lie on this host, where their checksum can be computed.
    :raises Refused: one is missing, or such an archive cannot be read.
    """
    for source in release.sources:
        if not source.checksum and not remote_src:
            raise Refused("archive %s needs archive_checksum, the SHA-256 of its file" % source.place)
    if all(source.checksum for source in release.sources):
        return release
    # a converged host rarely needs it
    from . import archives

    known = (source.checksum or archives.sha256_of(source.place) for source in release.sources)
    return Release(tuple(source._replace(checksum=one) for source, one in zip(release.sources, known)))


class ReleaseStep:
    """One release of a program, out of its archives. ``switch`` knows the way back until it is proven."""

    def __init__(self, release: Release, layout: Layout) -> None:
        self.release, self.key = release, release.key
        self.switch = Switch(layout)
        self.name = self.switch.beginning + self.key[:12]
        self.target = os.path.join(self.switch.store, self.name)
        self.restarts = True
        self._unpacked = False

    def needed(self) -> bool:
        whole, interrupted = self.unpacked() and self.switch.in_use(self.name), self.switch.interrupted()
        # where only what a killed run has left is to be removed, the process is not concerned
        self.restarts = not whole or bool(interrupted and self.switch.unproven())
        return not whole or interrupted

    def diff(self) -> Dict[str, str]:
        def shown(to: Optional[str], path: str) -> str:
            return "%s -> %s\n" % (path, to) if to else ("%s\n" % path if os.path.lexists(path) else "")

        links = self.switch.links(self.name)
        return {
            "before": "".join(shown(files.link(path), path) for path in links),
            "after": "".join(shown(to, path) for path, to in links.items()),
        }

    def apply(self) -> None:
        self.switch.begin()
        if not self.unpacked():
            self._unpack()
        self.switch.to(self.name)

    def undo(self) -> None:
        switched = bool(self.switch.before)
        self.switch.back()
        if self._unpacked:
            discard(self.target)
        if not switched and self.switch.unproven():  # the way back of a killed run is still wanted
            self.switch.leave()
        self.switch.end()

    def finish(self) -> None:
        """After a proven switch: remove all releases but the new one and the previous one; each takes gigabytes.

        The vendor's own files, last set aside, stay for the day on which the program is uninstalled.
        """
        switch = self.switch
        if not switch.before:
            return
        keep = {self.name, *switch.names_in(switch.before), *switch.names_in(switch.aside()), *switch.kept}
        switch.proven(keep)
        switch.sweep(keep)
        switch.end()

    def unpacked(self) -> bool:
        """Whether the whole release lies on this host, in use or not."""
        try:
            descriptor = os.open(os.path.join(self.target, MARKER), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        with os.fdopen(descriptor, "rb") as marker:
            return marker.read(100).strip() == self.key.encode()

    def _unpack(self) -> None:
        from ..toolbox import labels
        from . import archives

        program, *others = (path for _place, path in self.switch.layout.links)
        beside = os.path.join(self.switch.store, ".%s.part" % self.name)
        files.make_folders(beside)
        self._unpacked = True
        for source in self.release.sources:
            archives.lay(source, beside)
            if not os.access(os.path.join(beside, program), os.X_OK):
                raise StepError(
                    "%s holds no program %s; expected a release of %s for Linux"
                    % (without_secrets(source.place), program, self.switch.layout.program)
                )
        for path in others:
            if not os.path.lexists(os.path.join(beside, path)):
                files.make_folders(os.path.join(beside, path))
        files.write_whole(os.path.join(beside, MARKER), self.key.encode() + b"\n")
        try:
            labels.restore(beside)  # the policy has no other labels for it under its final name
        except Failed as error:
            raise StepError(str(error)) from None
        sync_tree(beside)  # a marker that outlives a power cut must not stand for files that did not
        discard(self.target)
        os.rename(beside, self.target)
        with files.folder(self.switch.store) as store:
            files.sync(store)


class BackStep:
    """Where no release is declared any more: back from a switch that was killed before it was proven."""

    def __init__(self, layout: Layout) -> None:
        self.switch = Switch(layout)
        self.restarts = True

    def needed(self) -> bool:
        self.restarts = bool(self.switch.interrupted() and self.switch.unproven())
        return self.switch.interrupted()

    def diff(self) -> Dict[str, str]:
        return {"before": "%s, of a run that was killed\n" % self.switch.record, "after": ""}

    def apply(self) -> None:
        switch, unproven = self.switch, self.switch.unproven()
        switch.begin()
        switch.before = {path: unproven[path] for path in switch.places if path in unproven}
        switch.back()
        used = {path: files.link(path) for path in switch.places}
        switch.sweep({*switch.names_in(used), *switch.names_in(switch.aside())})
        switch.end()

    def undo(self) -> None:
        """What was killed half-way is not restored."""


class ProgramStep:
    """Restarts a service that still runs a program which is no longer the one in place.

    Of several services that start the same program only the first one is restarted by the step that replaces it.
    """

    restarts = True

    def __init__(self, unit: str, program: str, system: Any) -> None:
        self.unit, self.program, self.system = unit, program, system
        self._ran: Optional[str] = None

    def needed(self) -> bool:
        running = self._running()
        place = os.path.dirname(os.path.dirname(os.path.realpath(self.program)))
        # of a service in the sandbox, the kernel shows the path from outside of a chroot that the host may live in
        return running is not None and place + "/" not in running

    def diff(self) -> Dict[str, str]:
        return {"before": "runs %s\n" % self._running(), "after": "runs %s\n" % os.path.realpath(self.program)}

    def apply(self) -> None:
        """The restart is everything."""
        self._ran = self._running()

    def undo(self) -> Optional[str]:
        """What it ran before is no longer in place, and others are proven with what is."""
        return self._ran and (
            "%s ran %s, which has been replaced, and now runs %s: to go back, declare the previous release"
            % (self.unit, self._ran, os.path.realpath(self.program))
        )

    def _running(self) -> Optional[str]:
        pid = int(self.system.show(self.unit).get("MainPID") or 0)
        return self.system.program(pid) if pid else None


def preflight(steps: Sequence[Step], remote_src: bool, host: Host) -> None:
    """What is to be unpacked must be within reach, and its place must be root's alone.

    :param remote_src: archives without a URL lie on this host.
    :raises Refused: one of them is not so.
    :raises Needed: they lie on the controller.
    """
    for step in steps:
        if isinstance(step, (ReleaseStep, BackStep)) and step.needed():
            step.switch.check()
        if isinstance(step, ReleaseStep) and not step.unpacked():
            _check_sources(step.release.sources, remote_src or host.check_mode)
            for source in step.release.sources:
                if source.checksum == UNVERIFIED and source.place.startswith("http://"):
                    host.warn(
                        "archive_checksum: %s comes over plain http, unverified: anyone on the way can replace the "
                        "program; use https, or declare the checksum" % without_secrets(source.place)
                    )


def _check_sources(sources: Sequence[Source], within_reach: bool) -> None:
    from . import archives

    for source in sources:
        missing = archives.without_zstd(source.place) if source.name.endswith(".zst") else None
        if missing:
            raise Refused(missing)
    if not (within_reach or all(is_url(source.place) for source in sources)):
        raise Needed([source.place for source in sources])


def sync_tree(folder: str) -> None:
    """Have all files and names below a folder last through a power cut."""
    for where, _folders, names in os.walk(folder, topdown=False):
        paths = [os.path.join(where, name) for name in names]
        for path in [*(path for path in paths if not os.path.islink(path)), where]:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
