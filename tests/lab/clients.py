#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PyPI's clients of inference servers, in an environment of their own in the cache of this machine.

clients.py path       prints the Python that has them, and makes it if need be
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import venv
from pathlib import Path
from typing import Any, Dict, List, Sequence

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


class Load:
    """Users that ask gateways while a block runs; it begins when requests are answered (see users.py).

    `whole`: whole answers by kind of client; `faults`: one line each, `refused: …` or `cut: …`; `lost`: requests for
    which a user has given up.
    """

    def __init__(
        self, urls: Sequence[str], key: str, ollama: Sequence[str], openai: Sequence[str], again: int = 0, **more: Any
    ) -> None:
        given = {"urls": urls, "key": key, "ollama": ollama, "openai": openai, "again": again}
        self.options = {"users": 8, "tokens": 10, "ca": "", **given, **more}
        self.whole: Dict[str, int] = {}
        self.faults: List[str] = []
        self.lost = 0

    def __enter__(self) -> "Load":
        words = [path(), str(Path(__file__).with_name("users.py")), json.dumps(self.options)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout and self.process.stdout.readline() == "under load\n", "users.py has ended"
        return self

    def __exit__(self, *_error: Any) -> None:
        said, _none = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, said
        found = json.loads(said)
        self.whole, self.faults, self.lost = found["whole"], found["faults"], found["lost"]

    def of(self, kind: str) -> List[str]:
        """The faults of a kind."""
        return [fault for fault in self.faults if fault.startswith(kind + ":")]


if __name__ == "__main__":
    print(path())
