# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strangers at the listener, in the place of a peer's listener, and in files that facts are read from."""

from __future__ import annotations

import os
import resource
import socket
import struct
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import peer_listener
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import network

LIMIT = 120
"""Seconds that a busy machine may take for one exchange."""


@pytest.fixture
def listener(free_port):
    """The port of a listener that answers with "token" for longer than a test takes."""
    port = free_port()
    thread = threading.Thread(target=peer_listener.main, args=("token", LIMIT, [port]), daemon=True)
    thread.start()
    until(lambda: network.probe_port("127.0.0.1", port, None, 1.0)["ok"])
    return port


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=LIMIT)


def answered(port):
    return network.probe_port("127.0.0.1", port, "token", 10.0)["ok"]


def test_strangers_who_hold_their_connection(listener):
    held = [connected(listener) for _one in range(300)]
    assert answered(listener)
    assert held[-1].recv(100).startswith(b"token ") and held[-1].recv(100) == b""
    for one in held:
        one.close()


def test_strangers_who_send_gigabytes(listener):
    with connected(listener) as one:
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 1 << 30:
                sent += one.send(b"x" * (1 << 20))
        assert sent < 1 << 28
    assert answered(listener)


def test_strangers_who_are_gone_before_they_are_served(listener):
    for _one in range(200):
        one = connected(listener)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        one.close()
    assert answered(listener)


def test_no_connection_is_kept(listener):
    before = len(os.listdir("/proc/self/fd"))
    assert all(answered(listener) for _one in range(200))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


@contextmanager
def stranger(behave):
    """Somebody who listens in the place of a peer, and does so with each connection; gives the port."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(5)
        server.settimeout(LIMIT)
        stop = threading.Event()

        def serve():
            connection, _peer = server.accept()
            connection.settimeout(LIMIT)
            with connection:
                try:
                    behave(connection, stop)
                except OSError:
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        stop.set()
        thread.join(LIMIT)


def _drip(connection, stop):
    while not stop.wait(0.01):
        connection.send(b"x")


def _pour(connection, stop):
    while not stop.is_set():
        connection.send(b"x" * (1 << 20))


@pytest.mark.parametrize(
    "behave, why",
    [
        (_pour, "another program answers there"),
        (lambda connection, stop: connection.send(b"token nan\n"), "another program answers there"),
        (lambda connection, stop: connection.send(b"token " + b"9" * 190), "another program answers there"),
        (lambda connection, stop: connection.send(b"token 1 2\n"), "another program answers there"),
        (lambda connection, stop: connection.send(b"\xff\x00\n"), "another program answers there"),
        (lambda connection, stop: None, "another program answers there"),
        (lambda connection, stop: stop.wait(20), "no answer within 0.5 s"),
    ],
)
def test_a_stranger_in_the_place_of_a_peer(behave, why):
    with stranger(behave) as port:
        assert network.probe_port("127.0.0.1", port, "token", 0.5) == {"ok": False, "why": why}


def test_one_who_drips_costs_no_more_than_the_limit():
    with stranger(_drip) as port:
        began = time.monotonic()
        assert network.probe_port("127.0.0.1", port, "token", 0.3) == {"ok": False, "why": "no answer within 0.3 s"}
        assert time.monotonic() - began < 2  # 200 bytes of a drip each take 0.3 s at most: a minute


def test_a_name_that_a_process_gives_itself(monkeypatch):
    monkeypatch.setattr(System, "listener", lambda self, port: (999999, 'a",pid=1,\x1b[2J\n'))
    assert network.holder(1) == 'a",pid=1,, process 999999'


@pytest.fixture
def venv(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    (tmp_path / "lib/python3.11/site-packages/torch").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("how", ["fifo", "link", "folder", "huge"])
def test_a_version_that_is_no_file(venv, how):
    """The environment may be a user's: root follows no link there, and waits for no pipe."""
    path = venv / "lib/python3.11/site-packages/torch/version.py"
    secret = venv / "secret"
    secret.write_text("__version__ = 'root-secret'\n")
    if how == "fifo":
        os.mkfifo(path)
    elif how == "link":
        venv.chmod(0o777)
        path.symlink_to(secret)
    elif how == "folder":
        path.mkdir()
    else:
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("__version__ = '1'\n")
            stream.truncate(1 << 40)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert network.torch(str(venv))[0]["version"] == "1"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # KiB
        return
    found, missing = network.torch(str(venv))
    assert found is None and ("torch/version.py: " in missing if how == "link" else "no package torch" in missing)


@pytest.mark.parametrize(
    "text", ["__version__ = '\x1b[2J'", "__version__ = '%s'" % ("9" * 999), "__version__ = 1", "\0"]
)
def test_odd_versions_are_none(venv, text):
    path = venv / "lib/python3.11/site-packages"
    (path / "torch/version.py").write_text(text)
    for name in ("nvidia_nccl_cu.dist-info", "nvidia_nccl_cu13-\x1b[2J.dist-info"):
        (path / name).mkdir()
    assert network.torch(str(venv)) == (
        {"version": None, "cuda": None, "nccl": None, "conda": False, "compat": ""},
        None,
    )
