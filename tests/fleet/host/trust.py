# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On a lab host: what the engine restores, waits for and cannot see, on units of a real systemd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Change, ServiceError, Verdict
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.run import converge
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd import manager

FOLDER = Path("/etc/systemd/system")
SLEEPS = "/bin/sleep infinity"
# as nginx and setproctitle do: the memory of the environment is taken for the title
TITLE = """
import ctypes, sys, time
environ = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
time.sleep(float(sys.argv[1]))  # the title is set after the proof, or at once: the test says which
places, number = [], 0
while environ[number]:
    places.append((environ[number], len(ctypes.string_at(environ[number]))))
    number += 1
for place, size in places:
    ctypes.memset(place, 0, size)
time.sleep(1e6)  # the service stays up until the test stops it
"""


def sh(command):
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    return done.stdout.strip()


def unit(name, command=SLEEPS, more="", install=""):
    FOLDER.joinpath(name).write_text(
        "[Service]\nType=exec\nExecStart=%s\n%s\n[Install]\nWantedBy=multi-user.target\n%s\n" % (command, more, install)
    )
    sh("systemctl daemon-reload")


def bad(running, changed):
    return Verdict("not_ready", "told to") if changed else Verdict("ok")


def go(name, gate=None, **declared):
    """What the run said of itself: the outcome's interesting fields, or the message of the failure."""
    declared = dict({"settle": 0.2, "timeout": 60}, **declared)
    begun = time.monotonic()
    try:
        outcome, said = converge(Change(name, **declared), gate=gate), ""
    except ServiceError as error:
        outcome, said = error.outcome, error.message
    return {
        "said": said,
        "verdict": outcome.verdict.name,
        "changed": outcome.changed,
        "restarted": outcome.restarted,
        "rolled_back": outcome.rolled_back,
        "reasons": outcome.reasons,
        "drift": outcome.drift,
        "seconds": time.monotonic() - begun,
    }


def environ(name):
    pid = sh("systemctl show -p MainPID --value -- '%s'" % name)
    return Path("/proc/%s/environ" % pid).read_bytes().split(b"\0")


def links():
    return sh("find /etc/systemd/system /run/systemd/system -lname '*fleet-[ab].service' -printf '%p -> %l\\n' | sort")


def enabling():
    """Rollbacks of enable and disable: the links before and after each."""
    unit("fleet-a.service", install="Also=fleet-b.service\nAlias=fleet-alias.service")
    unit("fleet-b.service")
    enable = "systemctl --no-reload enable fleet-a; "
    runtime = "systemctl --no-reload --runtime enable fleet-a; "
    alone = "cd /etc/systemd/system; rm multi-user.target.wants/fleet-b.service; "
    wants = "mkdir -p graphical.target.wants; ln -s ../fleet-a.service graphical.target.wants/"
    cases = {
        "enable, with Also= enabled before": ("systemctl --no-reload enable fleet-b", True),
        "enable, enabled until the next boot": (runtime, True),
        "disable, with a link of add-wants": (enable + alone + wants, False),
        "disable, enabled until the next boot, too": (enable + runtime, False),
    }
    rows = {}
    for title, (prepare, enabled) in cases.items():
        sh(prepare + "; systemctl daemon-reload; systemctl start fleet-a")
        before = links()
        failed = go("fleet-a", gate=bad, environment={"N": title}, started=True, enabled=enabled)
        after = links()
        done = go("fleet-a", enabled=enabled)
        rows[title] = {
            "before": before,
            "after": after,
            "failed": failed,
            "done": done,
            "is": sh("systemctl is-enabled fleet-a"),
            "again": go("fleet-a", enabled=enabled)["changed"],
        }
        sh("cd /etc/systemd/system; rm -rf *.wants/fleet-[ab].service fleet-alias.service fleet-a.service.d")
        sh("rm -f /run/systemd/system/*.wants/fleet-[ab].service /run/systemd/system/fleet-alias.service")
    sh("systemctl stop fleet-a fleet-b")
    return rows


def titles():
    """Three runs each on a program that writes over its environment, some time after its start and at once."""
    Path("/root/engine/title.py").write_text(TITLE)
    rows = {}
    for delay in ("0.3", "0"):
        name = "fleet-title-%s.service" % delay
        unit(name, "/usr/bin/python3 /root/engine/title.py " + delay)
        runs = [go(name, environment={"A": "1"}, started=True, settle=0.5) for _number in range(2)]
        written = not any(b"=" in item for item in environ(name))
        rows[delay] = {"runs": runs, "written": written, "absent": go(name, state="absent")}
        sh("systemctl stop " + name)
    return rows


def names():
    """Secrets and credentials for a unit with backslashes in its name."""
    unit("fleet-n\\x2dm@.service")
    name = "fleet-n\\x2dm@x\\x2dy.service"
    declared = {"environment": {"N": "1"}, "secret_environment": {"T": "token"}, "credentials": {"k": "v"}}
    runs = [go(name, started=True, **declared), go(name, started=True, **declared)]
    found = {"runs": runs, "seen": b"T=token" in environ(name), "absent": go(name, state="absent")}
    sh("systemctl stop -- '%s'" % name)
    return found


def credential():
    """A run that takes a credential away is killed at its restart; the next one fails its proof, then absent."""
    name, folder = "fleet-cred.service", Path("/etc/gpufleet/credentials/fleet-cred.service")
    unit(name)
    both, one = {"a": "A", "b": "B-secret"}, {"a": "A"}
    go(name, environment={"N": "1"}, credentials=both, started=True)
    child = os.fork()
    if not child:
        real = manager.System.restart

        def dies(*arguments):
            real(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        manager.System.restart = dies
        go(name, environment={"N": "2"}, credentials=one, started=True)
        os._exit(3)
    os.waitpid(child, 0)
    failed = go(name, environment={"N": "2"}, credentials=one, started=True, gate=bad)
    active, files = sh("systemctl is-active " + name), sorted(os.listdir(str(folder)))
    good = go(name, environment={"N": "2"}, credentials=one, started=True)
    kept = sorted(os.listdir(str(folder)))
    absent = go(name, state="absent")
    sh("systemctl stop " + name)
    return {
        "failed": failed,
        "active": active,
        "files": files,
        "good": good,
        "kept": kept,
        "absent": absent,
        "left": sh("find /etc/gpufleet"),
    }


def restarts():
    """A process that dies once while a run looks, and one that dies again and again."""
    unit("fleet-dies.service", more="Restart=always\nRestartSec=1")
    declared = {"environment": {"A": "1"}, "started": True, "timeout": 300}
    asked = []

    def gate(running, changed):
        asked.append(changed)
        return Verdict("ok" if running.alive() else "crash_loop")

    dead = "until systemctl show -p SubState %s | grep -q auto-restart; do sleep 0.1; done"
    go("fleet-dies", gate=gate, **declared)
    rows = {}
    for title, more in (
        ("the same", {}),
        ("a change without a restart", {"settings": {"X-Fleet": {"Port": ["1"]}}}),
        ("a change that fails", {"environment": {"A": "2"}}),
    ):
        sh("systemctl kill -s KILL fleet-dies; " + dead % "fleet-dies")
        asked.clear()
        rows[title] = go("fleet-dies", gate=bad if "fails" in title else gate, **dict(declared, **more))
        rows[title].update(asked=list(asked), active=sh("systemctl is-active fleet-dies"))
    sh("systemctl stop fleet-dies")
    for name, life in (("fleet-loop-0.service", "0.1"), ("fleet-loop-1.service", "1")):
        unit(name, "/bin/sh -c 'echo last words; sleep %s; exit 3'" % life, "Restart=always\nRestartSec=1")
        sh("systemctl start " + name)
        sh(dead % name)
        rows[name] = go(name, timeout=300, settle=2, started=True)
        sh("systemctl stop " + name)
    return rows


sh("mount --make-rshared /")
found = {}
for case in (enabling, titles, names, credential, restarts):
    begun = time.monotonic()
    found[case.__name__] = case()
    print("%s: %.1f s" % (case.__name__, time.monotonic() - begun))
sh("systemctl stop 'fleet-*'; cd /etc/systemd/system; rm -rf fleet-* *.wants/fleet-*; systemctl daemon-reload")
print(json.dumps(found))
