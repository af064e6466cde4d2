# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The self check of a host: a timer, a service, and what the service asks, in a folder that only root can enter."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import Any, Dict, Mapping

from ..toolbox.errors import Refused

FOLDER = "/etc/gpufleet/self-check"
UNITS = "/etc/systemd/system"
SERVICE, TIMER = "gpufleet-self-check.service", "gpufleet-self-check.timer"
ENABLED = "%s/timers.target.wants/%s" % (UNITS, TIMER)
STATE = "/run/gpufleet-self-check"
VERDICT = STATE + "/verdict.json"
"""Written by each check; gone after a restart of the host. Its age shows whether the checks still run."""
METRICS = "gpufleet.prom"
LATEST = 120
"""Seconds after two intervals from which on a verdict is too old: the timer does not run."""
SHORTEST = 10
"""Seconds."""
_STARTS = 120
_SPAN = re.compile(r"([0-9]+) *(s|sec|min|h|d)?")
_SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400, None: 1}

ARGUMENTS = {
    "interval": {"type": "str", "default": ""},
    "textfile_folder": {"type": "path", "default": "/var/lib/prometheus/node-exporter"},
    "roles": {"type": "list", "elements": "str", "default": []},
    "required": {"type": "bool", "default": True},
    "pynvml": {"type": "bool", "default": True},
    "persistence": {"type": "bool", "default": True},
    "id": {"type": "str", "no_log": True},
    "question": {"type": "str", "no_log": True},
}

_SERVICE_TEXT = """\
# Written by the Ansible collection gpufleet.inference.
[Unit]
Description=Checks whether the GPU services of this host are in their declared state

[Service]
Type=oneshot
ExecStart={python} {folder}/self_check.py
TimeoutStartSec={limit}
Nice=10
SyslogIdentifier=gpufleet-self-check
LogLevelMax=notice
RuntimeDirectory=gpufleet-code gpufleet-self-check
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
# whether a service may write into its folders is asked here, so a view without write access would be a wrong one
ReadOnlyPaths=/etc -/boot -/efi -/usr/bin -/usr/sbin -/usr/lib -/usr/lib64 -/usr/local/bin -/usr/local/sbin
# in place of ProtectKernelTunables= and ProtectControlGroups=, which take 15 ms of CPU time for their many mounts
ReadOnlyPaths=/sys /proc/sys -/proc/sysrq-trigger
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_KILL CAP_SETGID CAP_SETUID CAP_SYSLOG
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SYS_PTRACE
ProtectClock=yes
ProtectHostname=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
LockPersonality=yes
SystemCallArchitectures=native
UMask=0077
"""
_TIMER_TEXT = """\
# Written by the Ansible collection gpufleet.inference.
[Unit]
Description=Checks regularly whether the GPU services of this host are in their declared state

[Timer]
OnActiveSec=0
OnUnitActiveSec={interval}
AccuracySec=1s

[Install]
WantedBy=timers.target
"""


def seconds(written: str) -> int:
    """An interval in seconds; 0 for none.

    :raises Refused: it is none.
    """
    if not written:
        return 0
    span = _SPAN.fullmatch(written)
    found = int(span.group(1)) * _SECONDS[span.group(2)] if span else 0
    if found < SHORTEST:
        raise Refused(
            "interval is %r; expected a time such as 5min or 1h, of at least %d s, or nothing for no self check"
            % (written, SHORTEST)
        )
    return found


def question(root: str) -> Dict[str, Any]:
    """What the host asks itself now; empty where there is nothing that can be read."""
    try:
        with open("%s%s/question.json" % (root, FOLDER), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def units(interval: int) -> Dict[str, str]:
    """The unit files by their path."""
    python = os.path.realpath(sys.executable)  # a check and a module may have it by different names
    service = _SERVICE_TEXT.format(python=python, folder=FOLDER, limit=_STARTS)
    return {"%s/%s" % (UNITS, SERVICE): service, "%s/%s" % (UNITS, TIMER): _TIMER_TEXT.format(interval=interval)}


def differs(root: str, files: Mapping[str, str], interval: int, wanted: str) -> str:
    """Why the self check is not as declared; empty where it is."""
    try:
        if any(name.startswith(".") for name in os.listdir(root + FOLDER)):
            return "an earlier run was interrupted"
        for path, text in files.items():
            with open(root + path, encoding="utf-8") as file:
                if file.read() != text:
                    return "%s differs" % path
    except (OSError, ValueError):
        return "it is missing or incomplete"
    if question(root).get("id") != wanted:
        return "its desired state is not that of the inventory"
    if not os.path.islink(root + ENABLED):
        return "%s is not enabled" % TIMER
    try:
        age = abs(time.time() - os.stat(root + VERDICT).st_mtime)
    except OSError:
        return "it has not run since the host was started"
    return "it has not run for %d s" % age if age > 2 * interval + LATEST else ""


def there(root: str) -> bool:
    paths = (FOLDER, STATE, ENABLED, "%s/%s" % (UNITS, SERVICE), "%s/%s" % (UNITS, TIMER))
    return any(os.path.lexists(root + path) for path in paths)
