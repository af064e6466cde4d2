# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPU as a platform of vLLM, with what it lacks for Ray on several hosts.

That is one attribute, what Ray calls its devices, and the knowledge that processes with the same rendezvous may be on
several hosts: those of the CPU would look for each other's shared memory. A plugin, of the entry point
vllm.platform_plugins. `wheels.py` makes a wheel of this file.
"""

from __future__ import annotations

import os
from typing import Any, Optional

from vllm.platforms.cpu import CpuPlatform


class Platform(CpuPlatform):
    ray_device_key = "GPU"

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        return "lab_ray.communicator"


def communicator(*args: Any, **more: Any) -> Any:
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    class Apart(CpuCommunicator):
        def _all_group_ranks_share_shm_group_name(self) -> bool:
            return False

    return Apart(*args, **more)


def name() -> Optional[str]:
    """Only for instances that use Ray."""
    return "lab_ray.Platform" if os.environ.get("RAY_ADDRESS") else None
