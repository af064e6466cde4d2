# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plugin of a real vLLM for the CPU: its workers claim memory of simulated GPUs, one each, as on real ones.

vLLM calls `claim` in each of its processes (entry point vllm.general_plugins). `wheels.py` makes a wheel of this file.
"""

from __future__ import annotations

import multiprocessing
import os
import sys

BYTES = 2 << 30


def claim() -> None:
    gpu = own_gpu()
    if not gpu:
        return
    sys.path.insert(1, "/usr/local/lib/nvidia-sim")
    import nvml_sim

    uuids = {str(device.index): device.uuid for device in nvml_sim.Nvml().devices}
    nvml_sim.claim(os.getpid(), uuids[gpu], BYTES)


def own_gpu() -> str:
    """The index of the GPU that a worker is given; nothing in other processes."""
    name, _, rank = multiprocessing.current_process().name.partition("-")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible[int(rank) % len(visible)] if name == "VllmWorker" else ""
