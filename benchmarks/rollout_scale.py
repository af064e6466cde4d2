#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout costs the controller as the inventory grows: a table of wall time, CPU time and memory.

    .venv/bin/python benchmarks/rollout_scale.py [HOSTS …]

Hosts are names over the local connection with a pretended service, as in the unit tests of rollouts, in pools of 20.
Ten of them change, the others are as declared. So the figures are those of Ansible and of the rollout alone, without
the work of the hosts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests/unit/fixtures/rollout"
CHANGING, POOL, FORKS = 10, 20, "20"
SIZES = (125, 250, 500, 1000)


def rollout(folder: Path, size: int) -> dict[str, Any]:
    """One rollout over ``size`` hosts: its summary, wall and CPU seconds, and the largest process in MiB."""
    world, inventory = folder / "world", folder / "fleet.json"
    world.mkdir()
    names = ["host%04d" % number for number in range(size)]
    hosts = {name: {"ollama_models": ["model%d" % (number // POOL)]} for number, name in enumerate(names)}
    inventory.write_text(json.dumps({"ollama": {"hosts": hosts, "vars": {"ansible_connection": "local"}}}))
    step = size // CHANGING
    for number, name in enumerate(names):
        (world / name).write_text("old\n" if number % step == 0 else "new\n")
    given = {"world": str(world), "want": "new", "rollout_state": str(folder / "state"), "rollout_soak": 0}
    given["rollout_apply"] = os.path.relpath(FIXTURES / "apply.yml", ROOT / "playbooks/rollout_parts")
    tool = str(Path(sys.executable).with_name("ansible-playbook"))
    words = [tool, "-i", str(inventory), "-f", FORKS, str(ROOT / "playbooks/rollout.yml"), "-e", json.dumps(given)]
    own = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_ACTION_PLUGINS": str(FIXTURES / "action")}
    own["ANSIBLE_CALLBACK_PLUGINS"] = str(FIXTURES / "callback")
    began = time.monotonic()
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, **own}, stdin=subprocess.DEVNULL, stdout=output)
        _pid, _status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    said = re.search(r"rollout \w+: .*", (folder / "output").read_text())
    cpu = used.ru_utime + used.ru_stime
    return {"said": said.group() if said else "no receipt", "wall": wall, "cpu": cpu, "rss": used.ru_maxrss / 1024}


def main() -> None:
    print("| hosts | wall s | CPU s | CPU ms per host | largest process MiB | load average | result |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for size in [int(word) for word in sys.argv[1:]] or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            found = rollout(Path(folder), size)
        figures = (size, found["wall"], found["cpu"], 1000 * found["cpu"] / size, found["rss"], os.getloadavg()[0])
        print("| %d | %.0f | %.0f | %.0f | %.0f | %.0f | %s |" % (*figures, found["said"]), flush=True)


if __name__ == "__main__":
    main()
