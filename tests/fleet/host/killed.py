# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On a lab host: kills runs of the engine with SIGKILL at every point of a change, and sees the next run converge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import atomic
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Change
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.run import converge
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd import manager, process

UNIT = "fleet-killed.service"
DROP_INS = Path("/etc/systemd/system", UNIT + ".d")
POINTS = [
    (owner, name, when)
    for owner, name in (
        (atomic.Files, "stage"),
        (atomic.Files, "commit"),
        (manager.System, "reload"),
        (manager.System, "restart"),
        (process.Process, "ended_within"),
        (atomic.Files, "finish"),
    )
    for when in ("before", "after")
]


def declared(number):
    return Change(
        UNIT,
        environment={"N": str(number)},
        secret_environment={"S": "secret-%d" % number},
        settings={"Service": {"LimitNOFILE": [str(4000 + number)]}},
        settle=0.1,
    )


def die_at(owner, name, when):
    real = getattr(owner, name)

    def dies(*arguments):
        if when == "after":
            real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dies)


def seen():
    """What the running process has, read without the engine."""
    pid = subprocess.check_output(["systemctl", "show", "-p", "MainPID", "--value", UNIT]).decode().strip()
    have = dict(i.split(b"=", 1) for i in Path("/proc", pid, "environ").read_bytes().split(b"\0") if b"=" in i)
    limits = Path("/proc", pid, "limits").read_text().split("\n")
    files = next(line.split()[3] for line in limits if line.startswith("Max open files"))
    return [have.get(b"N", b"").decode(), have.get(b"S", b"").decode(), files]


Path("/etc/systemd/system", UNIT).write_text("[Service]\nType=exec\nExecStart=/bin/sleep infinity\n")
subprocess.run(["systemctl", "daemon-reload"], check=True)
converge(Change(UNIT, started=True, settle=0.1))

rows = []
for number, (owner, name, when) in enumerate(POINTS, 1):
    child = os.fork()
    if not child:
        die_at(owner, name, when)
        converge(declared(number))
        os._exit(3)
    _pid, status = os.waitpid(child, 0)
    outcome = converge(declared(number))
    again = converge(declared(number))
    rows.append(
        {
            "at": "%s %s" % (when, name),
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
            "changed": outcome.changed,
            "again": again.changed,
            "seen": seen() == [str(number), "secret-%d" % number, str(4000 + number)],
            "files": sorted(os.listdir(DROP_INS)) + sorted(os.listdir("/etc/gpufleet")),
            "lock": sorted(path.name for path in Path("/run/gpufleet").glob("*")),
        }
    )

converge(Change(UNIT, state="absent", settle=0.1))
subprocess.run(["systemctl", "stop", UNIT], check=True)
Path("/etc/systemd/system", UNIT).unlink()
left = [str(path) for path in (DROP_INS, Path("/etc/gpufleet")) if path.exists()]
print(json.dumps({"rows": rows, "left": left}))
