# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds the hosts of one model together. Pure: the text of the program that starts vLLM on each of them.

Seen with 0.32.0 and its mp backend: a server does not notice that a process on another host has died before the next
request, which then fails; the processes of the others do not notice at all that the server has ended, and hold their
memory for ever; and a server that is started anew waits for them in vain. So whatever ends, all must end, and start
together. The same connections carry the word that each host is proven, upon which all keep a change or none does.

With Ray the cluster's head is started first, since a node that joins one that is not there yet gives up. An idle server
then does notice the end of a process, and ends within half a minute; the nodes of the cluster go on without it.
"""

from __future__ import annotations

TEXT = '''\
# Written by the Ansible collection gpufleet.inference, which replaces this file on its next run.
"""PLACE RANK HOSTS KEY [FIRST... --] COMMAND...: starts the command together with the other hosts.

When it or another host ends, all end; a stop, which is no failure, is told to it. FIRST runs when all are there and
ends before any command starts. PLACE is ADDRESS:PORT at which host 0 listens, HOSTS their names by rank; hosts with
another KEY are sent away.
SIGUSR1 says that this host is proven. The word of host 0 reaches the others at once, and when all have said it, that.
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time

PLACE, RANK, HOSTS, KEY = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), sys.argv[4]
ADDRESS, PORT = PLACE.rpartition(":")[0], int(PLACE.rpartition(":")[2])
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
GREETING = 5  # seconds within which one that has connected says who it is


def say(text):
    """To the journal, and to be seen in systemctl status."""
    print("gpufleet: " + text, flush=True)
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect("\\0" + place[1:] if place.startswith("@") else place)
            notify.send(("STATUS=" + text).encode())


def name(rank):
    return "%s (node %d)" % (HOSTS[rank], rank)


def watch(connection):
    """A host that is gone without a word is noticed within half a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def line(connection):
    text = b""
    while not text.endswith(b"\\n") and len(text) < 200:
        more = connection.recv(1)
        if not more:
            break
        text += more
    return text.decode("ascii", "replace").split()


def gather():
    """Host 0 waits until all others are there."""
    here = {}
    family = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
    with socket.create_server((ADDRESS, PORT), family=family) as listener, selectors.DefaultSelector() as chooser:
        chooser.register(listener, selectors.EVENT_READ)
        while len(here) < len(HOSTS) - 1:
            say("waits for %s" % ", ".join(name(rank) for rank in range(1, len(HOSTS)) if rank not in here))
            for key, _events in chooser.select():
                if key.data is not None:  # it has nothing to say yet, so it is gone
                    chooser.unregister(key.fileobj)
                    here.pop(key.data).close()
                    continue
                connection, _peer = listener.accept()
                try:
                    connection.settimeout(GREETING)
                    said = line(connection)
                    known = said[:1] == [KEY] and said[1:] in [[str(rank)] for rank in range(1, len(HOSTS))]
                    if not known or int(said[1]) in here:
                        connection.sendall(b"no\\n")
                        connection.close()
                        continue
                    connection.settimeout(None)
                except OSError:
                    connection.close()
                    continue
                watch(connection)
                here[int(said[1])] = connection
                chooser.register(connection, selectors.EVENT_READ, int(said[1]))
    return here


def join():
    """The others wait for host 0."""
    why = ""
    while True:
        try:
            connection = socket.create_connection((ADDRESS, PORT), GREETING)
            watch(connection)
            connection.sendall(("%s %d\\n" % (KEY, RANK)).encode())
            connection.settimeout(None)
            said = line(connection)
            if said == ["go"]:
                return {0: connection}
            connection.close()
            now = "which has another definition of this model, or this node already" if said else "which ended"
        except OSError as error:
            now = str(error)
        if now != why:
            why = now
            say("waits for %s at %s, %s" % (name(0), PLACE, why))
        # nothing tells when host 0 listens
        time.sleep(0.5)


def prepare():
    """The words of the command, when what has to end before has done so well."""
    words = sys.argv[5:]
    split = words.index("--") if "--" in words else -1
    if split > 0 and subprocess.call(words[:split], env=ENVIRONMENT):
        sys.exit(1)
    return words[split + 1 :]


def run(peers):
    """The exit status: that of the command, or 1 when another host ended."""
    words = prepare()
    for connection in [] if RANK else peers.values():
        connection.sendall(b"go\\n")
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    command = subprocess.Popen(words, env=ENVIRONMENT, start_new_session=True)
    together = "%d hosts: %s" % (len(HOSTS), ", ".join(HOSTS))
    say(together)
    chooser, proven, stopped = selectors.DefaultSelector(), set(), False
    chooser.register(woken, selectors.EVENT_READ)
    for rank, connection in peers.items():
        chooser.register(connection, selectors.EVENT_READ, rank)
    while True:
        if command.poll() is not None:
            return 0 if stopped else command.returncode if command.returncode >= 0 else 128 - command.returncode
        for key, _events in chooser.select():
            try:
                said = key.fileobj.recv(4096)
            except OSError:
                said = b""
            try:
                if key.data is None:
                    if signal.SIGTERM in said:
                        stopped = True
                        command.terminate()
                    if signal.SIGUSR1 in said:
                        proven.add(RANK)
                        for connection in peers.values():
                            connection.sendall(b"proven\\n" if RANK else b"serves\\n")
                elif not said:
                    raise BrokenPipeError
                elif RANK:
                    say("%s, %s" % (together, "all proven" if said == b"proven\\n" else "%s serves" % HOSTS[0]))
                else:
                    proven.add(key.data)
                if not RANK and len(proven) == len(HOSTS):
                    proven.clear()
                    for connection in peers.values():
                        connection.sendall(b"proven\\n")
                    say(together + ", all proven")
            except OSError:
                say("%s is gone: all hosts of this model end, and start together" % name(key.data or 0))
                os.killpg(command.pid, signal.SIGKILL)
                return 1


if __name__ == "__main__":
    sys.exit(run(join() if RANK else gather()))
'''
