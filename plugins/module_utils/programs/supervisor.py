# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PLACE RANK HOSTS ADDRESSES KEY COMMAND...: starts COMMAND together with the other hosts of a model.

When it ends, or another host does, all end. SIGTERM, which is not a failure, is passed on to it. PLACE is ADDRESS:PORT,
where node 0 listens; HOSTS and ADDRESSES are in the order of the ranks. A connection from another address or with
another KEY is rejected, and delays nobody.

SIGUSR1 marks this host as proven. The others learn at once that node 0 is, and all learn when every host is. systemd
has each state as the unit's status: ``state=WORD TEXT``, where WORD is one of STATES and TEXT is for people.

Why it exists, as seen with vLLM 0.32.0 and its mp backend: a server notices only at the next request, which then fails,
that a process on another host has died. The processes of the other hosts never notice the server's end, and hold their
memory indefinitely; a restarted server waits for them in vain.

The Ansible collection gpufleet.inference writes this file for an instance, and replaces it on its next run.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time

#: The states, in the order in which they come; ``lost`` may come at any time.
STATES = WAITING, STARTED, SERVING, PROVEN, LOST = "waiting", "started", "serving", "proven", "lost"

GREETING = 5  # seconds within which a connection must say who it is
LONGEST = 200  # bytes of a greeting
MOST = 32  # connections that have not said who they are
RETRY = 0.5  # seconds between two attempts to join


class Node:
    """This host: what the command line says, and how it reports."""

    def __init__(self, arguments):
        self.place, rank, hosts, addresses, self.key = arguments[:5]
        self.rank, self.hosts, self.addresses = int(rank), hosts.split(","), addresses.split(",")
        self.address, _colon, port = self.place.rpartition(":")
        self.port = int(port)
        self.words = arguments[5:]
        self.environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}

    def name(self, rank):
        return "%s (node %d)" % (self.hosts[rank], rank)

    def names(self, ranks):
        return ", ".join(map(self.name, ranks))

    def say(self, state, text):
        """To the journal, and to systemd as the status of the unit."""
        sys.stdout.write("gpufleet: %s\n" % text)
        sys.stdout.flush()
        path = os.environ.get("NOTIFY_SOCKET", "")
        if path:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.connect("\0" + path[1:] if path.startswith("@") else path)
                notify.send(("STATUS=state=%s %s" % (state, text)).encode())


def watch(connection):
    """Have the kernel notice within half a minute that the other host has vanished."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def canonical(address):
    """An address as the kernel writes it, without its zone."""
    return str(socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0]).partition("%")[0]


def answer(connection, text):
    """Send a few bytes to a peer that may not read them."""
    try:
        connection.send(text)
    except OSError:
        pass


class Newcomer:
    """A connection that has not said who it is."""

    def __init__(self, address):
        self.until = time.monotonic() + GREETING
        self.address = address
        self.text = b""


class Gathering:
    """Node 0 waits until all others have joined: ``.run()`` gives their connections by rank."""

    def __init__(self, node):
        self.node = node
        self.known = [canonical(address) for address in node.addresses]
        self.joined = {}
        self.newcomers = {}
        self.chooser = selectors.DefaultSelector()

    def run(self):
        node = self.node
        family = socket.AF_INET6 if ":" in node.address else socket.AF_INET
        with self.chooser, socket.create_server((node.address, node.port), family=family) as listener:
            listener.setblocking(False)
            self.chooser.register(listener, selectors.EVENT_READ)
            reported = None
            while len(self.joined) < len(node.hosts) - 1:
                missing = [rank for rank in range(1, len(node.hosts)) if rank not in self.joined]
                if missing != reported:
                    reported = missing
                    node.say(WAITING, "waiting for %s" % node.names(missing))
                self.once(listener)
            for connection in self.newcomers:
                connection.close()
        for connection in self.joined.values():
            connection.setblocking(True)
        return self.joined

    def once(self, listener):
        """Handle what has happened, or wait for it."""
        until = min((newcomer.until for newcomer in self.newcomers.values()), default=None)
        for key, _events in self.chooser.select(None if until is None else max(0, until - time.monotonic())):
            connection = key.fileobj
            if connection is listener:
                self.accept(listener)
            elif connection in self.newcomers:
                self.read(connection)
            else:  # it has nothing to say yet, so it has ended
                rank = next(rank for rank, other in self.joined.items() if other is connection)
                self.drop(self.joined.pop(rank))
        for connection in [one for one, newcomer in self.newcomers.items() if newcomer.until <= time.monotonic()]:
            del self.newcomers[connection]
            self.drop(connection)

    def accept(self, listener):
        try:
            connection, peer = listener.accept()
        except OSError:  # it has gone already
            return
        connection.setblocking(False)
        address = peer[0].partition("%")[0]
        if address in self.known and len(self.newcomers) < MOST:
            self.newcomers[connection] = Newcomer(address)
            self.chooser.register(connection, selectors.EVENT_READ)
        else:
            answer(connection, b"stranger\n")
            connection.close()

    def read(self, connection):
        newcomer = self.newcomers[connection]
        try:
            more = connection.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        newcomer.text += more
        if more and b"\n" not in newcomer.text and len(newcomer.text) < LONGEST:
            return
        del self.newcomers[connection]
        rank = self.rank_of(newcomer.text)
        if not rank:
            self.drop(connection, b"no\n" if newcomer.text else b"")
        elif newcomer.address != self.known[rank]:
            self.drop(connection, b"stranger\n")
        else:
            watch(connection)
            self.joined[rank] = connection

    def rank_of(self, text):
        """Which of the missing nodes this greeting names; 0 for none."""
        words = text.decode("ascii", "replace").split() if text.endswith(b"\n") else []
        known = len(words) == 2 and words[0] == self.node.key and words[1] in map(str, range(1, len(self.node.hosts)))
        return int(words[1]) if known and int(words[1]) not in self.joined else 0

    def drop(self, connection, text=b""):
        self.chooser.unregister(connection)
        answer(connection, text)
        connection.close()


def join(node):
    """Any other node waits for node 0: its connection, by rank."""
    reported = ""
    while True:
        try:
            # from the address by which node 0 knows this host
            connection = socket.create_connection((node.address, node.port), GREETING, (node.addresses[node.rank], 0))
            watch(connection)
            connection.sendall(("%s %d\n" % (node.key, node.rank)).encode())
            connection.settimeout(None)
            reply = line(connection)
            if reply == ["go"]:
                return {0: connection}
            connection.close()
            why = "which has another definition of this model, or this node already" if reply else "which ended"
            if reply == ["stranger"]:
                why = "which expects this host at another address, or has too many connections"
        except OSError as error:
            why = str(error)
        if why != reported:
            reported = why
            node.say(WAITING, "waiting for %s at %s, %s" % (node.name(0), node.place, why))
        # nothing reports when node 0 listens
        time.sleep(RETRY)


def line(connection):
    """The words of one line."""
    text = b""
    while not text.endswith(b"\n") and len(text) < LONGEST:
        more = connection.recv(1)
        if not more:
            break
        text += more
    return text.decode("ascii", "replace").split()


class Run:
    """The command, between the other hosts and systemd: ``.run()`` gives the exit status."""

    def __init__(self, node, peers):
        self.node, self.peers = node, peers
        self.together = "%d hosts: %s" % (len(node.hosts), ", ".join(node.hosts))
        self.proven = set()
        self.stopped = False

    def run(self):
        if not self.node.rank:
            self.tell(b"go\n")
        with selectors.DefaultSelector() as chooser:
            chooser.register(signals(), selectors.EVENT_READ)
            for rank, connection in self.peers.items():
                chooser.register(connection, selectors.EVENT_READ, rank)
            self.command = subprocess.Popen(self.node.words, env=self.node.environment, start_new_session=True)
            self.node.say(STARTED, self.together)
            return self.wait(chooser)

    def wait(self, chooser):
        """The status of the command, or 1 when another host ended first."""
        while self.command.poll() is None:
            for key, _events in chooser.select():
                try:
                    said = key.fileobj.recv(4096)
                except OSError:
                    said = b""
                try:
                    self.heard(key.data, said)
                except OSError:
                    lost = self.node.name(key.data or 0)
                    self.node.say(LOST, "%s is gone: all hosts of this model end, and start together" % lost)
                    os.killpg(self.command.pid, signal.SIGKILL)
                    return 1
        status = self.command.returncode
        return 0 if self.stopped else status if status >= 0 else 128 - status

    def heard(self, rank, said):
        """Handle signals, when ``rank`` is None, or the word of another host.

        :raises OSError: that host has ended.
        """
        if rank is None:
            self.signalled(said)
        elif not said:
            raise BrokenPipeError
        elif self.node.rank:
            proven = said.split()[-1:] == [b"proven"]
            leader = "%s serves" % self.node.hosts[0]
            self.node.say(PROVEN if proven else SERVING, "%s, %s" % (self.together, "all proven" if proven else leader))
        elif b"proven" in said:
            self.proven.add(rank)
        if not self.node.rank and len(self.proven) == len(self.node.hosts):
            self.proven.clear()
            self.tell(b"proven\n")
            self.node.say(PROVEN, self.together + ", all proven")

    def signalled(self, numbers):
        if signal.SIGTERM in numbers:
            self.stopped = True
            self.command.terminate()
        if signal.SIGUSR1 in numbers:
            self.proven.add(self.node.rank)
            self.tell(b"proven\n" if self.node.rank else b"serves\n")

    def tell(self, text):
        for connection in self.peers.values():
            connection.sendall(text)


def signals():
    """A socket from which the numbers of the signals can be read."""
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.detach())
    for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return woken


def main(arguments):
    node = Node(arguments)
    return Run(node, join(node) if node.rank else Gathering(node).run()).run()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
