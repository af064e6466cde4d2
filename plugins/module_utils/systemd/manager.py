# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only file that talks to systemd: systemctl, journalctl, systemd-analyze, and what /proc holds about a process."""

from __future__ import annotations

import glob
import json
import os
import pwd
import re
import select
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import (
    dropin_directories,
    order_dropins,
    parse_environment_file,
    template_of,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import printable

# Where systemd looks for units and drop-ins, the highest priority first (systemd.unit(5), table 1).
UNIT_PATH = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)

PROPERTIES = (
    "Id",
    "Names",
    "LoadState",
    "LoadError",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "Transient",
    "Type",
    "RemainAfterExit",
    "FragmentPath",
    "DropInPaths",
    "NeedDaemonReload",
    "Environment",
    "MainPID",
    "InvocationID",
    "NRestarts",
    "Result",
    "StatusText",
    "ExecMainPID",
    "ExecMainCode",
    "ExecMainStatus",
    "ExecMainStartTimestampMonotonic",
    "ControlGroup",
    "TimeoutStopUSec",
)

LARGEST_FILE = 64 << 20
LARGEST_ENVIRONMENT_FILE = 256 << 10
"""Bytes of a file that is read; a larger one counts as one that cannot be read."""
LONGEST_MESSAGE = 1 << 18
"""Bytes of one message of the journal, and characters of a line, that are read."""
LARGEST_JOURNAL = 32 << 20
"""Bytes of a journal that are read at once."""
JOURNAL_LIMIT = 60
"""Seconds for reading it."""
KNOWN_VERSION = 252
"""Taken for systemd's version where that is not to be found out: the one that the rules were tried on."""
SYSTEMD_LINES = 10
"""What systemd itself logs of one invocation, at most: it was started, stopped, has failed."""

ITEM = re.compile(r'"((?:[^"\\]|\\.)*)"|([^ ]+)', re.DOTALL)
ITEM_ESCAPE = re.compile(r"\\([0-7]{3}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "e": "\x1b", "s": " "}
DURATION = re.compile(r"([0-9.]+)(us|ms|s|min|h|d|w|month|y)\b")
SECONDS = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1,
    "min": 60,
    "h": 3600,
    "d": 86400,
    "w": 604800,
    "month": 2629800,
    "y": 31557600,
}


class ManagerError(Failed):
    """systemd did not do what it was asked for; the message says what, and what it answered."""


def split_items(text: str) -> List[str]:
    """The items of a list property as ``systemctl show`` prints it, exactly."""

    def decode(match: "re.Match[str]") -> str:
        code = match.group(1)
        if len(code) == 3:
            return chr(int(code[1:], 16) if code[0] == "x" else int(code, 8))
        return LETTERS.get(code, code)

    return [
        plain or ITEM_ESCAPE.sub(decode, quoted) for quoted, plain in (match.groups() for match in ITEM.finditer(text))
    ]


def seconds(text: str) -> Optional[float]:
    """A time span as ``systemctl show`` prints it, such as ``1min 30s``; None for ``infinity`` or nothing."""
    parts = DURATION.findall(text)
    return sum(float(number) * SECONDS[unit] for number, unit in parts) if parts else None


def restarting(state: Mapping[str, str]) -> bool:
    """Whether a unit has ended and systemd is about to start it again; since 254 it says ``-queued`` as well."""
    return state.get("SubState", "").startswith("auto-restart")


class Process:
    """One process, told from a later one with the same PID by its start time."""

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


class System:
    """systemd of this host. ``root`` is put before the paths of files (for tests)."""

    def __init__(self, root: str = "") -> None:
        self.root = root

    # --- reading -----------------------------------------------------------------------------------------------------

    def show(self, unit: str) -> Dict[str, str]:
        """The unit's PROPERTIES as systemd prints them, by one call."""
        out = self._call(["systemctl", "show", "--no-pager", "-p", ",".join(PROPERTIES), "--", unit])
        state = dict(line.split("=", 1) for line in out.split("\n") if "=" in line)
        return dict(state, StatusText=_shown(state["StatusText"])) if "StatusText" in state else state

    def load(self, names: Sequence[str]) -> List[Tuple[str, bytes]]:
        """(path, content) of the unit file and the drop-ins that apply to a unit, in that order, from the disk.

        ``names`` are the unit's own name and then its aliases.
        """
        found = []
        for candidate in filter(None, (names[0], template_of(names[0]))):
            paths = ["%s/%s" % (directory, candidate) for directory in UNIT_PATH]
            fragment = next((path for path in paths if os.path.lexists(self.root + path)), None)
            if fragment:
                found.append(fragment)
                break
        directories = [
            "%s/%s" % (base, directory)
            for name in names
            for base in UNIT_PATH
            for directory in dropin_directories(name)
        ]
        directories += ["%s/%s.d" % (base, names[0].rpartition(".")[2]) for base in UNIT_PATH]
        found += order_dropins((directory, self.names(directory)) for directory in directories)
        return [(path, self.read(path) or b"") for path in found]

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

    def environment_files(self, pattern: str) -> Iterator[Tuple[str, bytes]]:
        """(path, content) of the readable files that the pattern of an ``EnvironmentFile=`` names."""
        pattern = re.sub(
            r"\\(.)", lambda match: glob.escape(match.group(1)), pattern
        )  # glob(3) unescapes, glob does not
        for path in sorted(glob.glob(self.root + pattern)) if glob.has_magic(pattern) else [self.root + pattern]:
            content = self.read(path[len(self.root) :], LARGEST_ENVIRONMENT_FILE)
            if content is not None:
                yield path[len(self.root) :], content

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
            # in the midst of an exec the kernel shows an environment without an end as an empty one
            if not content and (not before or before != self._environment_end(pid)):
                return None
        except (FileNotFoundError, ProcessLookupError):
            return None
        except PermissionError as error:
            raise ManagerError("%s: only root, with CAP_SYS_PTRACE in a container, may read it" % error) from error
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

        PID 0 stands for one that is not to be found: the kernel, or a process of another namespace.
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
                return pid, _shown(name).strip()
        return (0, "unknown") if sockets else None

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

    def journal(self, unit: str, invocation_id: str, lines: int) -> List[str]:
        """The last lines that the processes of one invocation of a unit logged, oldest first, fit for a terminal.

        The first of these fields is journald's own; the second one is in what systemd logs of the unit, and in what
        its child does that could not execute the program. Any user may send it, so root must have sent it. Of a
        process that was gone before a busy journald read what it said, only the unit is known, or the user: then those
        are its words that came after systemd first spoke of the invocation.
        """
        own, init, named = "_SYSTEMD_INVOCATION_ID", "1", "INVOCATION_ID=" + invocation_id
        found = self._entries(lines + SYSTEMD_LINES, [own + "=" + invocation_id, "+", named, "_UID=0"])
        said = [entry for entry in found if entry.get("_PID") != init]
        if found and not said:
            since = min(_microseconds(entry) for entry in found)
            of_unit = self._entries(lines, ["_SYSTEMD_UNIT=" + unit, *self._of_user(unit, named)])
            said = [entry for entry in of_unit if own not in entry and _microseconds(entry) >= since]
        return [line for entry in said for line in _lines(entry)][-lines:]

    def _of_user(self, unit: str, named: str) -> List[str]:
        """What of the journal also matches: entries with a field that the user of a unit has sent."""
        user = self._call(["systemctl", "show", "-p", "User", "--value", "--", unit]).strip()
        try:
            return ["+", named, "_UID=%d" % (int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid)]
        except KeyError:
            return []

    def _entries(self, count: int, fields: List[str]) -> List[Dict[str, Any]]:
        """The last entries of the journal that have these fields, oldest first; none if it cannot be read."""
        shown = "--output-fields=MESSAGE,_PID,_SYSTEMD_INVOCATION_ID,_SOURCE_REALTIME_TIMESTAMP"
        command = ["journalctl", "--quiet", "--no-pager", "-o", "json", shown, "-n", str(count), *fields]
        out = self._head([*command[:3], "--all", *command[3:]], LARGEST_JOURNAL)
        if len(out) > LARGEST_JOURNAL:  # without --all, a message of more than 4096 bytes is left out
            out = self._head(command, LARGEST_JOURNAL)
        found = []
        for line in out.split(b"\n"):
            with suppress(ValueError):  # the last one may be cut off
                found.append(json.loads(line))
        return [entry for entry in found if isinstance(entry, dict)]

    def journal_from_start(self, invocation_id: str) -> Iterator[str]:
        """What one invocation logged, from its first line on, fit for a terminal; no more is read than is taken."""
        command = ["journalctl", "--quiet", "--no-pager", "-o", "cat", "_SYSTEMD_INVOCATION_ID=" + invocation_id]
        with self._started(command) as process:
            timer = threading.Timer(JOURNAL_LIMIT, process.kill)
            timer.start()
            try:
                read, whole = 0, True
                while process.stdout and read < LARGEST_JOURNAL:  # it may log faster than it is read
                    piece = process.stdout.readline(LONGEST_MESSAGE)
                    if not piece:
                        break
                    if whole:  # else it is the rest of a line that is too long
                        yield _shown(piece.decode("utf-8", "replace").rstrip("\n"))
                    read, whole = read + len(piece), piece.endswith(b"\n")
            finally:
                timer.cancel()
                process.kill()

    def sync_journal(self) -> None:
        """Have journald write out what processes that are gone have said."""
        try:
            self._call(["journalctl", "--sync"], limit=10)
        except ManagerError:
            pass  # then the last line may be missing

    def verify(self, unit: str, drop_in: str, content: bytes) -> List[str]:
        """What systemd would ignore of our drop-in, found in a scratch directory that is gone afterwards."""
        if not shutil.which("systemd-analyze"):
            return []
        with tempfile.TemporaryDirectory(prefix="gpufleet-") as scratch:
            path = "%s/%s.d/%s" % (scratch, unit, drop_in)
            os.mkdir(os.path.dirname(path))
            with open(path, "wb") as stream:
                stream.write(content)
            _status, _out, said = self._run(
                ["systemd-analyze", "verify", "--man=no", "--", unit], environment={"SYSTEMD_UNIT_PATH": scratch + ":"}
            )
        found = [line[len(path) + 1 :] for line in said.split("\n") if line.startswith(path + ":")]
        return list(dict.fromkeys(found))

    def specifiers(self, unit: str, fragment: str = "") -> Mapping[str, str]:
        """What ``%`` and a letter stand for in this unit's files; and, as ``systemd``, systemd's version.

        A letter for which this unit has nothing is missing: systemd drops a word with it.
        """
        stem, _dot, kind = unit.rpartition(".")
        prefix, _at, instance = stem.partition("@")
        machine, root, version = os.uname(), pwd.getpwuid(0), self._version()
        release = self._assignments("/etc/os-release") or self._assignments("/usr/lib/os-release")
        if fragment and os.path.islink(self.root + fragment):  # such as by systemctl link
            fragment = os.path.realpath(self.root + fragment)[len(self.root) :]
        found = {
            "systemd": str(version),
            "n": unit,
            "N": stem,
            "p": prefix,
            "P": _unescape(prefix),
            "q": self._assignments("/etc/machine-info").get("PRETTY_HOSTNAME") or machine.nodename,
            "i": instance,
            "I": _unescape(instance),
            "j": prefix.rpartition("-")[2],
            "J": _unescape(prefix.rpartition("-")[2]),
            "f": _path_unescape(instance or prefix),
            "y": fragment if version >= 251 else None,
            "Y": os.path.dirname(fragment) if version >= 251 else None,
            "d": "/run/credentials/" + unit if version >= 251 else None,
            "D": "/usr/share" if version >= 257 else None,
            "t": "/run",
            "S": "/var/lib",
            "C": "/var/cache",
            "L": "/var/log",
            "E": "/etc",
            "T": "/tmp",
            "V": "/var/tmp",
            "u": root.pw_name,
            "U": "0",
            "g": "root",
            "G": "0",
            "h": root.pw_dir,
            "s": root.pw_shell,
            "H": machine.nodename,
            "l": machine.nodename.partition(".")[0],
            "v": machine.release,
            "a": {"x86_64": "x86-64", "aarch64": "arm64"}.get(machine.machine, machine.machine),
            "m": (self.read("/etc/machine-id") or b"").decode("ascii", "replace").strip(),
            "b": (self.read("/proc/sys/kernel/random/boot_id") or b"").decode("ascii").strip().replace("-", ""),
            "o": release.get("ID", ""),
            "w": release.get("VERSION_ID", ""),
            "B": release.get("BUILD_ID", ""),
            "W": release.get("VARIANT_ID", ""),
            "M": release.get("IMAGE_ID", ""),
            "A": release.get("IMAGE_VERSION", ""),
        }
        return {letter: text for letter, text in found.items() if text is not None}

    def _version(self) -> int:
        """The version of the systemd that runs; told by the library that it has loaded, which costs no process."""
        match = re.search(rb"/libsystemd-shared-(\d+)", self.read("/proc/1/maps") or b"")
        return int(match.group(1)) if match else KNOWN_VERSION

    def _assignments(self, path: str) -> Dict[str, str]:
        """The assignments in a file such as ``/etc/os-release``."""
        try:
            return {name: value for name, (value, _line) in parse_environment_file(self.read(path) or b"").items()}
        except Refused:
            return {}

    # --- changing ----------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        self._call(["systemctl", "daemon-reload"], limit=120)

    def restart(self, unit: str, stop_limit: float, start_limit: float) -> Optional[str]:
        """Restart and wait until systemd is done, or until it is clear that it will not be.

        The limits, in seconds, are for the stop and for the start. Gives None, or what went wrong.
        """
        return self._job("restart", unit, stop_limit, start_limit)

    def start(self, unit: str, start_limit: float) -> Optional[str]:
        return self._job("start", unit, start_limit, start_limit)

    def stop(self, unit: str, stop_limit: float) -> Optional[str]:
        return self._job("stop", unit, stop_limit, stop_limit)

    def reset_failed(self, unit: str) -> None:
        self._run(["systemctl", "reset-failed", "--", unit])  # fails when there is nothing to reset

    def enable(self, unit: str) -> str:
        """Returns systemctl's output, which names every link that it creates."""
        return self._links("enable", unit)

    def disable(self, unit: str, runtime: bool = False) -> str:
        """Returns systemctl's output, which names every link that it removes; ``runtime``: of those in /run."""
        return self._links("disable", *(["--runtime"] if runtime else []), unit)

    def _links(self, *words: str) -> str:
        command = ["systemctl", *words[:-1], "--", words[-1]]
        status, out, said = self._run(command, environment={"SYSTEMD_LOG_LEVEL": "info"})
        if status:
            raise ManagerError("systemctl %s failed: %s" % (words[0], said.strip() or "exit %d" % status))
        return out + said

    def run_transient(self, unit: str, description: str, command: List[str], properties: Mapping[str, str]) -> None:
        """Run a command as a unit that exists in memory only, and is forgotten once it ends."""
        words = ["--property=%s=%s" % item for item in sorted(properties.items())]
        self._call(
            ["systemd-run", "--quiet", "--collect", "--unit=" + unit, "--description=" + description, *words, "--"]
            + command
        )

    def _job(self, verb: str, unit: str, stop_limit: float, start_limit: float) -> Optional[str]:
        command = ["systemctl", verb, "--", unit]
        # until systemd has taken the job, it reports the previous state, such as restarts of its own
        former = self.show(unit).get("InvocationID") if verb != "stop" else None
        begun = starting = time.monotonic()
        with self._started(command) as job:
            while True:
                try:
                    _out, said = job.communicate(timeout=0.1 if time.monotonic() < begun + 2 else 0.5)
                    if job.returncode == 0:
                        return None
                    return _shown(_text(said).strip().partition("\n")[0]) or "exit %d" % job.returncode
                except subprocess.TimeoutExpired:
                    state = self.show(unit)
                now = time.monotonic()
                anew = verb != "stop" and state.get("InvocationID") != former
                if anew and (restarting(state) or int(state.get("NRestarts") or 0)):
                    wrong = "it does not start"  # systemctl would wait for a restart that succeeds
                elif state.get("ActiveState") == "deactivating":
                    starting = now
                    wrong = "it did not stop within %d s" % stop_limit if now > begun + stop_limit else ""
                else:
                    wrong = "it did not start within %d s" % start_limit if now > starting + start_limit else ""
                if wrong:
                    job.kill()  # systemctl alone: the job continues until another takes its place
                    job.communicate()
                    return wrong

    @contextmanager
    def lock(self, unit: str, limit: float, waiting: Optional[Callable[[str], None]] = None) -> Iterator[None]:
        """Hold the lock of a unit, or of what else two runs must not change at once.

        :param limit: seconds to wait for it.
        :param waiting: called again and again meanwhile with the process that holds it.
        :raises ManagerError: it is not free within the limit; the message names the holder.
        """
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import lock

        try:
            with lock.held(unit, limit, waiting, root=self.root):
                yield
        except lock.LockError as error:
            raise ManagerError(str(error)) from None

    # --- commands ----------------------------------------------------------------------------------------------------

    def _started(self, command: List[str], environment: Optional[Dict[str, str]] = None) -> "subprocess.Popen[bytes]":
        """The command, running, with its words in pipes and in the C locale: bytes, as text mode alters CRs."""
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(
                    os.environ, LC_ALL="C", SYSTEMD_COLORS="0", SYSTEMD_LOG_TARGET="console", **(environment or {})
                ),
            )
        except FileNotFoundError:
            raise ManagerError("there is no %s: this host is not run by systemd" % command[0]) from None

    def _run(
        self, command: List[str], limit: float = 60, environment: Optional[Dict[str, str]] = None
    ) -> Tuple[int, str, str]:
        """Exit status, output and errors of a command."""
        with self._started(command, environment) as process:
            try:
                out, said = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise ManagerError("%s did not finish within %d s" % (" ".join(command[:2]), limit)) from None
            return process.returncode, _text(out), _text(said)

    def _head(self, command: List[str], most: int, limit: float = JOURNAL_LIMIT) -> bytes:
        """The first bytes of a command's output, and one more than ``most`` where there is more."""
        try:
            process = self._started(command)
        except ManagerError:
            return b""
        with process:
            timer = threading.Timer(limit, process.kill)
            timer.start()
            try:
                return process.stdout.read(most + 1) if process.stdout else b""
            finally:
                timer.cancel()
                process.kill()

    def _call(self, command: List[str], limit: float = 60) -> str:
        status, out, said = self._run(command, limit)
        if status:
            words = " | ".join(_shown(line) for line in said.strip().split("\n"))
            raise ManagerError("%s failed: %s" % (" ".join(command[:2]), words or "exit %d" % status))
        return out


def main_environ(
    system: System, unit: str, limit: float, passing: Sequence[str] = (), state: Optional[Dict[str, str]] = None
) -> Tuple[Dict[str, str], Dict[str, str]]:
    """The state of a unit and the environment of its main process, once systemd and the kernel agree about it.

    A process may be forked and not yet executed, or have ended without systemd knowing it.

    :param limit: seconds for that; then they are taken as they are.
    :param passing: values of ActiveState that are waited out within them.
    :param state: of the unit, if it is known already.
    :returns: both; the environment is empty where there is no main process.
    """
    until = time.monotonic() + limit
    state = state or system.show(unit)
    while True:
        pid = int(state.get("MainPID") or 0)
        environ = system.environ(pid) if pid else {}
        settled = environ is not None and state.get("ActiveState") not in passing
        if settled or time.monotonic() > until:
            return state, environ or {}
        # neither sends a word
        time.sleep(0.05)
        state = system.show(unit)


def _shown(line: str) -> str:
    """A foreign line of text, safe to show: always one line, even if it contains carriage returns."""
    return printable(line).replace("\n", " ")


def _text(words: bytes) -> str:
    return words.decode("utf-8", "surrogateescape")


def _lines(entry: Mapping[str, Any]) -> List[str]:
    """The lines of an entry of the journal, fit for a terminal.

    Its text is a list of bytes where it is not plain text, and a list of texts where its author sent several.
    """
    message = entry.get("MESSAGE") or ""
    if isinstance(message, list):
        if all(isinstance(item, int) for item in message):
            message = bytes(message[-LONGEST_MESSAGE:]).decode("utf-8", "replace")
        else:
            message = "\n".join(item for item in message if isinstance(item, str))
    if not isinstance(message, str):
        return []
    return [line for line in map(_shown, message[-LONGEST_MESSAGE:].split("\n")) if line.strip()]


def _microseconds(entry: Mapping[str, Any]) -> int:
    """Seconds since 1970 when it was logged, by its author's clock if known, else when it was written."""
    return int(entry.get("_SOURCE_REALTIME_TIMESTAMP") or entry.get("__REALTIME_TIMESTAMP") or 0)


def _path_unescape(name: str) -> Optional[str]:
    """A part of a unit's name as the path that it was before systemd-escape; None when it was none."""
    parts = (_unescape(name) or "").split("/")
    if name == "-":
        return "/"
    return None if {"", ".", ".."} & {*parts} else "/" + "/".join(parts)


def _unescape(name: str) -> Optional[str]:
    """A part of a unit's name as it was before systemd-escape; None when it is not escaped as it should be."""
    if re.search(r"\\(?!x[0-9a-fA-F]{2})", name):
        return None
    raw = re.sub(
        rb"\\x([0-9a-fA-F]{2})", lambda match: bytes([int(match.group(1), 16)]), name.replace("-", "/").encode()
    )
    return raw.decode("utf-8", "surrogateescape")
