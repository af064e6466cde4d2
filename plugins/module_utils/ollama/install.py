# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must be on a host before Ollama's unit can run: user, directories, release, unit. Steps for the engine.

A release is unpacked beside the one in use and taken by two links, so that a switch is atomic and the former release
stays for the way back:

    PREFIX/lib/gpufleet/ollama-KEY12/{bin/ollama,lib/ollama/…}
    PREFIX/bin/ollama  -> ../lib/gpufleet/ollama-KEY12/bin/ollama
    PREFIX/lib/ollama  -> gpufleet/ollama-KEY12/lib/ollama

The server looks for its libraries at ``../lib/ollama`` from its real path (/proc/self/exe), so each release uses its
own. Upstream's install.sh removes ``lib/ollama`` and unpacks over ``PREFIX``: with this layout it removes and replaces
the links alone, and this collection takes over again at its next run.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import account, install_record
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Step
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import archives, releases
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.archives import InstallError
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.releases import Release, without_secrets
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.storage import USER
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.switch import (
    MARKER,
    Switch,
    discard,
    link,
    names_in,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.model import Host, Service
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Needed, Refused

HOME = "/usr/share/ollama"
UNIT_PATHS = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)

_UNIT = """\
[Unit]
Description=Ollama Service
After=network-online.target

[Service]
ExecStart={prefix}/bin/ollama serve
User={user}
Group={user}
Restart=always
RestartSec=3
Environment="PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

[Install]
WantedBy=default.target
"""


DirectoryStep = account.DirectoryStep


class UserStep(account.UserStep):
    """The system user that upstream's install.sh makes."""

    def __init__(self, user: str = USER, home: str = HOME) -> None:
        super().__init__(user, home)


class ReleaseStep:
    """One release of Ollama, out of its archives. ``switch`` knows the way back until it is proven."""

    def __init__(self, release: Release, prefix: str = "/usr/local") -> None:
        self.release, self.key = release, release.key
        self.name = "ollama-" + self.key[:12]
        self.switch = Switch(prefix)
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
            "before": "".join(shown(link(path), path) for path in links),
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
        """After a proven switch: remove releases but the new one and the one before it; each takes gigabytes.

        The vendor's own files, last set aside, stay for the day on which Ollama is uninstalled.
        """
        switch = self.switch
        if not switch.before:
            return
        keep = {self.name, *names_in(switch.before), *names_in(switch.aside()), *switch.kept}
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
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files

        beside = os.path.join(self.switch.store, ".%s.part" % self.name)
        files.make_folders(beside)
        self._unpacked = True
        for source in self.release.sources:
            archives.lay(source, beside)
            if not os.access(os.path.join(beside, "bin", "ollama"), os.X_OK):
                raise InstallError(
                    "%s holds no program bin/ollama; expected a release such as ollama-linux-amd64.tar.zst"
                    % without_secrets(source.place)
                )
        files.make_folders(os.path.join(beside, "lib", "ollama"))
        files.write_whole(os.path.join(beside, MARKER), self.key.encode() + b"\n")
        sync_tree(beside)  # a marker that outlives a power cut must not stand for files that did not
        discard(self.target)
        os.rename(beside, self.target)
        with files.folder(self.switch.store) as store:
            files.sync(store)


class BackStep:
    """Where no release is declared any more: back from a switch that was killed before it was proven."""

    def __init__(self, prefix: str = "/usr/local") -> None:
        self.switch = Switch(prefix)
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
        used = {path: link(path) for path in switch.places}
        switch.sweep({*names_in(used), *names_in(switch.aside())})
        switch.end()

    def undo(self) -> None:
        """What was killed half-way is not brought back."""


class UnitStep:
    """The unit as upstream's install.sh writes it, only where systemd knows none of that name."""

    restarts = False

    def __init__(self, unit: str, prefix: str = "/usr/local", user: str = USER, root: str = "/") -> None:
        name, at, _instance = unit.partition("@")
        self.file = "%s@.service" % name if at else unit
        self.path = os.path.join(root, UNIT_PATHS[0], self.file)
        self.text = _UNIT.format(prefix=prefix, user=user)
        self._names = {unit, self.file}
        self._root = root
        self._wrote = False

    def needed(self) -> bool:
        return not any(
            os.path.lexists(os.path.join(self._root, folder, name)) for folder in UNIT_PATHS for name in self._names
        )

    def diff(self) -> Dict[str, str]:
        return {"before": "", "after": "# %s\n%s" % (self.path, self.text)}

    def apply(self) -> None:
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files

        content = self.text.encode("ascii")
        install_record.add("units", self.path)
        self._wrote = True
        files.write_whole(self.path, content)

    def undo(self) -> None:
        if self._wrote and os.path.lexists(self.path):
            os.unlink(self.path)
        install_record.drop("units", self.path)


# --- what a service needs


def steps(service: Service, user: str, system: Any) -> List[Step]:
    """What must be there before the unit can run: the release with its user and unit; for an instance its template.

    :param user: of the service.
    :raises Refused: there is no such release, or no program that an instance could start.
    """
    options, unit = service.options, service.unit
    prefix, found = options["prefix"], []  # type: str, List[Step]
    release, back = _release(options), BackStep(prefix)
    if release:
        if user == USER:
            found.append(UserStep())
        found += [ReleaseStep(release, prefix), UnitStep(unit, prefix)]
    elif back.needed():
        found.append(back)
    if service.name:
        from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.server import ProgramStep

        program = os.path.join(prefix, "bin", "ollama")
        if not (found or os.path.exists(program)):
            raise Refused(
                "there is no %s that it could start; expected an installed Ollama: declare archive, or the prefix "
                "below which it is" % program
            )
        found.append(ProgramStep(unit, program, system))
        if not release:
            found.append(UnitStep(unit, prefix))
    return found


def _release(options: Mapping[str, Any]) -> Optional[Release]:
    """The release that is declared, each of its archives with a checksum."""
    try:
        release = releases.plan(
            options["version"],
            options["mirror"],
            options["archive"],
            options["addons"],
            options["archive_checksum"],
            os.uname().machine,
        )
    except releases.ReleaseError as error:
        raise Refused(str(error)) from None
    if release is None:
        return None
    for source in release.sources:
        if not source.checksum and not options["remote_src"]:
            raise Refused("archive %s needs archive_checksum, the SHA-256 of its file" % source.place)
    known = (source.checksum or archives.sha256_of(source.place) for source in release.sources)
    return Release(tuple(source._replace(checksum=one) for source, one in zip(release.sources, known)))


def preflight(needed: Sequence[Step], remote_src: bool, host: Host) -> None:
    """What is to be unpacked must be within reach, and its place must be root's alone.

    :param remote_src: archives without an URL lie on this host.
    :raises Refused: one of them is not so.
    :raises Needed: they lie on the controller.
    """
    for step in needed:
        if isinstance(step, (ReleaseStep, BackStep)) and step.needed():
            step.switch.check()
        if isinstance(step, ReleaseStep) and not step.unpacked():
            _check_archives(step.release.sources, remote_src or host.check_mode)
            for source in step.release.sources:
                if source.checksum == releases.UNVERIFIED and source.place.startswith("http://"):
                    host.warn(
                        "archive_checksum: %s comes over plain http, unverified: anyone on the way can replace the "
                        "program; use https, or declare the checksum" % without_secrets(source.place)
                    )


def _check_archives(sources: Sequence[releases.Source], within_reach: bool) -> None:
    for source in sources:
        missing = archives.without_zstd(source.place) if source.name.endswith(".zst") else None
        if missing:
            raise Refused(missing)
    if not (within_reach or all(releases.is_url(source.place) for source in sources)):
        raise Needed([source.place for source in sources])


def check_library(library: Optional[str], prefix: str, needed: Sequence[Step]) -> None:
    """:raises Refused: the installation has no such folder of libraries, and no step replaces it."""
    there = libraries(prefix) if library else None
    if library is None or there is None or library in there:
        return
    if not any(isinstance(step, ReleaseStep) and step.needed() for step in needed):
        raise Refused(
            "llm_library: there is no folder %s under %s/lib/ollama, so Ollama would serve on the CPU; there are: %s"
            % (library, prefix, ", ".join(there) or "none")
        )


def libraries(prefix: str) -> Optional[List[str]]:
    """Names that OLLAMA_LLM_LIBRARY may have; None when there is no installation yet."""
    folder = os.path.join(prefix, "lib", "ollama")
    try:
        return sorted(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))
    except OSError:
        return None


def home(user: str) -> str:
    """A user's home; where it will be while there is no such user."""
    import pwd

    try:
        return pwd.getpwnam(user).pw_dir
    except KeyError:
        return HOME


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
