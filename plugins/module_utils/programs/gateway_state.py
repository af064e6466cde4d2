# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the state of a gateway's servers from one process of HAProxy to the next.

``save SOCKET FILE`` saves it, before a reload and a stop. ``start FILE`` prepares it for a new process that replaces no
running one: by then, a drain that an agent asked for may be over, and an agent says ``ready`` only a few times after a
drain. At a reload such a drain stays, so that no request reaches a drained server before the new process has asked.

The Ansible collection gpufleet.inference writes this file, and replaces it on its next run.
"""

from __future__ import annotations

import os
import socket
import sys
import time

LIMIT = 5.0  # seconds that a whole answer may take
LARGEST = 64 << 20  # bytes of an answer
DRAIN = 0x08  # bit of srv_admin_state
ENABLED = 0x04  # bit of srv_agent_state
HEAD = "1\n# "  # the version of the format, and the names of its columns


def ask(command, path):
    """HAProxy's whole answer to one command.

    :raises OSError: there is none within LIMIT.
    """
    received, until = bytearray(), time.monotonic() + LIMIT
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LIMIT)
        connection.connect(path)
        connection.sendall(command.encode() + b"\n")
        connection.shutdown(socket.SHUT_WR)  # without it, the master's socket stays open
        while len(received) < LARGEST:
            left = until - time.monotonic()
            if left <= 0:
                raise socket.timeout("its answer does not end within %.0f s" % LIMIT)
            connection.settimeout(left)
            piece = connection.recv(1 << 16)
            if not piece:
                return received.decode("utf-8", "surrogateescape").strip("\n")
            received += piece
    raise OSError("its answer is longer than %d bytes" % LARGEST)


def save(path, file):
    """Save the state of all servers; what is not a state replaces nothing.

    :raises OSError: there is no usable answer, or it cannot be written.
    """
    state = ask("show servers state", path)
    if not state.startswith(HEAD):
        raise OSError("HAProxy answers 'show servers state' with %r, expected version 1" % state[:80])
    write(file, state + "\n")


def write(file, text):
    """Replace a file as a whole, even through a power cut."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(file + ".new", flags, 0o600), "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(file + ".new", file)
    folder = os.open(os.path.dirname(file), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def without_drains_of_agents(text):
    """The state without drains of servers whose agent is asked: ``gateway_server`` disables the agent. Pure."""
    lines, names = text.split("\n"), []
    for number, line in enumerate(lines):
        words = line.split(" ")
        if line.startswith("# "):
            names = words[1:]
        elif names and len(words) == len(names) and int(words[names.index("srv_agent_state")]) & ENABLED:
            admin = names.index("srv_admin_state")
            words[admin] = str(int(words[admin]) & ~DRAIN)
            lines[number] = " ".join(words)
    return "\n".join(lines)


def start(file):
    """Prepare the file for a process that replaces no running one."""
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as stream:
            text = stream.read()
    except FileNotFoundError:
        return
    kept = without_drains_of_agents(text)
    if kept != text:
        write(file, kept)


if __name__ == "__main__":
    if sys.argv[1] == "save":
        save(*sys.argv[2:])
    else:
        start(sys.argv[2])
