# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with a host's GPUs as a whole: code, text, remedy. Pure."""

from __future__ import annotations

from typing import Dict

DRIVER_MISMATCH = "driver_mismatch"
DRIVER_NOT_LOADED = "driver_not_loaded"
LIBRARY_MISSING = "library_missing"
DRIVER_HANG = "driver_hang"
GPU_LOST = "gpu_lost"
NVML_ERROR = "nvml_error"

REMEDIES = {
    DRIVER_MISMATCH: "reboot, or stop everything that uses the GPUs and reload the modules: "
    "modprobe -r nvidia_drm nvidia_modeset nvidia_uvm nvidia && modprobe nvidia",
    DRIVER_NOT_LOADED: "load it with modprobe nvidia; when that fails, the kernel log says why "
    "(no module built for this kernel, Secure Boot, nouveau holding the cards)",
    LIBRARY_MISSING: "install the NVIDIA driver's user space, libnvidia-ml.so.1, in the version of the kernel module",
    DRIVER_HANG: "look for Xid lines and hung tasks in the kernel log (journalctl -k); the host needs a reboot "
    "when the driver does not recover",
    GPU_LOST: "look for Xid 79 in the kernel log (journalctl -k); power-cycle the host, and check the card's seat and "
    "power when it happens again",
    NVML_ERROR: "run nvidia-smi on the host and look for NVRM and Xid lines in the kernel log (journalctl -k)",
}

#: NVML's return codes, and nvidia-smi's exit statuses with them, that name a fault.
BY_NVML_CODE = {9: DRIVER_NOT_LOADED, 12: LIBRARY_MISSING, 15: GPU_LOST, 18: DRIVER_MISMATCH}


def fault(code: str, text: str) -> Dict[str, str]:
    """A fault as the facts show it: its code, what was found, what to do."""
    return {"code": code, "text": text, "remedy": REMEDIES[code]}
