# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host's kernel knows of processes: /proc, and the control groups in which systemd keeps them."""

from __future__ import annotations

import os
import select
import stat
import time
from contextlib import suppress
from typing import Dict, List, Mapping, Optional, Set, Tuple

from ..toolbox.errors import Failed
from ..toolbox.text import printable

LARGEST_FILE = 64 << 20
"""Bytes of a file that is read; a larger one counts as one that cannot be read."""


class ManagerError(Failed):
    """systemd or the kernel did not do what it was asked for; the message says what, and what the answer was."""


class Process:
    """One process; its start time distinguishes it from a later one with the same PID."""

    def __init__(self, pid: int, proc: str = "/proc") -> None:
        self.pid = pid
        self._stat = "%s/%d/stat" % (proc, pid)
        self._born = self._start_time()

    def _start_time(self) -> Optional[str]:
        try:
            with open(self._stat, encoding="utf-8", errors="replace") as stream:
                fields = stream.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]  # proc(5): state, starttime

    def alive(self) -> bool:
        return self._born is not None and self._start_time() == self._born

    def ended_within(self, limit: float) -> bool:
        """Wait until the process ends, ``limit`` seconds at most; whether it did."""
        until = time.monotonic() + limit
        try:
            descriptor = os.pidfd_open(self.pid)  # Python 3.9, Linux 5.3
        except (AttributeError, OSError):
            while self.alive() and time.monotonic() < until:
                # without a descriptor of the process there is nothing to wait on
                time.sleep(0.02)
            return not self.alive()
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if self.alive():  # the descriptor is of our process, not of a later one
                poll.poll(max(0, limit) * 1000)
        finally:
            os.close(descriptor)
        return not self.alive()


class Processes:
    """The processes of this host. ``root`` is put before the paths of files (for tests)."""

    def __init__(self, root: str = "") -> None:
        self.root = root

    def names(self, directory: str) -> List[str]:
        """What lies in a directory, nothing when there is none."""
        try:
            return os.listdir(self.root + directory)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, path: str, largest: int = LARGEST_FILE) -> Optional[bytes]:
        """The content of a file; None when it cannot be read, is not a regular file, or has over ``largest`` bytes.

        It may lie in a user's folder: a named pipe there is not waited for, a device not opened.
        """
        try:
            if not stat.S_ISREG(os.stat(self.root + path).st_mode):
                return None
            descriptor = os.open(self.root + path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            with open(descriptor, "rb") as stream:
                regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
                content = stream.read(largest + 1) if regular else b""
        except OSError:
            return None
        return content if regular and len(content) <= largest else None

    def environ(self, pid: int) -> Optional[Dict[str, str]]:
        """The environment with which a process was executed; None when it is gone, or not executed yet.

        Empty where it is unknown: the program has written its title over it, as nginx does.
        """
        try:
            with open("%s/proc/%d/comm" % (self.root, pid), encoding="utf-8", errors="replace") as stream:
                name = stream.read().strip()
            # systemd's child still has its father's name after the fork, or since 255 executes systemd-executor with
            # the environment of systemd itself; then it is called "(NAME)" until it executes the unit's program
            executor = os.path.basename(self.program(pid) or "").startswith("systemd-executor")
            between_fork_and_exec = name.startswith("(") or (name == "systemd" and pid != 1) or executor
            before = self._environment_end(pid)
            with open("%s/proc/%d/environ" % (self.root, pid), "rb") as stream:
                content = stream.read().decode("utf-8", "surrogateescape")
            # in the middle of an exec the kernel shows an environment without an end as an empty one
            if not content and (not before or before != self._environment_end(pid)):
                return None
        except (FileNotFoundError, ProcessLookupError):
            return None
        except PermissionError as error:
            raise ManagerError("%s: only root may read it; run this with become: true" % error) from error
        items = content.split("\0")
        found = dict(item.split("=", 1) for item in items if "=" in item and "=" in items[0])
        return None if between_fork_and_exec and "INVOCATION_ID" not in found else found

    def program(self, pid: int) -> Optional[str]:
        """The file that a process executes, with `` (deleted)`` behind one that is gone; None when the process is."""
        try:
            return os.readlink("%s/proc/%d/exe" % (self.root, pid))
        except OSError:
            return None

    def _environment_end(self, pid: int) -> int:
        """Address where a process's environment ends; 0 while it is not laid out (proc(5): stat, field 51)."""
        with open("%s/proc/%d/stat" % (self.root, pid), encoding="utf-8", errors="replace") as stream:
            return int(stream.read().rpartition(")")[2].split()[48])

    def credential(self, pid: int, environ: Mapping[str, str], name: str) -> Optional[bytes]:
        """A credential as a process of the unit sees it; None when it does not."""
        directory = environ.get("CREDENTIALS_DIRECTORY")
        return self.read("/proc/%d/root%s/%s" % (pid, directory, name)) if directory else None

    def inherited(self) -> Dict[str, str]:
        """The environment of systemd itself, from which ``PassEnvironment=`` takes."""
        return self.environ(1) or {}

    def process(self, pid: int) -> Process:
        return Process(pid, self.root + "/proc")

    def pids(self, control_group: str) -> List[int]:
        """The processes of a control group and of those below it."""
        found = []
        for base in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
            for directory, _below, files in os.walk(self.root + base + control_group) if control_group else ():
                if "cgroup.procs" in files:
                    path = os.path.join(directory, "cgroup.procs")
                    found += [int(pid) for pid in (self.read(path[len(self.root) :]) or b"").split()]
            if found:
                break
        return sorted(found)

    def listener(self, port: int) -> Optional[Tuple[int, str]]:
        """PID and name of a process that listens on a TCP port; None when nobody does.

        PID 0 stands for one that cannot be found: the kernel, or a process of another namespace.
        """
        sockets = set()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in (self.read(table) or b"").decode("ascii", "replace").split("\n")[1:]:
                fields = line.split()  # proc(5): 0A is LISTEN
                if len(fields) > 9 and fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add("socket:[%s]" % fields[9])
        for pid in sorted(int(name) for name in self.names("/proc") if name.isdigit()) if sockets else ():
            if sockets & self._opened(pid):
                name = (self.read("/proc/%d/comm" % pid) or b"").decode("utf-8", "replace")
                return pid, printable(name).strip()
        return (0, "unknown") if sockets else None

    def peers(self, pid: int, port: int) -> List[str]:
        """Addresses of those connected to a TCP port, once per connection, in the network namespace of a process."""
        found = []
        for table in ("/proc/%d/net/tcp", "/proc/%d/net/tcp6"):
            for line in (self.read(table % pid, 64 << 20) or b"").decode("ascii", "replace").split("\n")[1:]:
                fields = line.split()  # 01 is ESTABLISHED
                if len(fields) > 9 and fields[3] == "01" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.append(address_of(fields[2].rpartition(":")[0]))
        return found

    def _opened(self, pid: int) -> Set[str]:
        """What a process has open, as /proc/PID/fd names it; what is gone meanwhile is left out."""
        folder, found = "%s/proc/%d/fd" % (self.root, pid), set()
        try:
            for name in os.listdir(folder):
                with suppress(FileNotFoundError):
                    found.add(os.readlink("%s/%s" % (folder, name)))
        except OSError:
            pass
        return found


def address_of(text: str) -> str:
    """An address as /proc/net/tcp has it, words of 32 bits in the order of this host's bytes, as people write it."""
    # whoever asks for peers is about to stop a service; others do not need it
    import ipaddress
    import sys

    from ..toolbox.addresses import plain

    words = [bytes.fromhex(text[place : place + 8]) for place in range(0, len(text), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return plain(str(ipaddress.ip_address(packed)))
