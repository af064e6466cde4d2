# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the interpreters of this host, and uv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import List, Optional, Set, Tuple

from ..toolbox.errors import Failed, Refused


def find_interpreter(wanted: str) -> str:
    """Real path of an interpreter given as a path, a name (``python3.12``) or a version (``3.12``).

    :raises Refused: there is none.
    """
    name = "python" + wanted if wanted[:1].isdigit() else wanted
    found = name if os.path.isabs(name) else shutil.which(name, path=_search_path())
    if not found or not os.access(found, os.X_OK):
        raise Refused(
            "there is no interpreter %s on this host; there are: %s. Install it, or name another one (interpreter)"
            % (name, ", ".join(_interpreters()) or "none")
        )
    return os.path.realpath(found)


def python_version(interpreter: str) -> Tuple[int, int]:
    """Version of an interpreter, from its name where that contains it, else from itself.

    :raises Refused: it does not run.
    """
    name = os.path.basename(interpreter)
    major, dot, minor = name[len("python") :].partition(".")
    if name.startswith("python") and dot and major.isdigit() and minor.isdigit():
        return int(major), int(minor)
    if os.path.realpath(sys.executable) == interpreter:
        return sys.version_info[0], sys.version_info[1]
    program = "import sys; print('%d %d' % sys.version_info[:2])"
    try:
        said = subprocess.check_output([interpreter, "-c", program], stdin=subprocess.DEVNULL, timeout=60)
        numbers = [int(number) for number in said.split()]
        return numbers[0], numbers[1]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise Refused("%s is not a working Python interpreter: %s" % (interpreter, error)) from None


def find_uv(installer: str) -> Optional[str]:
    """Path of uv; None: use pip.

    :raises Failed: uv is asked for and is not there.
    """
    found = shutil.which("uv", path=_search_path()) if installer != "pip" else None
    if installer == "uv" and not found:
        raise Failed("installer is uv, and there is no uv on this host (looked in %s)" % _search_path())
    return found


def _search_path() -> str:
    # sudo and ssh may leave out where people install
    return ":".join(["/usr/local/bin", "/usr/bin", "/bin", "/root/.local/bin", os.environ.get("PATH", "")]).rstrip(":")


def _interpreters() -> List[str]:
    found: Set[str] = set()
    for folder in _search_path().split(":"):
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        found.update(os.path.join(folder, name) for name in names if name.startswith("python3.") and name[8:].isdigit())
    return sorted(found)
