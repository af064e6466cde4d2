# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sandbox in which a service still reaches its device nodes, and which settings of a unit keep it from them. Pure.

Each line of the profile was tried with a real inference server on real GPUs (docs/hardening.md); PrivateUsers= kept it
from starting, PrivateDevices= hid the GPUs without a word, MemoryDenyWriteExecute= and ProcSubset= gained nothing.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..systemd.unit import Assignment, Unit

HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""Folders of the host that the service does not see in the sandbox."""

PROFILE: Dict[str, List[str]] = {
    "NoNewPrivileges": ["yes"],
    "CapabilityBoundingSet": [""],
    "ProtectSystem": ["strict"],
    "ProtectHome": ["yes"],
    "PrivateTmp": ["yes"],
    "PrivateDevices": ["no"],
    "ProtectKernelTunables": ["yes"],
    "ProtectKernelModules": ["yes"],
    "ProtectKernelLogs": ["yes"],
    "ProtectControlGroups": ["yes"],
    "ProtectClock": ["yes"],
    "ProtectHostname": ["yes"],
    "ProtectProc": ["invisible"],
    "RestrictSUIDSGID": ["yes"],
    "RestrictRealtime": ["yes"],
    "RestrictNamespaces": ["yes"],
    "RestrictAddressFamilies": ["", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"],
    "LockPersonality": ["yes"],
    "RemoveIPC": ["yes"],
    "SystemCallArchitectures": ["native"],
    "SystemCallFilter": ["", "@system-service", "~@privileged @resources"],
    "UMask": ["0077"],
}

_TRUE = ("1", "yes", "y", "true", "t", "on")


class Node(NamedTuple):
    """A device node that a service needs."""

    path: str
    alias: str = ""
    """Its number as systemd also takes it, such as ``/dev/char/195:0``; empty where it differs from host to host."""
    groups: Tuple[str, ...] = ()
    """Names of its driver in /proc/devices, which ``DeviceAllow=char-NAME`` means."""


def profile(writable: Sequence[str]) -> Dict[str, List[str]]:
    """The sandbox as settings of ``[Service]``; ``writable`` are the folders that the service may write into."""
    return dict(PROFILE, ReadWritePaths=["-" + path for path in writable])


def only(nodes: Sequence[Node]) -> Dict[str, List[str]]:
    """Settings of ``[Service]`` that let it open these nodes and no others, apart from those that are harmless."""
    return {
        "PrivateDevices": ["no"],
        "DevicePolicy": ["closed"],
        "DeviceAllow": ["", *("%s rw" % node.path for node in nodes)],
    }


def hides(unit: Unit, nodes: Sequence[Node]) -> Optional[str]:
    """The setting in force that keeps a unit's service from one of the nodes, and which node; None when it has all."""
    for line in unit.in_force("Service", "PrivateDevices"):
        if line.value.lower() in _TRUE:
            return _say(line, nodes)
    policy = unit.in_force("Service", "DevicePolicy")
    allowed = unit.in_force("Service", "DeviceAllow")
    if allowed or (policy and policy[-1].value in ("closed", "strict")):
        without = [node for node in nodes if not any(_allows(line.value, node) for line in allowed)]
        if without:
            return _say((allowed or policy)[-1], without)
    for line in unit.in_force("Service", "InaccessiblePaths"):
        paths = {word.lstrip("-+") for word in line.value.split()}
        without = [node for node in nodes if node.path in paths or "/dev" in paths]
        if without:
            return _say(line, without)
    return None


def opens(unit: Unit, nodes: Sequence[Node]) -> Optional[str]:
    """The setting in force that lets a unit, which is to have ``only(nodes)``, open something else; None: none does."""
    meant = only(nodes)["DeviceAllow"]
    for line in unit.in_force("Service", "DeviceAllow"):
        if line.value not in meant:
            return "%s=%s in %s:%d lets it open more than its GPUs" % (line.key, line.value, line.path, line.line)
    return None


def _allows(value: str, node: Node) -> bool:
    what, _blank, access = value.partition(" ")
    if not set("rw") <= set(access.strip() or "rwm"):
        return False
    if what.startswith("char-"):
        return any(fnmatchcase(group, what[len("char-") :]) for group in node.groups)
    return what in (node.path, node.alias)


def _say(line: Assignment, nodes: Sequence[Node]) -> str:
    return "%s=%s in %s:%d keeps %s from it" % (
        line.key,
        line.value,
        line.path,
        line.line,
        ", ".join(node.path for node in nodes),
    )
