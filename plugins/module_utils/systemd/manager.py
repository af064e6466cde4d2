# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only file that talks to systemd: systemctl, journalctl, systemd-analyze, systemd-run."""

from __future__ import annotations

import glob
import json
import os
import pwd
import re
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..toolbox.text import printable
from .process import ManagerError, Processes
from .specifiers import specifiers
from .unit import dropin_directories, order_dropins, template_of

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

LARGEST_ENVIRONMENT_FILE = 256 << 10
"""Bytes of an EnvironmentFile= that is read; a larger one counts as one that cannot be read."""
LONGEST_MESSAGE = 1 << 18
"""Bytes of one message of the journal, and characters of a line, that are read."""
LARGEST_JOURNAL = 32 << 20
"""Bytes of a journal that are read at once."""
JOURNAL_LIMIT = 60
"""Seconds for reading it."""
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


class System(Processes):
    """systemd of this host, and the processes that it runs."""

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

    def environment_files(self, pattern: str) -> Iterator[Tuple[str, bytes]]:
        """(path, content) of the readable files that the pattern of an ``EnvironmentFile=`` names."""
        pattern = re.sub(
            r"\\(.)", lambda match: glob.escape(match.group(1)), pattern
        )  # glob(3) unescapes, glob does not
        for path in sorted(glob.glob(self.root + pattern)) if glob.has_magic(pattern) else [self.root + pattern]:
            content = self.read(path[len(self.root) :], LARGEST_ENVIRONMENT_FILE)
            if content is not None:
                yield path[len(self.root) :], content

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
        import shutil  # only before a change
        import tempfile

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
        """What ``%`` and a letter stand for in this unit's files; ``fragment`` is the path of its unit file."""
        if fragment and os.path.islink(self.root + fragment):  # such as by systemctl link
            fragment = os.path.realpath(self.root + fragment)[len(self.root) :]
        return specifiers(unit, fragment, self.read)

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

    def reload_unit(self, unit: str, limit: float) -> Optional[str]:
        """Have the unit's process read its files again; gives None, or what went wrong."""
        status, _out, said = self._run(["systemctl", "reload", "--", unit], limit)
        return _shown(said.strip().partition("\n")[0]) or "exit %d" % status if status else None

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
        previous = self.show(unit).get("InvocationID") if verb != "stop" else None
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
                again = verb != "stop" and state.get("InvocationID") != previous
                if again and (restarting(state) or int(state.get("NRestarts") or 0)):
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
        from ..toolbox import lock

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
