#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real PyTorch for lab hosts: one environment in the cache that all hosts read.

    environment.py path       prints where hosts find it, and makes it if need be

The wheel of PyPI is the one for CUDA and computes on the CPU as well; without the packages that only a GPU needs it
does not load, so all are there but triton. Measured on 2 cores: 90 s, 4 GB.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "2.13.0"
PYTHON = "/usr/bin/python3.11"  # of lab hosts; this machine must have the same at this place
SHARED = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache/gpufleet-inference") / "shared"
ON_HOSTS = "/srv/shared"
NAME = "torch/%s-py311" % VERSION
PACKAGES = (
    *("torch==" + VERSION, "numpy", "filelock", "typing-extensions", "sympy", "mpmath", "networkx", "jinja2"),
    *("markupsafe", "fsspec", "setuptools"),
    # What torch's own metadata asks for on Linux
    "cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx]==13.0.3",
    *("nvidia-cudnn-cu13==9.20.0.48", "nvidia-cusparselt-cu13==0.8.1", "nvidia-nccl-cu13==2.29.7"),
    "nvidia-nvshmem-cu13==3.4.5",
)
WARM_UP = (
    "import torch, torch.distributed.run, torch.distributed.elastic.rendezvous.c10d_rendezvous_backend,"
    " torch.distributed.elastic.rendezvous.static_tcp_rendezvous, torch.nn, torch.optim;"
    "net = torch.nn.Linear(2, 2); step = torch.optim.SGD(net.parameters(), 0.1);"
    " net(torch.ones(2)).sum().backward(); step.step()"
)


def run(*words: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(words, env=environment, stdout=sys.stderr)
    if done.returncode:
        sys.exit("environment.py: %s: exit %d, see above" % (" ".join(words[:4]), done.returncode))


def make() -> None:
    """Build beside, then put in place: what is there is whole."""
    folder = SHARED / NAME
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        if not os.access(PYTHON, os.X_OK):
            sys.exit("environment.py: there is no %s here, which lab hosts have: apt-get install python3" % PYTHON)
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        run(PYTHON, "-m", "venv", "--without-pip", str(new))
        pip = [sys.executable, "-m", "pip", "--python", str(new / "bin/python"), "install", "--quiet", "--no-compile"]
        run(*pip, "--no-cache-dir", "--no-deps", *PACKAGES[:-5])
        run(*pip, "--no-cache-dir", *PACKAGES[-5:])
        run(str(new / "bin/python"), "-c", WARM_UP)  # compiles what is imported: hosts cannot write it
        new.rename(folder)


def main() -> None:
    make()
    print("%s/%s" % (ON_HOSTS, NAME))


if __name__ == "__main__":
    main()
