#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PyPI's clients of inference servers, in an environment of their own in the cache of this machine.

clients.py path       prints the Python that has them, and makes it if need be
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import venv
from pathlib import Path

CLIENTS = ("ollama==0.6.3", "openai==3.54.0")
CACHE = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache/gpufleet-inference") / "clients"


def path() -> str:
    """A Python that has the clients; made once, named after what is in it."""
    home = CACHE / "-".join(CLIENTS).replace("==", "-")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            venv.create(home, with_pip=True, clear=True)
            subprocess.run([str(home / "bin/pip"), "install", "-q", *CLIENTS], check=True)
            (home / "ready").touch()
    return str(home / "bin/python")


if __name__ == "__main__":
    print(path())
