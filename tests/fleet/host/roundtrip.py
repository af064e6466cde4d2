# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On a lab host: hands values to a real unit, as environment and as secrets, and compares what its process has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Change, ServiceError
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.run import converge
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd import render
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

UNIT = "fleet-environment.service"
BATCH = 250

values = json.loads(Path(sys.argv[1]).read_text())
Path("/etc/systemd/system", UNIT).write_text("[Service]\nType=exec\nExecStart=/bin/sleep infinity\n")
subprocess.run(["systemctl", "daemon-reload"], check=True)

refused, wrong, carried = [], [], 0
accepted = {}
for number, value in enumerate(values):
    try:
        render.check_environment({"V": value})
        accepted["V%d" % number] = value
    except Refused:
        refused.append(number)

for number in refused[:20]:
    try:
        converge(Change(UNIT, secret_environment={"V": values[number]}))
        wrong.append("V%d" % number)
    except ServiceError as error:
        assert "nothing was changed" in error.message and not Path("/etc/systemd/system", UNIT + ".d").exists()

names = list(accepted)
for start in range(0, len(names), BATCH):
    environment = {name: accepted[name] for name in names[start : start + BATCH]}
    secrets = {"S" + name[1:]: value for name, value in environment.items()}
    converge(Change(UNIT, environment=environment, secret_environment=secrets, started=True, settle=0.05))
    pid = subprocess.run(
        ["systemctl", "show", "-p", "MainPID", "--value", UNIT], stdout=subprocess.PIPE, check=True
    ).stdout
    process = Path("/proc", pid.decode().strip(), "environ").read_bytes().split(b"\0")
    have = dict(item.split(b"=", 1) for item in process if b"=" in item)
    for name, value in [*environment.items(), *secrets.items()]:
        carried += 1
        if have.pop(name.encode(), None) != value.encode():
            wrong.append(name)
    wrong += [name.decode() for name in have if name[:1] in b"VS" and name[1:].isdigit()]

converge(Change(UNIT, state="absent", settle=0.05))
subprocess.run(["systemctl", "stop", UNIT], check=True)
Path("/etc/systemd/system", UNIT).unlink()
left = [str(path) for path in (Path("/etc/gpufleet"), Path("/etc/systemd/system", UNIT + ".d")) if path.exists()]
print(json.dumps({"carried": carried, "refused": refused, "wrong": wrong, "left": left}))
