# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a script of tests/fleet/host on a lab host in one Python process, with the service engine importable."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "ansible_collections/gpufleet/inference/plugins/module_utils"
FOLDER = "/root/engine"
PIECE = 96 * 1024  # of base64, below what one argument of a command may have


def put(lab: Any, host: str, path: str, content: bytes) -> None:
    """Write a file on a host."""
    text = base64.b64encode(content).decode()
    for start in range(0, max(1, len(text)), PIECE):
        lab.sh(host, "echo %s | base64 -d %s %s" % (text[start : start + PIECE], ">>" if start else ">", path))


def run(lab: Any, host: str, script: str, data: Any = None, check: bool = True, timeout: float = 600) -> Any:
    """What the script printed as JSON in its last line; `data` is what it reads as JSON from its first argument."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for room in ("converge", "systemd", "toolbox"):
            for file in sorted((ROOT / "plugins/module_utils" / room).glob("*.py")):
                tar.add(file, "%s/%s/%s" % (PACKAGE, room, file.name))
        tar.add(ROOT / "tests/fleet/host" / script, script)
    lab.sh(host, "rm -rf %s; mkdir -p %s" % (FOLDER, FOLDER))
    put(lab, host, FOLDER + "/engine.tar.gz", archive.getvalue())
    put(lab, host, FOLDER + "/data.json", json.dumps(data).encode())
    lab.sh(host, "cd %s; tar xzf engine.tar.gz; rm engine.tar.gz" % FOLDER)
    out = lab.sh(host, "cd %s; PYTHONPATH=. python3 %s data.json 2>&1" % (FOLDER, script), check=check, timeout=timeout)
    return json.loads(out.rstrip("\n").rpartition("\n")[2]) if check else out
