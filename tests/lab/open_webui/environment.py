#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Open WebUI for lab hosts: environments of two versions in the cache that all hosts read.

    environment.py path       prints where hosts find them, the older one first, and makes them if need be

The older one has only what differs, and else the packages of the newer one. What is left out is what the collection
leaves out (plugins/module_utils/python_env/table.py). Measured on two cores with a load of 20: 5 minutes, 1.7 GB.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List

OLDER, NEWER = "0.12.3", "0.12.4"
PYTHON = "/usr/bin/python3.11"  # of lab hosts; this machine must have the same at this place
SHARED = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache/gpufleet-inference") / "shared"
ON_HOSTS = "/srv/shared"
FOLDER = "open_webui"
WITHOUT = ("sentence-transformers", "accelerate")


def run(*words: str, **more: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(words, env=dict(environment, **more), stdout=sys.stderr)
    if done.returncode:
        sys.exit("environment.py: %s: exit %d, see above" % (" ".join(words[:4]), done.returncode))


def packages(version: str, folder: Path) -> Path:
    """Install Open WebUI itself; gives the folder of its packages."""
    run(PYTHON, "-m", "venv", "--without-pip", str(folder))
    install(folder, "--no-deps", "open-webui==" + version)
    return folder / "lib/python3.11/site-packages"


def install(folder: Path, *words: str) -> None:
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "bin/python"),
        "install",
        "--quiet",
        "--no-compile",
        *words,
    )


def asked(packages: Path) -> List[str]:
    """What Open WebUI requires, but for what is left out."""
    metadata = next(packages.glob("open_webui-*.dist-info/METADATA")).read_text("utf-8")
    found = re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata, re.MULTILINE)
    return [one for one in found if re.split(r"[^A-Za-z0-9_.-]", one)[0] not in WITHOUT]


def make() -> None:
    """Build beside, then put in place: what is there is whole."""
    folder = SHARED / FOLDER
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "open_webui.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        if not os.access(PYTHON, os.X_OK):
            sys.exit("environment.py: there is no %s here, which lab hosts have: apt-get install python3" % PYTHON)
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        newer = packages(NEWER, new / NEWER)
        install(new / NEWER, *asked(newer))
        older = packages(OLDER, new / OLDER)
        install(new / OLDER, *(one for one in asked(older) if one not in asked(newer)))
        (older / "newer.pth").write_text("%s/%s/%s/lib/python3.11/site-packages\n" % (ON_HOSTS, FOLDER, NEWER))
        for version in (OLDER, NEWER):  # compiles what is imported: hosts cannot write it
            path = "%s:%s" % (older, newer) if version == OLDER else str(newer)
            with tempfile.TemporaryDirectory() as data:
                more = {
                    "DATA_DIR": data,
                    "STATIC_DIR": data + "/static",
                    "WEBUI_SECRET_KEY": "x",
                    "OFFLINE_MODE": "true",
                    "FROM_INIT_PY": "true",  # as its own command says
                }
                run(str(new / version / "bin/python"), "-c", "import open_webui.main", PYTHONPATH=path, **more)
            script = new / version / "bin/open-webui"
            head, _newline, rest = script.read_text("utf-8").partition("\n")
            script.write_text("#!%s/%s/%s/bin/python\n%s" % (ON_HOSTS, FOLDER, version, rest))
        new.rename(folder)


def main() -> None:
    make()
    for version in (OLDER, NEWER):
        print("%s/%s/%s" % (ON_HOSTS, FOLDER, version))


if __name__ == "__main__":
    main()
