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
    name, _, rank = multiprocessing.current_process().name.partition("-")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if name != "VllmWorker" or not visible[0]:
        return
    sys.path.insert(1, "/usr/local/lib/nvidia-sim")
    import nvml_sim

    uuids = {str(device.index): device.uuid for device in nvml_sim.Nvml().devices}
    nvml_sim.claim(os.getpid(), uuids[visible[int(rank)]], BYTES)
