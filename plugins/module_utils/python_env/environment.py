# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Python environments of an engine, one for each version: built next to the one in use, tested, then switched to.

    ROOT/ENGINE/VERSION-CUDA-HASH/     a virtual environment; HASH is of all that was asked for
    ROOT/ENGINE/VERSION-CUDA-HASH/gpufleet.json    written last: an environment without it is not whole, and is removed
    ROOT/ENGINE/current  -> VERSION-CUDA-HASH      replaced at one stroke
    ROOT/ENGINE/previous -> VERSION-CUDA-HASH      for the way back

A virtual environment has its own path in its programs and cannot be moved, so it is built where it will be used.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager, suppress
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from ..toolbox import files
from ..toolbox.errors import Failed
from .build import MARKER, Builder, Sources, asked, masked, read_record
from .interpreters import find_interpreter
from .wheels import Choice

ROOT = "/opt/gpufleet"
UNITS = "/etc/systemd/system"
_ASIDE = ".aside"


class EnvironmentStep:
    """The environment of an engine as a step of the service engine, and by itself.

    ``path`` is known before anything is built: a unit that names it directly keeps running in the environment that
    it was started in, whatever ``current`` points to meanwhile, and is restarted by the change of its own ExecStart=.
    """

    restarts = True

    def __init__(
        self, choice: Choice, interpreter: str = "python3", sources: Optional[Sources] = None, root: str = ROOT
    ) -> None:
        """:raises Refused: there is no such interpreter."""
        self.choice = choice
        self.sources = sources or Sources()
        self.interpreter = find_interpreter(interpreter)
        self.folder = os.path.join(root, choice.engine)
        self.asked = asked(choice, self.interpreter)
        self.name = "%s-%s-%s" % (choice.version, choice.cuda, self.asked[:12])
        self.path = os.path.join(self.folder, self.name)
        self.builder = Builder(choice, self.interpreter, self.sources, self.path)
        self.python = self.builder.python
        self._made = False
        self._before: Optional[Tuple[Optional[str], Optional[str]]] = None

    # --- as a step

    def needed(self) -> bool:
        return self.link("current") != self.name or not self.built()

    def diff(self) -> Dict[str, str]:
        def shown(name: str, packages: Sequence[str]) -> str:
            return "%s -> %s (%s)\n" % (self._in("current"), name, " ".join(packages))

        before = self.link("current")
        record = read_record(self._in(before)) if before else {}
        packages = record.get("asked", {}).get("packages", []) if record else ["not whole"]
        after = shown(self.name, [masked(package) for package in self.choice.packages])
        return {"before": shown(before, packages) if before else "", "after": after}

    def apply(self) -> None:
        """Build what is missing, then switch.

        :raises Failed: nothing was switched, and nothing new is left.
        """
        from ..toolbox.trusted import intruder

        why = intruder(self.folder)
        if why:
            raise Failed(
                "%s cannot be built: %s, and root would run programs there. Declare a folder of root's as root, or run "
                "this as that user" % (self.path, why)
            )
        self.build()
        self.switch()

    def undo(self) -> None:
        if self._before is not None:
            for name, target in zip(("current", "previous"), self._before):
                self._point(name, target)
            self._before = None
        if self._made:
            _remove(self.path)
            self._made = False
            with suppress(OSError):  # it has something of someone else's, or is gone
                os.rmdir(self.folder)
                os.rmdir(os.path.dirname(self.folder))

    # --- by itself

    def built(self) -> bool:
        """Whether the environment is whole, in use or not. Reads one file."""
        return read_record(self.path).get("hash") == self.asked and os.path.exists(self.python)

    def record(self) -> Dict[str, Any]:
        """What is known of the built environment: ``packages`` (name → version), ``device``, ``asked``; or nothing."""
        return read_record(self.path)

    def link(self, name: str) -> Optional[str]:
        """Name of the environment that ``current`` or ``previous`` points to."""
        return files.link(self._in(name))

    def build(self) -> None:
        """Build and test the environment next to the one in use, unless it exists.

        :raises Failed: it cannot be built or does not work; nothing of it is left.
        """
        from ..toolbox import lock

        if self.built():
            return
        umask = os.umask(0o022)
        try:
            os.makedirs(self.folder, exist_ok=True)
            with lock.held("environments of " + self.folder, self.sources.timeout):
                if not self.built():  # by the one that was waited for
                    self._build_whole()
        except lock.LockError as error:
            self.undo()
            raise Failed(str(error)) from None
        except OSError as error:
            self.undo()
            raise Failed("%s cannot be built: %s" % (self.path, error)) from None
        except Failed:
            self.undo()
            raise
        finally:
            os.umask(umask)

    def switch(self) -> None:
        """Have ``current`` point to this environment, and ``previous`` to the one before."""
        current, previous = self.link("current"), self.link("previous")
        if current == self.name:
            return
        self._before = (current, previous)
        self._point("previous", current)
        self._point("current", self.name)

    def prune(self, units: str = UNITS) -> List[str]:
        """After a proven switch, remove all environments but the current and the previous one, and those that a unit
        names; each takes gigabytes. Without a switch nothing is removed.

        :returns: the names of those removed.
        """
        if self._before is None:
            return []
        kept = {self.link("current"), self.link("previous")}
        named = _texts(units)
        removed = []
        for name in self._environments():
            path = os.path.join(self.folder, name)
            if name not in kept and not any(path in text for text in named):
                _remove(path)
                removed.append(name)
        return removed

    def leftovers(self) -> List[str]:
        """Names of what killed runs have left and no run is working on."""
        beside = [name + files.BESIDE for name in ("current", "previous")]
        links = [name for name in beside if os.path.lexists(self._in(name))]
        left = [name for name in self._environments() if self._outlived(name)]
        return links + [name for name in left if _free(self._in(name)) and not _writer(self._in(name))]

    def tidy(self) -> List[str]:
        """Remove :meth:`leftovers`.

        :returns: the names of those removed.
        """
        removed = []
        for name in self.leftovers():
            path = self._in(name)
            if os.path.islink(path):
                os.unlink(path)
            else:
                with _held(path):
                    _remove(path)
            removed.append(name)
        return removed

    # --- building

    def _in(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _outlived(self, name: str) -> bool:
        """Whether an environment is not whole and nobody needs it; one in use comes back if its rebuild fails."""
        kept = (self.link("current"), self.link("previous"))
        if name.startswith(".") and name.endswith(_ASIDE):
            name = name[1 : -len(_ASIDE)]
            return name not in kept or bool(read_record(self._in(name)))
        return name not in kept and not read_record(self._in(name))

    def _environments(self) -> List[str]:
        try:
            names = sorted(os.listdir(self.folder))
        except OSError:
            return []
        return [name for name in names if os.path.isdir(self._in(name)) and not self.link(name)]

    def _build_whole(self) -> None:
        """Build, or leave everything as it was."""
        for name in self._environments():  # of runs that were killed
            if self._outlived(name):
                _await_idle(self._in(name), self.sources.timeout)
                _remove(self._in(name))
        aside = self._in(".%s%s" % (self.name, _ASIDE))
        if os.path.isdir(self.path):  # in use, but someone has damaged it
            if os.path.isdir(aside):  # and the rebuild was killed
                _await_idle(self.path, self.sources.timeout)
                _remove(self.path)
            else:
                os.rename(self.path, aside)
        self._made = True
        try:
            os.mkdir(self.path, 0o700)
            with _held(self.path):
                self.builder.build()
        except BaseException:
            _remove(self.path)
            if os.path.isdir(aside):
                os.rename(aside, self.path)
                self._made = False
            raise
        _remove(aside)

    def _point(self, name: str, target: Optional[str]) -> None:
        if target is not None:
            files.point(self._in(name), target)
        elif self.link(name):
            os.unlink(self._in(name))


def _await_idle(path: str, timeout: float) -> None:
    """Wait until no program of a killed run writes there any more: children end with it, but theirs do not.

    :raises Failed: one keeps writing.
    """
    until = time.monotonic() + timeout
    while True:
        found = _writer(path)
        if not found:
            return
        if time.monotonic() > until:
            raise Failed(
                "%s is left of a run that was killed, and process %s still works there; end it first" % (path, found)
            )
        # processes of others end without a word
        time.sleep(0.2)


def _writer(path: str) -> str:
    """A process that has something of an environment among its arguments, if there is one."""
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit() and _names(pid, os.fsencode(path) + b"/")]
    return pids[0] if pids else ""


def _names(pid: str, path: bytes) -> bool:
    try:
        with open("/proc/%s/cmdline" % pid, "rb") as file:
            return path in file.read()
    except OSError:
        return False


def _texts(folder: str) -> List[str]:
    """The text of every unit file and drop-in below a folder."""
    found = []
    for here, _folders, names in os.walk(folder):
        for name in names:
            try:
                with open(os.path.join(here, name), encoding="utf-8", errors="replace") as file:
                    found.append(file.read())
            except OSError:
                continue
    return found


def _remove(path: str) -> None:
    """Remove an environment, if there is one: first what says that it is whole, as a kill may leave the rest."""
    with suppress(OSError):
        os.unlink(os.path.join(path, MARKER))
        files.sync_folder(path)
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _held(path: str) -> Iterator[None]:
    """While an environment is built, or removed, no other run takes it for left over; only root can enter it."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _free(path: str) -> bool:
    try:
        with _held(path):
            return True
    except OSError:
        return False
