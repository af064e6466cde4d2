# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving the models of a service to another store: whether, and as a step of the engine.

The old store stays whole until the service is proven on the new one. A record in a folder of root's own remembers a
move until it is done: the next run resumes it, and a run that declares something else cleans up after it. Everything
inside the stores is done with the rights of the service's user (``transfer.py``).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from shlex import quote
from typing import Any, Dict, List, NamedTuple, Optional, Union

from ..converge.model import StepError
from ..serving.access import ids, with_rights_of
from ..toolbox import files
from ..toolbox.errors import Failed
from ..toolbox.users import as_user
from . import transfer
from .store import Holding, holding, move_record, move_unfinished

_MARGIN = 1 << 30  # bytes that stay free when models are copied
_STALL = 600  # seconds that a disk may take for a part of a copy


class Record(NamedTuple):
    """A move that has begun and is not done."""

    old: str
    new: str
    files: List[str]
    """What the new store did not have before, relative to it."""
    folders: List[str]
    """What was created for it, the outermost first."""


Step = Union["MoveStep", "CleanStep"]


def plan(
    previous: Optional[str], new: Optional[str], change: str, user: str, unit: str, proc: str = "/proc"
) -> List[Step]:
    """What to do about the models of the store that was in force, when another one will be.

    :param previous: the store in force; None where there is none.
    :param new: the store that will be.
    :param change: ``refuse``, ``move`` or ``leave``.
    :raises StepError: models would be out of sight, or cannot be moved.
    """
    steps: List[Step] = []
    resumed = None
    if move_unfinished(unit):
        records = recorded(unit)
        if not records:
            steps.append(CleanStep(unit, user, None))
        for record in records:
            if (
                new
                and _same(new, record.new)
                and previous
                and (_same(previous, record.new) or _same(previous, record.old))
            ):
                resumed = record
            else:
                in_force = bool(previous and _same(previous, record.new))
                back = bool(new and _same(new, record.old))
                others = _others(record.new, unit, proc)
                steps.append(CleanStep(unit, user, record, not others and (back or not in_force)))
    in_force = bool(resumed and previous and _same(previous, resumed.new))
    move = _move(resumed.old if resumed else previous, new, change, user, unit, proc, resumed, in_force)
    if resumed and not move:  # whole models stay where they are
        steps.append(CleanStep(unit, user, resumed, not in_force, keep_models=True))
    return [*steps, move] if move else steps


def _move(
    previous: Optional[str],
    new: Optional[str],
    change: str,
    user: str,
    unit: str,
    proc: str,
    resumed: Optional[Record],
    in_force: bool,
) -> Optional["MoveStep"]:
    """:param in_force: the new store is in force already, and the old one is not emptied yet."""
    if not (previous and new) or _same(previous, new) or change == "leave":
        return None
    source, target = previous, new
    try:
        found = with_rights_of(user, lambda: transfer.survey(source, target))
    except StepError as error:
        raise StepError(
            "models_dir changes from %s to %s, and the models cannot be inspected: %s; make them readable for user %s,"
            " or set models_dir_change to leave" % (previous, new, error, user)
        ) from None
    old = Holding(previous, found["held"])
    out_of_sight = found["missing"] and old.models
    if found["same"] or not (out_of_sight or resumed):
        return None
    if change == "refuse" and not in_force:
        if not out_of_sight:
            return None
        raise StepError(
            "models_dir changes from %s to %s, where the server would not see %s: set models_dir_change to move (them"
            " there) or leave (them behind), or copy them: mkdir -p %s && cp -a %s/. %s/ && chown -R %s: %s"
            % (previous, new, old, quote(new), quote(previous), quote(new), user, quote(new))
        )
    _refuse(previous, new, found, user, unit, proc)
    return MoveStep(previous, new, user, unit, in_force)


def _refuse(previous: str, new: str, found: Dict[str, Any], user: str, unit: str, proc: str) -> None:
    """:raises StepError: the models cannot be moved, and why."""
    others = _others(previous, unit, proc) if found["held"] else []
    if others:
        raise StepError(
            "models_dir_change: %s uses the models of %s, too: stop it, or leave them there (leave)"
            % (" and ".join(others), previous)
        )
    _refuse_two_versions(previous, new, found)
    if found["stuck"]:
        raise StepError(
            "models_dir_change: user %s cannot remove files from %s: chown -R %s: %s, or leave the models there (leave)"
            % (user, found["stuck"], user, quote(previous))
        )
    needed, free = found["needed"] and found["needed"] + _MARGIN, found["free"]
    if free < needed:
        raise StepError(
            "models_dir_change: %s is on another file system, which has %.1f GB free; the models need %.1f GB"
            " while both copies are there: free %.1f GB" % (new, free / 1e9, needed / 1e9, (needed - free) / 1e9)
        )


def _refuse_two_versions(previous: str, new: str, found: Dict[str, Any]) -> None:
    for file in found["differ"]:
        raise StepError(
            "models_dir_change: both %s and %s have the model %s, and they differ: remove one of the two files"
            % (os.path.join(previous, file), os.path.join(new, file), "/".join(file.split("/")[-2:]))
        )


def _same(one: str, other: str) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)


# --- the steps


class MoveStep:
    """Takes the models of one store to another, and removes them from the old one when the service is proven there."""

    restarts = False  # the other value of OLLAMA_MODELS does

    def __init__(self, old: str, new: str, user: str, unit: str, in_force: bool = False) -> None:
        self.old, self.new, self.user, self.unit, self.in_force = old, new, user, unit, in_force
        self.holding = Holding(old, {})
        self._record = Record(old, new, [], [])
        self._begun = self._applied = False

    def needed(self) -> bool:
        try:  # another run may have moved them while this one waited for its turn
            self.holding = Holding(self.old, with_rights_of(self.user, lambda: holding(self.old, strict=True).files))
        except StepError:
            return True  # apply says why
        return bool(self.holding.files) or self._previous() is not None

    def diff(self) -> Dict[str, str]:
        def said(path: str) -> str:
            return "models in %s (%s)\n" % (path, self.holding)

        return {"before": said(self.old), "after": said(self.new)}

    def apply(self) -> None:
        """:raises StepError: not all of it could be moved."""
        found = with_rights_of(self.user, lambda: transfer.survey(self.old, self.new))
        _refuse_two_versions(self.old, self.new, found)
        self.holding = Holding(self.old, found["held"])
        previous = self._previous()
        folders = [folder for folder in found["folders"] if not os.path.lexists(folder)]  # the user may not see all
        known = previous or Record(self.old, self.new, [], [])
        record = known._replace(
            files=sorted({*known.files, *found["absent"]}), folders=sorted({*known.folders, *folders})
        )
        # what the killed run has moved to a store in force stays there
        self._record = record if not self.in_force else record._replace(files=found["absent"], folders=folders)
        self._begun = True
        _remember(self.unit, record)
        self._make_top()
        with_rights_of(self.user, lambda: transfer.copy(self.old, self.new, found["missing"]), _STALL)
        self._applied = True

    def undo(self) -> None:
        if not self._begun:
            return
        _clean(self.user, self._record)
        if not self.in_force:
            forget(self.unit, self._record)
        self._begun = self._applied = False

    def finish(self) -> None:
        """The service is proven on the new store: what was pulled into the old one until then comes, too, and that is
        emptied of what was taken.

        :raises StepError: not all of it could be moved; the next run resumes.
        """
        if not self._applied:
            return
        left = with_rights_of(self.user, lambda: transfer.finish(self.old, self.new, self.holding.files), _STALL)
        if left:
            raise StepError("%s stays in %s, and %s does not have it" % (left[0], self.old, self.new))
        _remove_folder(self.old)
        forget(self.unit, self._record)

    def _previous(self) -> Optional[Record]:
        """The record of a killed run that moved the same models."""
        found = [record for record in recorded(self.unit) if (record.old, record.new) == (self.old, self.new)]
        return found[0] if found else None

    def _make_top(self) -> None:
        try:
            as_user(ids(self.user), lambda: os.makedirs(self.new, exist_ok=True))
        except PermissionError:  # in a folder of root's
            try:
                files.make_folders(self.new, ids(self.user)[:2])
            except OSError as error:
                raise StepError("%s: %s" % (error.filename, error.strerror)) from None
        except (OSError, Failed) as error:
            raise StepError("%s cannot be created: %s" % (self.new, error)) from None


class CleanStep:
    """Cleans up after a killed move that is no longer declared, once the service is proven without it."""

    restarts = False

    def __init__(
        self, unit: str, user: str, record: Optional[Record], clean: bool = True, keep_models: bool = False
    ) -> None:
        self.unit, self.user, self.record, self.keep_models = unit, user, record, keep_models
        self.cleans = clean and record is not None
        self._applied = False

    def needed(self) -> bool:
        return move_unfinished(self.unit)

    def diff(self) -> Dict[str, str]:
        if not self.record:
            said = "the beginning of a record of a move\n"
        elif self.cleans:
            said = "%d files of an unfinished move from %s in %s\n" % (
                len(self.record.files),
                self.record.old,
                self.record.new,
            )
        else:
            said = "record of an unfinished move from %s to %s\n" % (self.record.old, self.record.new)
        return {"before": said, "after": ""}

    def apply(self) -> None:
        self._applied = True

    def undo(self) -> None:
        self._applied = False

    def finish(self) -> None:
        """:raises StepError: something is left; the next run tries again."""
        if not self._applied:
            return
        if self.record and self.cleans:
            _clean(self.user, self.record, self.keep_models)
        forget(self.unit, self.record)


def _clean(user: str, record: Record, keep_models: bool = False) -> None:
    """Remove from the new store what a move has put there and the old one still has."""

    def work() -> transfer.Work:
        yield from transfer.empty(record.new, record.old, record.files, keep_models=keep_models)
        transfer.remove_empty(record.folders)

    with_rights_of(user, work, _STALL)
    for folder in reversed(record.folders):
        _remove_folder(folder)


def _remove_folder(path: str) -> None:
    with suppress(OSError):  # there is something in it, or it is not ours to reach
        files.remove_folder(path)


# --- the record


def recorded(unit: str) -> List[Record]:
    """The unfinished moves of a unit's models."""
    try:
        with open(move_record(unit), encoding="utf-8") as file:
            found = json.load(file)
        if found["unit"] != unit:
            return []
        return [Record(*(move[field] for field in Record._fields)) for move in found["moves"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _remember(unit: str, record: Record) -> None:
    _write(unit, [*_without(unit, record), record])


def forget(unit: str, record: Optional[Record] = None) -> None:
    """Remove the record of a move, or of all moves of a unit's models."""
    _write(unit, _without(unit, record))


def _without(unit: str, record: Optional[Record]) -> List[Record]:
    return [other for other in recorded(unit) if record is not None and other[:2] != record[:2]]


def _write(unit: str, records: List[Record]) -> None:
    path = move_record(unit)
    folder, name = os.path.split(path)
    if records:
        files.make_folders(folder)
        content = {"unit": unit, "moves": [record._asdict() for record in records]}
        files.write_whole(path, json.dumps(content).encode(), 0o600)
        return
    files.remove(path)
    files.remove(os.path.join(folder, ".%s.new" % name))
    with suppress(OSError):  # there is more in it
        os.rmdir(folder)


# --- who uses a store


def _others(store: str, unit: str, proc: str) -> List[str]:
    return [other for other in users_of(store, proc) if other != unit]


def users_of(store: str, proc: str = "/proc") -> List[str]:
    """The units, or else processes, of running servers with this store.

    Any user may start a process that claims to be one; that keeps models from being moved, and does nothing else.

    :raises StepError: a process keeps whoever inspects it waiting.
    """
    return list(with_rights_of("root", lambda: _users_of(store, proc)))


def _users_of(store: str, proc: str) -> List[str]:
    from ..gpu.processes import unit_of

    found = set()
    for pid in filter(str.isdigit, os.listdir(proc)):
        try:
            with open("%s/%s/comm" % (proc, pid), encoding="utf-8", errors="replace") as comm:
                if comm.read().strip() != "ollama":
                    continue
            with open("%s/%s/environ" % (proc, pid), encoding="utf-8", errors="surrogateescape") as environ:
                variables = dict(item.partition("=")[::2] for item in environ.read().split("\0"))
        except OSError:
            continue
        path = variables.get("OLLAMA_MODELS") or os.path.join(variables.get("HOME", "/"), ".ollama", "models")
        if _same(path, store):
            found.add(unit_of(int(pid), os.path.dirname(proc)) or "process %s" % pid)
    return sorted(found)
