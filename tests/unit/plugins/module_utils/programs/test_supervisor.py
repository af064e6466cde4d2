# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that holds the hosts of a model together, as real processes: they start, are proven and end as one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import supervisor
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.source import source_of

NAMES = ("gpu1", "gpu2", "gpu3")
KEEPALIVE = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)


class Node:
    """One host's program, with what it says; its command says that it runs, and sleeps or ends."""

    def __init__(
        self,
        folder,
        place,
        rank,
        key="abc",
        command="echo started; exec sleep 30",
        more=(),
        addresses=None,
        **environment,
    ):
        self.log = folder / ("log-%d-%d" % (rank, time.monotonic_ns()))
        words = [sys.executable, "-I", str(folder / "supervisor.py"), place, str(rank), ",".join(NAMES)]
        words += [addresses or ",".join([place.rpartition(":")[0]] * 3), key]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*words, "sh", "-c", *(more or [command])],
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def says(self, words):
        until = time.monotonic() + 20
        while words not in self.log.read_text():
            assert time.monotonic() < until, "%r is not in %r" % (words, self.log.read_text())
            time.sleep(0.02)


@pytest.fixture
def node(tmp_path, free_port):
    """`node(rank, …)` starts the program of one of three hosts; all are gone afterwards."""
    (tmp_path / "supervisor.py").write_text(source_of(supervisor))
    port, begun = free_port(), []

    def start(rank, address="127.0.0.1", **more):
        begun.append(Node(tmp_path, "%s:%d" % (address, port), rank, **more))
        return begun[-1]

    start.port = port
    yield start
    for one in begun:
        if one.process.poll() is None:
            subprocess.run(["pkill", "-P", str(one.process.pid)], check=False)
            one.process.kill()  # how it takes SIGTERM has tests of its own
            one.process.wait()


def test_they_start_together_and_are_proven_when_all_are(node):
    two, head = node(2), node(0)
    head.says("waiting for gpu2 (node 1)")
    assert "started" not in head.log.read_text() + two.log.read_text()
    nodes = [head, node(1), two]
    for one in nodes:
        one.says("started")
        one.says("3 hosts: gpu1, gpu2, gpu3")
    for one in nodes:
        os.kill(one.process.pid, signal.SIGCHLD)  # which says nothing of a proof
    for _ in range(3):
        os.kill(head.process.pid, signal.SIGUSR1)
    for one in nodes[1:]:
        one.says("3 hosts: gpu1, gpu2, gpu3, gpu1 serves")
        assert "all proven" not in one.log.read_text()
        os.kill(one.process.pid, signal.SIGUSR1)
    for one in nodes:
        one.says("all proven")


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_ends_all_do(node, rank):
    nodes = [node(number) for number in range(3)]
    for one in nodes:
        one.says("started")
    nodes[rank].process.kill()
    for one in nodes[:rank] + nodes[rank + 1 :]:
        assert one.process.wait(20) == 1
    lost = "gpu%d (node %d) is gone: all hosts of this model end" % (rank + 1, rank)
    nodes[2].says("gpu1 (node 0) is gone")
    if rank:
        nodes[0].says(lost)


def test_the_status_of_the_command_is_that_of_the_program(node):
    nodes = [node(0, command="sleep 0.3; exit 3"), node(1), node(2)]
    assert nodes[0].process.wait(20) == 3
    assert [one.process.wait(20) for one in nodes[1:]] == [1, 1]


def test_a_stop_waits_for_the_command(node):
    slow = "trap 'sleep 0.5; echo bye; exit 1' TERM; echo started; while :; do sleep 0.05; done"
    nodes = [node(0, command=slow), node(1), node(2)]
    nodes[0].says("started")
    nodes[0].process.terminate()  # which systemd does to it alone
    assert nodes[0].process.wait(20) == 0
    assert "bye" in nodes[0].log.read_text()


def test_one_of_another_definition_is_sent_away(node):
    head, other, right = node(0), node(1, key="xyz"), node(1)
    other.says("waiting for gpu1 (node 0) at 127.0.0.1:%d, which has another definition of this model" % node.port)
    node(2).says("started")
    head.says("started")
    right.says("started")
    assert "started" not in other.log.read_text()


def test_a_host_that_goes_while_others_are_waited_for(node):
    head, one = node(0), node(1)
    head.says("waiting for gpu3 (node 2)")
    one.process.kill()
    until = time.monotonic() + 20
    while not head.log.read_text().rstrip().endswith("waiting for gpu2 (node 1), gpu3 (node 2)"):
        assert time.monotonic() < until
        time.sleep(0.02)
    again = [node(1), node(2)]
    for each in (head, *again):
        each.says("started")


@pytest.mark.parametrize("prefix", ["", "@"])
def test_systemd_is_told_who_is_waited_for(node, tmp_path, prefix):
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name if prefix else name)
        systemd.settimeout(20)
        node(0, NOTIFY_SOCKET=prefix + name, command="echo started $NOTIFY_SOCKET; exec sleep 30")
        assert systemd.recv(200) == b"STATUS=state=waiting waiting for gpu2 (node 1), gpu3 (node 2)"
        node(1)
        assert systemd.recv(200) == b"STATUS=state=waiting waiting for gpu3 (node 2)"
        node(2)
        assert systemd.recv(200) == b"STATUS=state=started 3 hosts: gpu1, gpu2, gpu3"


def test_the_command_says_nothing_to_systemd(node, tmp_path):
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        head = node(0, NOTIFY_SOCKET=name, command="echo started; echo socket:$NOTIFY_SOCKET.; exec sleep 30")
        for rank in (1, 2):
            node(rank)
        head.says("socket:.")


def test_a_command_that_a_signal_ends(node):
    nodes = [node(0, command="echo started; kill -9 $$"), node(1), node(2)]
    assert nodes[0].process.wait(20) == 128 + 9


def test_by_ipv6(node):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    nodes = [node(rank, address="::1") for rank in range(3)]
    for one in nodes:
        one.says("started")


@pytest.mark.parametrize(
    "greeting", [b"hello", b"abc 1", b"x" * 300, b"abc 1 1\n", b"abc 3\n", b"abc 0\n", b"abc\n", b"\xff\n", b""]
)
def test_a_stranger_is_sent_away_and_holds_nobody_up(node, tmp_path, greeting):
    program = tmp_path / "supervisor.py"
    program.write_text(program.read_text().replace("GREETING = 5", "GREETING = 0.2"))
    head = node(0)
    head.says("waiting for gpu2 (node 1), gpu3 (node 2)")
    with socket.create_connection(("127.0.0.1", node.port), 20) as stranger:
        stranger.sendall(greeting)
        if greeting.endswith(b"\n") or len(greeting) > 200:
            assert stranger.recv(10) == b"no\n"
        with socket.create_connection(("127.0.0.1", node.port), 20) as another:
            another.sendall(greeting[:3])  # and is gone
        nodes = [head, node(1), node(2)]
        for one in nodes:
            one.says("started")


def test_strangers_that_say_nothing_hold_nobody_up(node):
    """A hundred of them, each of which would have had five seconds, byte by byte."""
    head, strangers = node(0), []
    head.says("waiting for gpu2 (node 1), gpu3 (node 2)")
    begun = time.monotonic()
    for number in range(100):
        one = socket.create_connection(("127.0.0.1", node.port), 20, ("127.0.0.%d" % (2 + number % 9), 0))
        one.sendall(b"a")
        strangers.append(one)
    for one in [node(1), node(2), head]:
        one.says("started")
    for one in strangers:
        assert one.recv(20) in (b"stranger\n", b"")
        one.close()
    assert time.monotonic() - begun < 20
    assert head.log.read_text().count("waiting for") <= 3, "its journal is not theirs"


def test_silent_connections_from_a_host_that_is_known_are_few_and_end(node, tmp_path):
    program = tmp_path / "supervisor.py"
    program.write_text(program.read_text().replace("GREETING = 5", "GREETING = 0.3"))
    head = node(0)
    head.says("waiting for gpu2 (node 1), gpu3 (node 2)")
    silent = [socket.create_connection(("127.0.0.1", node.port), 20) for _number in range(40)]
    assert b"stranger\n" in [one.recv(20) for one in silent], "the last ones at once"
    for one in [node(1), node(2), head]:
        one.says("started")


def test_a_host_is_known_by_its_address(node):
    addresses = "127.0.0.1,127.0.0.2,127.0.0.3"
    head = node(0, addresses=addresses)
    head.says("waiting for gpu2 (node 1), gpu3 (node 2)")
    wrong = node(1, addresses="127.0.0.1,127.0.0.3,127.0.0.3")
    wrong.says("which expects this host at another address")
    other = node(1, addresses="127.0.0.1,127.0.0.4,127.0.0.3")
    other.says("which expects this host at another address")
    for one in [node(1, addresses=addresses), node(2, addresses=addresses), head]:
        one.says("started")


def test_a_rank_that_is_there_is_not_taken_by_another(node):
    head, one = node(0), node(1)
    head.says("waiting for gpu3 (node 2)")
    again = node(1)
    again.says("which has another definition of this model, or this node already")
    node(2)
    one.says("started")
    assert "started" not in again.log.read_text()


def test_who_is_gone_without_a_word_is_noticed(node):
    """The kernel asks for it on both ends of each connection."""
    for one in [node(rank) for rank in range(3)]:
        one.says("started")
    port, timers = "%04X" % node.port, []
    with open("/proc/net/tcp") as file:
        for words in map(str.split, file):
            if words[3] == "01" and port in (words[1][-4:], words[2][-4:]):
                timers.append(words[5].partition(":")[0])
    assert timers == ["02"] * 4, "of the kind keepalive"


def test_after_how_long():
    with socket.socket() as connection:
        supervisor.watch(connection)
        found = [connection.getsockopt(socket.IPPROTO_TCP, option) for option in KEEPALIVE]
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) and found == [10, 5, 3]


def test_who_is_there_may_wait_for_long(node, tmp_path):
    program = tmp_path / "supervisor.py"
    program.write_text(program.read_text().replace("GREETING = 5", "GREETING = 0.2"))
    head, one = node(0), node(1)
    head.says("waiting for gpu3 (node 2)")
    time.sleep(0.6)  # in which nothing is to happen
    assert head.log.read_text().count("gpu2 (node 1)") == 1
    node(2)
    one.says("started")


@pytest.fixture
def here(node, monkeypatch):
    """`here(rank, *words)`: the exit status of the same program in this process, as another one of the three hosts."""
    kinds = (signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM)
    handlers, sockets, create = [signal.getsignal(kind) for kind in kinds], [], supervisor.signals
    # the program ends with its process; here a late SIGCHLD still needs the socket
    monkeypatch.setattr(supervisor, "signals", lambda: sockets.append(create()) or sockets[-1])

    def run(rank, *words):
        place = "127.0.0.1:%d" % node.port
        return supervisor.main([place, str(rank), ",".join(NAMES), "127.0.0.1,127.0.0.1,127.0.0.1", "abc", *words])

    yield run
    signal.set_wakeup_fd(-1)
    for kind, handler in zip(kinds, handlers):
        signal.signal(kind, handler)


def test_node_0_in_this_process(node, here, capsys):
    others = [node(1), node(2)]

    def beside():
        for one in others:
            one.says("gpu1 serves")
            os.kill(one.process.pid, signal.SIGUSR1)
        for one in others:
            one.says("all proven")
        others[1].process.kill()

    helper = threading.Thread(target=beside)
    helper.start()
    status = here(0, "sh", "-c", "kill -USR1 $PPID; exec sleep 20")
    helper.join()
    said = capsys.readouterr().out
    assert status == 1 and "all proven" in said
    assert "gpu3 (node 2) is gone: all hosts of this model end" in said


def test_another_node_in_this_process(node, here, capsys):
    head, other = node(0, command="echo started; kill -USR1 $PPID; exec sleep 20"), node(2)

    def beside():
        other.says("gpu1 serves")
        os.kill(other.process.pid, signal.SIGUSR1)
        head.says("all proven")
        head.process.kill()

    helper = threading.Thread(target=beside)
    helper.start()
    status = here(1, "sh", "-c", "kill -USR1 $PPID; exec sleep 20")
    helper.join()
    said = capsys.readouterr().out
    assert status == 1 and "gpu1 serves" in said and "all proven" in said and "gpu1 (node 0) is gone" in said


def test_the_end_of_the_command_in_this_process(node, here):
    others = [node(1), node(2)]
    assert here(0, "sh", "-c", "kill -TERM $PPID; sleep 20") == 0, "it was stopped"
    assert [one.process.wait(20) for one in others] == [1, 1]
