# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On a lab host: a service and a stranger write into the journal what may mislead a run, which then reads it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System

UNIT = "fleet-poisoned.service"
SEND = """\
import os, socket, sys, time
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def send(*fields):
    log.sendto(b"\\n".join(fields) + b"\\n", "/run/systemd/journal/socket")
def binary(text):
    return b"MESSAGE\\n" + len(text).to_bytes(8, "little") + text
"""
SERVICE = (
    SEND
    + """\
print("\\x1b[2J\\x1b[31mall is well\\x1b[0m\\rfailed", flush=True)
send(b"MESSAGE=one of two", b"MESSAGE=two of two")
send(binary(b"not \\xff text\\nand a line"))
send(b"MESSAGE=" + b"x" * 150000)
send(b"MESSAGE=last own words")
time.sleep(600)  # the service stays up until the test stops it
"""
)
STRANGER = (
    SEND
    + """\
for number in range(100):
    send(b"MESSAGE=forged %d" % number, b"INVOCATION_ID=" + sys.argv[1].encode(), b"UNIT=" + sys.argv[2].encode(),
         b"_SYSTEMD_INVOCATION_ID=" + sys.argv[1].encode(), b"_UID=0", b"_PID=1")
"""
)

Path("/run/fleet-poisoned.py").write_text(SERVICE)
unit = "[Service]\nUser=nobody\nExecStart=/usr/bin/python3 -u /run/fleet-poisoned.py\n"
Path("/run/systemd/system", UNIT).write_text(unit)
try:
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["systemctl", "start", UNIT], check=True)
    system = System()
    invocation = system.show(UNIT)["InvocationID"]
    until = time.monotonic() + 30
    while "last own words" not in system.journal(UNIT, invocation, 20) and time.monotonic() < until:
        system.sync_journal()
    command = ["/usr/bin/python3", "-c", STRANGER, invocation, UNIT]
    subprocess.run(command, check=True, user="daemon", group="daemon", extra_groups=[])
    system.sync_journal()
    seen = subprocess.check_output(["journalctl", "-o", "cat", "--no-pager", "INVOCATION_ID=" + invocation])
    found = {
        "forged": seen.count(b"forged"),
        "journal": system.journal(UNIT, invocation, 20),
        "start": list(system.journal_from_start(invocation)),
    }
finally:
    subprocess.run(["systemctl", "stop", UNIT], check=True)
    os.unlink("/run/systemd/system/" + UNIT)
    os.unlink("/run/fleet-poisoned.py")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
print(json.dumps(found))
