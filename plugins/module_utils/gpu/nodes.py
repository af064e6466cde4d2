# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The device nodes that a process must be able to open to compute on GPUs. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple

MAJOR = 195
"""Registered for NVIDIA's driver; that of nvidia-uvm differs from host to host."""
_DRIVER = ("nvidia", "nvidia-frontend", "nvidiactl")
_COMMON = (("/dev/nvidiactl", "/dev/char/%d:255" % MAJOR, _DRIVER), ("/dev/nvidia-uvm", "", ("nvidia-uvm",)))

Node = Tuple[str, str, Tuple[str, ...]]

USEFUL = (("/dev/nvidia-uvm-tools", "", ("nvidia-uvm",)),)
"""What profilers and debuggers open in addition."""


def nodes(devices: Sequence[Dict[str, Any]]) -> List[Node]:
    """Path, the same as ``/dev/char/MAJOR:MINOR`` where that is fixed, and the driver's names in /proc/devices.

    ``/dev/nvidia-caps`` is not among them: it is for MIG instances, which are not chosen as GPUs.

    :param devices: GPUs out of the facts.
    :raises ValueError: the minor number of one is not known.
    """
    found: List[Node] = []
    for device in devices:
        minor = device["minor"]
        if minor is None:
            raise ValueError(
                "the minor number of GPU %s is not known (%s), and with it the name of its device node"
                % (device["index"], device["unavailable"].get("minor"))
            )
        found.append(("/dev/nvidia%d" % minor, "/dev/char/%d:%d" % (MAJOR, minor), _DRIVER))
    return [*found, *_COMMON]
