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
"""PLACE RANK HOSTS ADDRESSES KEY [FIRST... --] COMMAND...: starts the command together with the other hosts.

When it or another host ends, all end; a stop, which is no failure, is told to it. FIRST runs when all are there and
ends before any command starts. PLACE is ADDRESS:PORT at which host 0 listens, HOSTS and ADDRESSES are theirs by rank.
Who comes from another address, or has another KEY, is sent away; nobody holds up the others.
SIGUSR1 says that this host is proven. The word of host 0 reaches the others at once, and when all have said it, that.
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time

PLACE, RANK, HOSTS, ADDRESSES = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), sys.argv[4].split(",")
KEY, WORDS = sys.argv[5], sys.argv[6:]
ADDRESS, PORT = PLACE.rpartition(":")[0], int(PLACE.rpartition(":")[2])
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
GREETING = 5  # seconds within which one that has connected says who it is
LONGEST = 200  # bytes of that
MOST = 32  # connections that have not said it yet


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
    while not text.endswith(b"\\n") and len(text) < LONGEST:
        more = connection.recv(1)
        if not more:
            break
        text += more
    return text.decode("ascii", "replace").split()


def plain(address):
    """An address as the kernel writes it, without its zone."""
    return socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0].partition("%")[0]


def answer(connection, text):
    """Send a few bytes to one who may not read them."""
    try:
        connection.send(text)
    except OSError:
        pass


def gather():
    """Host 0 waits until all others are there."""
    here, coming = {}, {}
    known = [plain(address) for address in ADDRESSES]
    family = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
    with socket.create_server((ADDRESS, PORT), family=family) as listener, selectors.DefaultSelector() as chooser:
        listener.setblocking(False)
        chooser.register(listener, selectors.EVENT_READ)

        def drop(connection, text=b""):
            chooser.unregister(connection)
            answer(connection, text)
            connection.close()

        said = None
        while len(here) < len(HOSTS) - 1:
            if said != set(here):
                said = set(here)
                say("waits for %s" % ", ".join(name(rank) for rank in range(1, len(HOSTS)) if rank not in here))
            until = min((one[0] for one in coming.values()), default=None)
            for key, _events in chooser.select(None if until is None else max(0, until - time.monotonic())):
                connection = key.fileobj
                if connection is listener:
                    try:
                        connection, peer = listener.accept()
                    except OSError:  # it is gone again
                        continue
                    connection.setblocking(False)
                    if peer[0].partition("%")[0] in known and len(coming) < MOST:
                        coming[connection] = [time.monotonic() + GREETING, peer[0].partition("%")[0], b""]
                        chooser.register(connection, selectors.EVENT_READ)
                    else:
                        answer(connection, b"stranger\\n")
                        connection.close()
                    continue
                if connection not in coming:  # it has nothing to say yet, so it is gone
                    rank = next(rank for rank in here if here[rank] is connection)
                    drop(here.pop(rank))
                    continue
                try:
                    more = connection.recv(LONGEST)
                except BlockingIOError:
                    continue
                except OSError:
                    more = b""
                coming[connection][2] += more
                _until, peer, text = coming[connection]
                if more and b"\\n" not in text and len(text) < LONGEST:
                    continue
                del coming[connection]
                words = text.decode("ascii", "replace").split() if text.endswith(b"\\n") else []
                rank = int(words[1]) if len(words) == 2 and words[1] in map(str, range(1, len(HOSTS))) else 0
                if not rank or words[0] != KEY or rank in here:
                    drop(connection, b"no\\n" if text else b"")
                elif peer != known[rank]:
                    drop(connection, b"stranger\\n")
                else:
                    watch(connection)
                    here[rank] = connection
            for connection in [one for one, (until, _peer, _text) in coming.items() if until <= time.monotonic()]:
                del coming[connection]
                drop(connection)
        for connection in coming:
            connection.close()
    for connection in here.values():
        connection.setblocking(True)
    return here


def join():
    """The others wait for host 0."""
    why = ""
    while True:
        try:
            # from the address by which host 0 knows this one
            connection = socket.create_connection((ADDRESS, PORT), GREETING, (ADDRESSES[RANK], 0))
            watch(connection)
            connection.sendall(("%s %d\\n" % (KEY, RANK)).encode())
            connection.settimeout(None)
            said = line(connection)
            if said == ["go"]:
                return {0: connection}
            connection.close()
            now = "which has another definition of this model, or this node already" if said else "which ended"
            if said == ["stranger"]:
                now = "to which this host comes from another address than is declared, or too many come at once"
        except OSError as error:
            now = str(error)
        if now != why:
            why = now
            say("waits for %s at %s, %s" % (name(0), PLACE, why))
        # nothing tells when host 0 listens
        time.sleep(0.5)


def prepare():
    """The words of the command, when what has to end before has done so well."""
    split = WORDS.index("--") if "--" in WORDS else -1
    if split > 0 and subprocess.call(WORDS[:split], env=ENVIRONMENT):
        sys.exit(1)
    return WORDS[split + 1 :]


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
                elif b"proven" in said:
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
