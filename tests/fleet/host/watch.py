# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On a lab host: looks for some words in every process's command line and in all temporary files, until told to stop.

watch.py WORD STOP RESULT    until the file STOP exists; RESULT then has the number of looks and where WORD was seen
"""

from __future__ import annotations

import json
import os
import sys

FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/etc/systemd", "/root/.ansible", "/home/fleet/.ansible")
LARGEST = 5000000
OWN = ("/run/credentials/", "/run/log/journal/", "/run/watch")


def look(word, seen):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as stream:
                if int(pid) != os.getpid() and word in stream.read():
                    seen.add("the command line of a process")
        except OSError:
            pass
    for folder in FOLDERS:
        for directory, _inner, names in os.walk(folder):
            for path in (os.path.join(directory, name) for name in names):
                try:
                    if os.path.isfile(path) and os.path.getsize(path) < LARGEST and not path.startswith(OWN):
                        with open(path, "rb") as stream:
                            if word in stream.read():
                                seen.add("%s, mode %o" % (path, os.stat(path).st_mode & 0o777))
                except OSError:
                    pass


looks, seen = 0, set()
while not os.path.exists(sys.argv[2]):
    look(sys.argv[1].encode(), seen)
    looks += 1
with open(sys.argv[3], "w") as stream:
    json.dump({"looks": looks, "seen": sorted(seen)}, stream)
