# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads one unit once: systemd's state, its files, its process. Decides nothing."""

from __future__ import annotations

import os
import time
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..systemd.manager import System, restarting, split_items
from ..systemd.unit import merge
from . import compare
from .atomic import Files, Wanted, ordered, public
from .model import Change, Step
from .override import DROP_IN, Override, as_bytes

DOWN = ("inactive", "failed")
NOTICES = 10
"""Seconds that a busy systemd may need to notice a death."""


class FileChange(NamedTuple):
    """One of our files that is not as wanted; content None means that it is not to exist, or does not."""

    path: str
    content: Optional[bytes]
    mode: int
    old: Optional[bytes]
    old_mode: int


class StepChange(NamedTuple):
    """A step that has something to do."""

    name: str
    restarts: bool
    before: str
    after: str
    writes_unit: bool = False


class Observed(NamedTuple):
    """One unit as it was found."""

    unit: str
    """Its own full name: a drop-in belongs next to that, not next to an alias."""
    state: Mapping[str, str]
    """Its properties, as systemd prints them."""
    now: compare.View
    """The unit as merged from the files on disk."""
    planned: compare.View
    """The same with our files as wanted."""
    specifiers: Mapping[str, str] = {}
    """What ``%`` and a letter stand for in its files."""
    environ: Optional[Mapping[str, str]] = None
    """That of the main process; None where there is none, empty where the program has overwritten it."""
    wrong_credentials: Tuple[str, ...] = ()
    """Declared credentials that the main process does not see with their declared content."""
    wanted: Tuple[Wanted, ...] = ()
    """All of our files in their declared state."""
    files: Tuple[FileChange, ...] = ()
    """Those that differ, in the order in which they are written and removed."""
    rubbish: Tuple[str, ...] = ()
    """What an interrupted run left next to our files, and nobody needs."""
    unfinished: bool = False
    """Whether an interrupted run changed our files and neither proved nor undid that."""
    by_others: bool = False
    """Whether foreign files have everything that is declared in force, so that no drop-in of ours is needed."""
    steps: Tuple[StepChange, ...] = ()
    public: FrozenSet[str] = frozenset()
    """Of the files that set a variable to an undeclared value, those that every user of the host may read."""
    looping: str = ""
    """The invocation that ended right after systemd had restarted the unit."""
    was_up: bool = False
    """Whether it ran until this run stopped it."""

    @property
    def active(self) -> str:
        return self.state.get("ActiveState", "inactive")

    @property
    def failing(self) -> bool:
        return bool(self.looping) or restarting(self.state)

    @property
    def up(self) -> bool:
        """Whether it is to run again after a rollback; one that is just starting counts."""
        return (self.was_up or self.active not in (*DOWN, "deactivating")) and not self.failing

    @property
    def running(self) -> Optional[Mapping[str, str]]:
        """The environment of the main process, if there is one and it can be known."""
        return self.environ or None


def observe(system: System, name: str, change: Change, steps: Sequence[Step]) -> Tuple[Observed, Override]:
    """Read a unit.

    :param name: its full name, or an alias.
    :param steps: those that have something to do.
    :returns: what was found, and our files for the unit, which mask the secrets that were found on the host too.
    """
    state = system.show(name)
    unit = state["Id"] if state.get("LoadState") == "loaded" else name
    override = Override(unit, change)
    files = Files(override.wanted(system.names(override.credential_directory)), system.root)
    unfinished = files.unfinished()
    state, looping = _settled(system, unit, state, change)
    found = _read(system, unit, state, override)
    by_others = not (unfinished or steps) and _in_force_elsewhere(files, override, found["now"])
    if by_others:
        found["planned"] = found["now"]
        others = [file for file in files.wanted if file.path != override.drop_in]
        files = Files([*others, Wanted(override.drop_in, None)], system.root)
    observed = Observed(
        unit=unit,
        state=state,
        wanted=tuple(files.wanted),
        files=tuple(
            FileChange(file.path, file.content, file.mode, files.read(file.path), files.mode(file.path))
            for file in ordered(files.changes(), lambda file: file.content is not None)
        ),
        rubbish=tuple(path[len(system.root) :] for path in files.rubbish()),
        unfinished=unfinished,
        by_others=by_others,
        steps=tuple(_step(step) for step in steps),
        looping=looping,
        was_up=change.was_up,
        **found,
    )
    return observed, override


def reread(observed: Observed, system: System, override: Override, state: Mapping[str, str]) -> Observed:
    """The same unit after steps have written files of their own."""
    return observed._replace(state=state, **_read(system, observed.unit, state, override))


def _step(step: Step) -> StepChange:
    difference = step.diff()
    writes_unit = getattr(step, "writes_unit", False)
    return StepChange(type(step).__name__, step.restarts, difference["before"], difference["after"], writes_unit)


def _in_force_elsewhere(files: Files, override: Override, now: compare.View) -> bool:
    """Whether a host needs no drop-in: it has none, and foreign files have all that is declared in force.

    Sections that are only notes (X-) make no difference to the service.
    """
    notes = all(section.startswith("X-") for section in override.settings)  # no secrets among them either
    in_force = notes and all(now.text(name) == text for name, text in override.environment.items())
    return in_force and bool(override.environment) and files.read(override.drop_in) is None


def _read(system: System, unit: str, state: Mapping[str, str], override: Override) -> Dict[str, Any]:
    """Merge the unit as it lies on the disk, and as it will with our files; read what its process has."""
    files = system.load([unit, *(name for name in split_items(state.get("Names", "")) if name != unit)])
    fragment = files[0][0] if files and not files[0][0].endswith(".conf") else ""
    specifiers = system.specifiers(unit, fragment)

    def view(files: List[Tuple[str, bytes]], read_files: Any) -> compare.View:
        merged = merge(files)
        inherited = system.inherited() if merged.in_force("Service", "PassEnvironment") else {}
        return compare.View(merged, merged.environment(specifiers, read_files, inherited))

    def planned_files(pattern: str) -> Iterable[Tuple[str, bytes]]:
        if pattern != override.secret_pattern:
            return system.environment_files(pattern)
        content = override.content(override.secret_file)
        return [] if content is None else [(override.secret_file, content)]

    now, planned = view(files, system.environment_files), view(_with_drop_in(files, override), planned_files)
    pid = int(state.get("MainPID") or 0)
    environ = system.environ(pid) if pid else None
    override.hide(_previous_secrets(override, (now, planned), environ or {}))
    return {
        "now": now,
        "planned": planned,
        "specifiers": specifiers,
        "environ": environ,
        "wrong_credentials": () if environ is None else wrong_credentials(system, override, pid, environ),
        "public": _public(override, now, planned, system.root),
    }


def _with_drop_in(files: List[Tuple[str, bytes]], override: Override) -> List[Tuple[str, bytes]]:
    """``files`` with our drop-in as wanted, in its place among the drop-ins."""
    content = override.content(override.drop_in)
    found = [file for file in files if file[0] != override.drop_in]
    if content is not None:
        # of two files with one name, the one in our directory counts
        found = [file for file in found if os.path.basename(file[0]) != DROP_IN]
        found.append((override.drop_in, content))
    fragment = [file for file in found if not file[0].endswith(".conf")]
    drop_ins = [file for file in found if file[0].endswith(".conf")]
    return fragment + sorted(drop_ins, key=lambda file: os.path.basename(os.fsencode(file[0])))


def _previous_secrets(override: Override, views: Iterable[compare.View], environ: Mapping[str, str]) -> List[str]:
    """What a secret replaces is a secret too, wherever it stands."""
    found = [environ.get(name, "") for name in override.secret_environment]
    for view in views:
        for name, value in view.environment.items():
            if name in override.secret_environment or value.path == override.secret_file:
                found.append(value.text or "")
    return found


def _public(override: Override, now: compare.View, planned: compare.View, root: str) -> FrozenSet[str]:
    """The files that everybody may read, of those whose values may be shown in a drift or a shadow."""
    names = {*override.environment, *compare.changed_variables(now, planned)} - {*override.secret_environment}
    values = [(name, view.environment[name]) for view in (now, planned) for name in names if name in view.environment]
    paths = {value.path for name, value in values if value.text != override.environment.get(name)}
    return frozenset(path for path in paths if public(path, root))


def wrong_credentials(system: System, override: Override, pid: int, environ: Mapping[str, str]) -> Tuple[str, ...]:
    """The declared credentials that the main process does not see with their declared content."""
    environ = environ or {"CREDENTIALS_DIRECTORY": "/run/credentials/" + override.unit}
    return tuple(
        name
        for name, text in sorted(override.credentials.items())
        if system.credential(pid, environ, name) != as_bytes(text)
    )


# --- a unit between two states


def ends(state: Mapping[str, str]) -> bool:
    """Whether the main process has ended though the unit is not down: its ExecStopPost= runs, or RestartSec=."""
    return restarting(state) or state.get("ActiveState") == "deactivating"


def precedes(state: Mapping[str, str]) -> bool:
    """Whether the unit is about to have a main process: its ExecStartPre= runs."""
    starts = state.get("ActiveState") == "activating" and not restarting(state)
    return starts and not int(state.get("MainPID") or 0)


def noticed(system: System, unit: str) -> Dict[str, str]:
    """The unit's state once systemd knows that its main process has ended, if it has."""
    until = time.monotonic() + NOTICES
    while True:
        state = system.show(unit)
        pid = int(state.get("MainPID") or 0)
        if not pid or system.process(pid).alive() or time.monotonic() > until:
            return state
        # systemd learns of the death a moment after the kernel
        time.sleep(0.02)


def _settled(system: System, unit: str, state: Dict[str, str], change: Change) -> Tuple[Dict[str, str], str]:
    """Wait for a restart that systemd itself is making: one death is not a crash loop, the next one is.

    Gives the state then, and the invocation of the process that has died again; that is known long before the time
    that the unit has for its start is up.
    """
    if not ends(state):
        return state, ""
    first, until = state.get("InvocationID"), time.monotonic() + change.timeout
    while ends(state) and state.get("InvocationID") == first and time.monotonic() < until:
        # systemd sends no signal when it restarts a unit: its state is polled until the deadline
        time.sleep(0.05)
        state = system.show(unit)
    invocation, pid = state.get("InvocationID", ""), int(state.get("MainPID") or 0)
    if invocation == first:
        return state, ""
    if ends(state) or (pid and system.process(pid).ended_within(change.settle)):
        return noticed(system, unit), invocation
    return state, ""
