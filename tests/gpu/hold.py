#!/usr/bin/python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold memory on every GPU that CUDA shows this process, until it is told to stop.

A stand-in for an inference server on a real GPU host: it needs libcuda alone, no toolkit. The amount comes from
HOLD_MIB (MiB per GPU, default 1024). CUDA_VISIBLE_DEVICES is obeyed by the driver itself.
"""

from __future__ import annotations

import ctypes
import os
import signal


def check(code: int, what: str) -> None:
    """Stop with the driver's own number when a call fails (CUresult, 0 is success)."""
    if code:
        raise SystemExit(
            "%s failed with CUresult %d; CUDA_VISIBLE_DEVICES=%r" % (what, code, os.environ.get("CUDA_VISIBLE_DEVICES"))
        )


def main() -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    mib = int(os.environ.get("HOLD_MIB", "1024"))
    check(cuda.cuInit(0), "cuInit")
    count = ctypes.c_int()
    check(cuda.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    for index in range(count.value):
        device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
        check(cuda.cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet")
        check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
        check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
        check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(mib << 20)), "cuMemAlloc")
    print("holding %d MiB on each of %d GPUs" % (mib, count.value), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
