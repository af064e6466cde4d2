#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the simulator as a folder to lay over ``/`` of a lab host, and print where it is.

``build.py path`` compiles once per source: the folder is kept in the cache (``GPUFLEET_CACHE``, default
``~/.cache/gpufleet-inference``) under a hash of everything it is made of.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ["nvml.c", "state.c"]
COMPILER = [
    "gcc",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-pthread",
    "-Wl,-soname,libnvidia-ml.so.1",
]
HELPERS = {
    "apply": "usr/local/lib/nvidia-sim/apply",
    "nvml_sim.py": "usr/local/lib/nvidia-sim/nvml_sim.py",
    "nvidia-sim": "usr/local/bin/nvidia-sim",
    "nvidia_smi.py": "usr/bin/nvidia-smi",
}


def inputs() -> list[Path]:
    """Every file the overlay is made of, in a fixed order."""
    names = SOURCES + ["sim.h", "functions.def", "build.py"] + sorted(HELPERS)
    return [HERE / name for name in names] + sorted((HERE / "states").iterdir())


def source_hash() -> str:
    digest = hashlib.sha256()
    for path in inputs():
        digest.update(("%s %d\n" % (path.relative_to(HERE), path.stat().st_size)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def multiarch() -> str:
    """The compiler's library folder, such as x86_64-linux-gnu: hosts are of the machine's own architecture."""
    return subprocess.run(["gcc", "-print-multiarch"], check=True, capture_output=True, text=True).stdout.strip()


def build(folder: Path) -> None:
    """Lay the overlay out in an empty folder."""
    library = folder / "usr/lib" / multiarch() / "libnvidia-ml.so.1"
    library.parent.mkdir(parents=True)
    subprocess.run(COMPILER + ["-o", str(library)] + SOURCES, cwd=HERE, check=True)
    for name, target in HELPERS.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / name, folder / target)
        (folder / target).chmod(0o644 if target.endswith(".py") else 0o755)
    shutil.copytree(HERE / "states", folder / "usr/local/lib/nvidia-sim/states")


def overlay() -> Path:
    """The overlay's folder, built if the cache has none of this source.

    Raises:
        subprocess.CalledProcessError: gcc refused the source; its words are on stderr.
    """
    cache = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache/gpufleet-inference") / "nvidia-sim"
    folder = cache / source_hash()
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cache))
        fresh.chmod(0o755)
        try:
            build(fresh)
            fresh.rename(folder)
        except OSError:
            if not folder.exists():  # another build of the same source was first
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def library() -> Path:
    """The built libnvidia-ml.so.1."""
    return next(overlay().glob("usr/lib/*/libnvidia-ml.so.1"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["path"])
    parser.parse_args()
    print(overlay())
    return 0


if __name__ == "__main__":
    sys.exit(main())
