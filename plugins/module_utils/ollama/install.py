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

import errno
import os
import shutil
import stat
import subprocess
from typing import Any, Dict, Iterator, List, Optional

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.releases import (
    UNVERIFIED,
    Release,
    Source,
    is_url,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.service import account, made
from ansible_collections.gpufleet.inference.plugins.module_utils.service.model import StepError

USER = "ollama"
HOME = "/usr/share/ollama"
STORE = "lib/gpufleet"
"""Where releases lie, below the prefix."""
ASIDE = "ollama-before-"
"""Beginning of the name of the folder there to which files are set aside that are not ours."""
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


class InstallError(StepError):
    """An archive, directory or user is not as needed; the message names it and says what to do."""


DirectoryStep = account.DirectoryStep


class UserStep(account.UserStep):
    """The system user that upstream's install.sh makes."""

    def __init__(self, user: str = USER, home: str = HOME) -> None:
        super().__init__(user, home)


class ReleaseStep:
    """One release of Ollama, out of its archives.

    What the links were before a switch stands in ``.ollama-switch`` until the switch is proven. So a run that was
    killed in between is found by the next one, which restarts the service and knows the way back.
    """

    restarts = True

    def __init__(self, release: Release, prefix: str = "/usr/local") -> None:
        self.release, self.key, self.prefix = release, release.key, prefix
        self.name = "ollama-" + self.key[:12]
        self.store = os.path.join(prefix, STORE)
        self.target = os.path.join(self.store, self.name)
        self.links = (
            (os.path.join(prefix, "bin", "ollama"), os.path.join("..", STORE, self.name, "bin", "ollama")),
            (os.path.join(prefix, "lib", "ollama"), os.path.join("gpufleet", self.name, "lib", "ollama")),
        )
        self.switch = os.path.join(self.store, ".ollama-switch")
        self._unpacked = False
        self._before: Dict[str, Optional[str]] = {}

    def needed(self) -> bool:
        return not self.unpacked() or any(_link(path) != to for path, to in self.links) or os.path.lexists(self.switch)

    def diff(self) -> Dict[str, str]:
        def shown(to: Optional[str], path: str) -> str:
            return "%s -> %s\n" % (path, to) if to else ("%s\n" % path if os.path.lexists(path) else "")

        return {
            "before": "".join(shown(_link(path), path) for path, _to in self.links),
            "after": "".join(shown(to, path) for path, to in self.links),
        }

    def apply(self) -> None:
        if not self.unpacked():
            self._unpack()
        interrupted = self._read_switch()
        self._before = {path: interrupted.get(path, self._former(path)) for path, _to in self.links}
        self._write_switch()
        for path, to in self.links:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if os.path.lexists(path) and not os.path.islink(path):
                self._set_aside(path)
            _point(path, to)

    def undo(self) -> None:
        for path, before in reversed(list(self._before.items())):
            if before is not None and before.startswith("@"):
                _point(path, before[1:])
                continue
            if before is not None and not os.path.lexists(before):
                continue  # not yet set aside
            if os.path.lexists(path):
                os.unlink(path)
            if before is not None:
                os.rename(before, path)
                _remove_empty(os.path.dirname(before), self.store)
        self._before = {}
        if os.path.lexists(self.switch):
            os.unlink(self.switch)
        if self._unpacked:
            shutil.rmtree(self.target, ignore_errors=True)
        _remove_empty(self.store, os.path.dirname(self.store))

    def finish(self) -> None:
        """After a proven switch: remove releases but the new one and the one before it; each takes gigabytes.

        The vendor's own files, last set aside, stay for the day on which Ollama is uninstalled.
        """
        if not self._before:
            return
        former = [before or "" for before in self._before.values()]
        aside = any(os.path.isabs(before) for before in former)
        for name in os.listdir(self.store):
            used = name == self.name or any(name in before.split("/") for before in former)
            if name.startswith(ASIDE):
                used = used or not aside
            if name.startswith("ollama-") and not used:
                shutil.rmtree(os.path.join(self.store, name), ignore_errors=True)
        os.unlink(self.switch)

    def unpacked(self) -> bool:
        """Whether the whole release lies on this host, in use or not."""
        try:
            with open(os.path.join(self.target, ".sha256"), encoding="ascii") as marker:
                return marker.read().strip() == self.key
        except OSError:
            return False

    def _former(self, path: str) -> Optional[str]:
        """What is at a link's place: None, ``@TARGET`` of a link, or where the vendor's files are to be set aside."""
        if os.path.islink(path):
            return "@" + os.readlink(path)
        if not os.path.lexists(path):
            return None
        return self._aside(path)

    def _aside(self, path: str) -> str:
        return os.path.join(self.store, ASIDE + self.key[:12], os.path.relpath(path, self.prefix))

    def _set_aside(self, path: str) -> None:
        aside = self._aside(path)
        if os.path.lexists(aside):
            shutil.rmtree(aside) if os.path.isdir(aside) else os.unlink(aside)
        os.makedirs(os.path.dirname(aside), exist_ok=True)
        os.rename(path, aside)

    def _read_switch(self) -> Dict[str, Optional[str]]:
        import json

        try:
            with open(self.switch, encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write_switch(self) -> None:
        import json

        beside = self.switch + ".new"
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(self._before, file)
        os.rename(beside, self.switch)

    def _unpack(self) -> None:
        os.makedirs(self.store, mode=0o755, exist_ok=True)
        beside = os.path.join(self.store, ".%s.part" % self.name)
        shutil.rmtree(beside, ignore_errors=True)
        os.mkdir(beside, 0o755)
        self._unpacked = True
        try:
            for source in self.release.sources:
                self._lay(source, beside)
                if not os.access(os.path.join(beside, "bin", "ollama"), os.X_OK):
                    raise InstallError(
                        "%s holds no program bin/ollama; expected a release such as ollama-linux-amd64.tar.zst"
                        % source.place
                    )
            os.makedirs(os.path.join(beside, "lib", "ollama"), exist_ok=True)
            with open(os.path.join(beside, ".sha256"), "w", encoding="ascii") as marker:
                marker.write(self.key + "\n")
            shutil.rmtree(self.target, ignore_errors=True)
            os.rename(beside, self.target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    @staticmethod
    def _lay(source: Source, folder: str) -> None:
        """Unpack one archive into a folder, over what is there."""
        archive, download = source.place, folder + ".download"
        try:
            if is_url(archive):
                fetch(archive, download, source.checksum)
                archive = download
            elif sha256_of(archive) != source.checksum:
                raise InstallError(
                    "%s has the SHA-256 %s; expected %s (archive_checksum)"
                    % (archive, sha256_of(archive), source.checksum)
                )
            extract(archive, folder, source.place)
        finally:
            if os.path.exists(download):
                os.unlink(download)


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
        beside = self.path + ".gpufleet"
        try:
            with open(beside, "w", encoding="ascii") as file:
                file.write(self.text)
            os.chmod(beside, 0o644)
            made.add("units", self.path)
            os.rename(beside, self.path)
        finally:
            if os.path.exists(beside):
                os.unlink(beside)
        self._wrote = True

    def undo(self) -> None:
        if self._wrote and os.path.exists(self.path):
            os.unlink(self.path)
        made.drop("units", self.path)


# --- archives


def sha256_of(path: str) -> str:
    """:raises InstallError: the file cannot be read."""
    import hashlib

    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                digest.update(chunk)
    except OSError as error:
        raise InstallError("The archive %s cannot be read: %s" % (path, error.strerror)) from None
    return digest.hexdigest()


def fetch(url: str, path: str, checksum: Optional[str]) -> None:
    """Download to a file, and keep it only with the right digest.

    :raises InstallError: the server refuses, cannot be reached, or sends something else.
    """
    import hashlib
    import urllib.request  # 46 ms, paid only when a release is fetched

    digest = hashlib.sha256()
    try:
        with urllib.request.build_opener().open(url, timeout=60) as source, open(path, "wb") as file:
            for chunk in iter(lambda: source.read(1 << 20), b""):
                digest.update(chunk)
                file.write(chunk)
    except (OSError, ValueError) as error:
        if isinstance(error, urllib.request.HTTPError):
            hint = "; look whether that mirror has this version" if error.code == 404 else ""
            raise InstallError("%s cannot be fetched: %s%s" % (url, error, hint)) from None
        raise InstallError("%s cannot be fetched: %s" % (url, getattr(error, "reason", error))) from None
    if checksum != UNVERIFIED and digest.hexdigest() != checksum:
        raise InstallError(
            "%s has the SHA-256 %s; expected %s (archive_checksum)" % (url, digest.hexdigest(), checksum)
        )


def without_zstd(archive: str) -> Optional[str]:
    """What keeps this host from unpacking an archive, as it is packed with zstd; None where the program is there."""
    if shutil.which("zstd"):
        return None
    managers = [name for name in ("apt-get", "dnf", "yum", "zypper") if shutil.which(name)]
    return (
        "%s is packed with zstd, and this host has no program zstd: %s; where that cannot be, repack it elsewhere, "
        "zstd -dc ollama….tar.zst | gzip >ollama….tgz, and declare that file as archive"
    ) % (archive, "%s install zstd" % managers[0] if managers else "install the package zstd")


def extract(archive: str, folder: str, origin: str) -> None:
    """Unpack a ``.tgz`` or ``.tar.zst``, owned by root, nothing outside ``folder``.

    :param origin: where it came from, for messages.
    :raises InstallError: it is neither, is damaged, needs a program that is not there, or holds unsafe names.
    """
    import tarfile

    try:
        with open(archive, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InstallError("The archive %s cannot be read: %s" % (archive, error.strerror)) from None
    zstd = None
    try:
        if magic == b"\x28\xb5\x2f\xfd":
            missing = without_zstd(origin)
            if missing:
                raise InstallError(missing)
            zstd = subprocess.Popen(["zstd", "-dcq", archive], stdout=subprocess.PIPE)
            with tarfile.open(fileobj=zstd.stdout, mode="r|") as tar:
                _unpack_members(tar, folder)
            if zstd.wait():
                raise InstallError("%s is damaged: zstd ends with status %d" % (origin, zstd.returncode))
        elif magic[:2] == b"\x1f\x8b":
            with tarfile.open(archive, mode="r|gz") as tar:
                _unpack_members(tar, folder)
        else:
            raise InstallError("%s is neither a .tgz nor a .tar.zst archive" % origin)
    except (tarfile.TarError, EOFError) as error:
        raise InstallError("%s is damaged: %s" % (origin, error)) from None
    except OSError as error:
        hint = "; free space on its file system" if error.errno == errno.ENOSPC else ""
        raise InstallError(
            "%s cannot be unpacked to %s: %s%s" % (origin, os.path.dirname(folder), error.strerror or error, hint)
        ) from None
    finally:
        if zstd is not None and zstd.stdout is not None:
            zstd.stdout.close()
            zstd.kill()
            zstd.wait()


def _unpack_members(tar: Any, folder: str) -> None:
    for member in _safe(tar):
        tar.extract(member, folder, set_attrs=False)
        path = os.path.join(folder, member.name)
        if member.isfile():
            os.chmod(path, 0o755 if member.mode & stat.S_IXUSR else 0o644)
        elif member.isdir():
            os.chmod(path, 0o755)


def _safe(tar: Any) -> Iterator[Any]:
    for member in tar:
        target = os.path.join(os.path.dirname(member.name), member.linkname) if member.issym() else member.linkname
        for name in (member.name, target):
            if os.path.isabs(name) or ".." in os.path.normpath(name).split("/"):
                raise InstallError("The archive holds the unsafe name %r; it is not a release of Ollama" % name)
        if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
            raise InstallError("The archive holds a device, %r; it is not a release of Ollama" % member.name)
        yield member


# --- what may be wrong with a host before anything is touched


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


def _link(path: str) -> Optional[str]:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _point(path: str, to: str) -> None:
    beside = path + ".gpufleet"
    if os.path.lexists(beside):
        os.unlink(beside)
    os.symlink(to, beside)
    os.replace(beside, path)


def _remove_empty(folder: str, stop: str) -> None:
    """Remove a folder and its parents below ``stop`` while they are empty."""
    while folder != stop and folder.startswith(stop):
        try:
            os.rmdir(folder)
        except OSError:
            return
        folder = os.path.dirname(folder)
