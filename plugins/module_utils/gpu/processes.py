# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which systemd unit a process belongs to, and what a unit holds on the GPUs."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

_UNIT_SUFFIXES = (".service", ".scope", ".socket", ".mount", ".swap")


def unit_of(pid: int, root: str = "/") -> Optional[str]:
    """The system unit that owns a process, as the system manager names it.

    :param pid: process id, as this host's procfs knows it.
    :param root: folder that holds ``proc``; another one than ``/`` in tests.
    :returns: such as ``ollama.service``, ``vllm@a\\x2db.service``, ``session-3.scope``, ``user@1000.service``;
        None when the process is gone, is in no unit, or /proc/PID/cgroup may not be read.
    """
    try:
        path = "%s/proc/%d/cgroup" % (root.rstrip("/"), pid)
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as source:
            return unit_of_cgroup(source.read())
    except OSError:
        return None


def unit_of_cgroup(text: str) -> Optional[str]:
    """The system unit in the text of a /proc/PID/cgroup, or None.

    systemd's own hierarchy (cgroup v1, ``name=systemd``) is used first, then the unified one (``0::``): on hybrid
    hosts the second may be a bare ``/``. Users may put any other line end than ``\\n`` into the name of a group.
    """
    paths = {}
    for line in text.split("\n"):
        hierarchy, _sep, rest = line.partition(":")
        controllers, _sep, path = rest.partition(":")
        if controllers == "name=systemd":
            paths["named"] = path
        elif hierarchy == "0" and not controllers:
            paths["unified"] = path
    for key in ("named", "unified"):
        unit = _unit_in_path(paths.get(key, ""))
        if unit:
            return unit
    return None


def _unit_in_path(path: str) -> Optional[str]:
    """The first unit below the slices of a cgroup path; what a unit makes below itself (Delegate=) is its own."""
    if path.endswith(" (deleted)"):
        path = path[: -len(" (deleted)")]
    for part in path.split("/"):
        # systemd puts one "_" before names that the kernel or it itself could take for something else
        name = part[1:] if part.startswith("_") else part
        if name in ("", "..") or name.endswith(".slice"):
            continue
        return name if name.endswith(_UNIT_SUFFIXES) else None
    return None


def held_by_unit(devices: List[Dict[str, Any]], unit: str) -> Dict[str, int]:
    """GPU memory held by the processes of one unit.

    :param devices: ``devices`` of the facts.
    :param unit: such as ``ollama.service``.
    :returns: bytes per GPU UUID, only for GPUs where the unit has a process; a process whose memory the driver does
        not tell counts 0 bytes.
    """
    held = {}  # type: Dict[str, int]
    for device in devices:
        for process in device["processes"] or ():
            if process["unit"] == unit:
                held[device["uuid"]] = held.get(device["uuid"], 0) + (process["used_bytes"] or 0)
    return held
