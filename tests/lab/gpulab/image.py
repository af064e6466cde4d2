# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image of a lab host: built once from Debian's packages, kept, and named after the hash of its recipe."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Callable

from gpulab import machine, podman
from gpulab.errors import LabError

RECIPE = Path(__file__).resolve().parents[1] / "image"


def tree_hash(folder: Path) -> str:
    """Hash of the names, modes and contents of all files below a folder; 12 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or path.is_file():
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            mode = "link" if path.is_symlink() else "exec" if os.access(path, os.X_OK) else "file"
            digest.update(b"%s\0%s\0%d\0" % (str(path.relative_to(folder)).encode(), mode.encode(), len(content)))
            digest.update(content)
    return digest.hexdigest()[:12]


def ensure(cache: Path, say: Callable[[str], None]) -> str:
    """Name of the image, which exists afterwards: as podman has it, from the tar in the cache, or built."""
    if machine.RELEASE not in machine.RELEASES:
        known = ", ".join(machine.RELEASES)
        raise LabError("GPUFLEET_RELEASE=%s: expected one of %s" % (machine.RELEASE, known))
    key = tree_hash(RECIPE) + ("" if machine.RELEASE == "bookworm" else "-" + machine.RELEASE)
    name = "localhost/gpufleet-host:" + key
    if podman.image_exists(name):
        return name
    archive = cache / "lab" / "image" / ("rootfs-%s.tar" % key)
    if not archive.exists():
        build(archive, say)
    say("importing %s" % archive)
    podman.import_image(archive, name)
    return name


def build(archive: Path, say: Callable[[str], None]) -> None:
    """Write the tar of the root file system with mmdebstrap."""
    sources = machine.read_apt_sources()
    if not sources or not shutil.which("mmdebstrap"):
        raise LabError(
            "the lab's image cannot be built here: %s. Install mmdebstrap (apt-get install mmdebstrap) on a Debian"
            " machine whose apt has a Debian mirror, or make the root file system elsewhere as tests/lab/README.md says"
            " and put its tar to %s" % ("no mmdebstrap found" if sources else "apt here has no Debian mirror", archive)
        )
    say(
        "building the image of a lab host, Debian %d, from %s (once, about two minutes)"
        % (machine.RELEASES[machine.RELEASE], sources[0].split()[1])
    )
    archive.parent.mkdir(parents=True, exist_ok=True)
    packages = ",".join((RECIPE / "packages.txt").read_text().split())
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        options = Path(folder) / "apt.conf"
        options.write_text(machine.read_apt_options())
        unfinished = Path(folder) / "rootfs.tar"
        words = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=" + packages, "--aptopt=" + str(options)]
        words += ["--dpkgopt=path-exclude=/usr/share/%s/*" % unneeded for unneeded in ("man", "doc", "locale", "info")]
        words += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
        words += ["--customize-hook=sh '%s' \"$1\"" % (RECIPE / "setup.sh")]
        done = subprocess.run([*words, machine.RELEASE, str(unfinished), *sources], text=True, capture_output=True)
        if done.returncode:
            raise LabError("mmdebstrap: exit %d:\n%s" % (done.returncode, "\n".join(done.stderr.splitlines()[-20:])))
        unfinished.rename(archive)
