# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``%`` and a letter stand for in the files of a unit (systemd.unit(5), specifiers)."""

from __future__ import annotations

import os
import pwd
import re
from typing import Callable, Dict, Mapping, Optional

from ..toolbox.errors import Refused
from .unit import parse_environment_file

KNOWN_VERSION = 252
"""Taken for systemd's version where that cannot be found out: the one that the rules were tried on."""

Read = Callable[[str], Optional[bytes]]
"""Gives the content of a file of the host, None when it cannot be read."""


def specifiers(unit: str, fragment: str, read: Read) -> Mapping[str, str]:
    """What ``%`` and a letter stand for in this unit's files; and, as ``systemd``, systemd's version.

    A letter for which this unit has nothing is missing: systemd drops a word with it.
    """
    stem, _dot, kind = unit.rpartition(".")
    prefix, _at, instance = stem.partition("@")
    machine, root, version = os.uname(), pwd.getpwuid(0), _version(read)
    release = _assignments(read, "/etc/os-release") or _assignments(read, "/usr/lib/os-release")
    found = {
        "systemd": str(version),
        "n": unit,
        "N": stem,
        "p": prefix,
        "P": _unescape(prefix),
        "q": _assignments(read, "/etc/machine-info").get("PRETTY_HOSTNAME") or machine.nodename,
        "i": instance,
        "I": _unescape(instance),
        "j": prefix.rpartition("-")[2],
        "J": _unescape(prefix.rpartition("-")[2]),
        "f": _path_unescape(instance or prefix),
        "y": fragment if version >= 251 else None,
        "Y": os.path.dirname(fragment) if version >= 251 else None,
        "d": "/run/credentials/" + unit if version >= 251 else None,
        "D": "/usr/share" if version >= 257 else None,
        "t": "/run",
        "S": "/var/lib",
        "C": "/var/cache",
        "L": "/var/log",
        "E": "/etc",
        "T": "/tmp",
        "V": "/var/tmp",
        "u": root.pw_name,
        "U": "0",
        "g": "root",
        "G": "0",
        "h": root.pw_dir,
        "s": root.pw_shell,
        "H": machine.nodename,
        "l": machine.nodename.partition(".")[0],
        "v": machine.release,
        "a": {"x86_64": "x86-64", "aarch64": "arm64"}.get(machine.machine, machine.machine),
        "m": (read("/etc/machine-id") or b"").decode("ascii", "replace").strip(),
        "b": (read("/proc/sys/kernel/random/boot_id") or b"").decode("ascii").strip().replace("-", ""),
        "o": release.get("ID", ""),
        "w": release.get("VERSION_ID", ""),
        "B": release.get("BUILD_ID", ""),
        "W": release.get("VARIANT_ID", ""),
        "M": release.get("IMAGE_ID", ""),
        "A": release.get("IMAGE_VERSION", ""),
    }
    return {letter: text for letter, text in found.items() if text is not None}


def _version(read: Read) -> int:
    """The version of the systemd that runs, from the name of the library that it has loaded: no process is started."""
    match = re.search(rb"/libsystemd-shared-(\d+)", read("/proc/1/maps") or b"")
    return int(match.group(1)) if match else KNOWN_VERSION


def _assignments(read: Read, path: str) -> Dict[str, str]:
    """The assignments in a file such as ``/etc/os-release``."""
    try:
        return {name: value for name, (value, _line) in parse_environment_file(read(path) or b"").items()}
    except Refused:
        return {}


def _path_unescape(name: str) -> Optional[str]:
    """A part of a unit's name as the path that it was before systemd-escape; None when it was none."""
    parts = (_unescape(name) or "").split("/")
    if name == "-":
        return "/"
    return None if {"", ".", ".."} & {*parts} else "/" + "/".join(parts)


def _unescape(name: str) -> Optional[str]:
    """A part of a unit's name as it was before systemd-escape; None when it is not escaped as it should be."""
    if re.search(r"\\(?!x[0-9a-fA-F]{2})", name):
        return None
    raw = re.sub(
        rb"\\x([0-9a-fA-F]{2})", lambda match: bytes([int(match.group(1), 16)]), name.replace("-", "/").encode()
    )
    return raw.decode("utf-8", "surrogateescape")
