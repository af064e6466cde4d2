# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The writes of a run: does them, remembers them, and puts them back."""

from __future__ import annotations

import time
from typing import Any, Callable, List, Optional, Tuple

from ..systemd.links import Links
from .atomic import Files, explain
from .model import Change, Fault, Step, StepError
from .observe import Observed
from .plan import Plan, enabled_as_declared
from .report import Undone
from .switch import ENDED, Switch


class Done:
    """What a run has done so far."""

    def __init__(self, change: Change, observed: Observed, planned: Plan, switch: Switch) -> None:
        self.change = change
        self.observed = observed
        self.planned = planned
        self.switch = switch
        self.system = switch.system
        self.files = Files(list(observed.wanted), self.system.root)
        self.links = Links(self.system.root)
        self.applied: List[Step] = []
        self.committed = False
        self.enabled = False
        self.reloaded = False

    def write(self, steps: List[Step]) -> None:
        """Apply the steps, put our files in place, and have systemd read them."""
        self.files.stage()
        for step in steps:
            self.applied.append(step)
            step.apply()
        with self.change.while_writing():
            self.committed = True
            self.files.commit()
        if self.planned.reload:
            self.reloaded = True
            self.system.reload()
            self.switch.look()

    def enable(self) -> None:
        """Enable or disable the unit, whichever is declared."""
        self.enabled = True
        system, unit, verb = self.system, self.planned.unit, self.planned.enabling[0]
        self.links.watch(lambda: (system.enable if self.change.enabled else system.disable)(unit))
        file_state = system.show(unit).get("UnitFileState", "")
        if file_state == "enabled-runtime" and not self.change.enabled:
            self.links.watch(lambda: system.disable(unit, runtime=True))
            file_state = system.show(unit).get("UnitFileState", "")
        if not enabled_as_declared(file_state, self.change):
            raise Fault(
                "not_enabled",
                "it is still %s after systemctl %s; check its [Install] section" % (file_state or "not enabled", verb),
            )

    def put_back(self) -> Undone:
        """Undo everything in reverse, as far as possible; raises nothing but what ends the program."""
        problems: List[str] = []
        remains: List[str] = []

        def attempt(what: str, undo: Callable[[], Any]) -> None:
            try:
                remains.extend(filter(None, [undo()]))
            except Exception as error:  # whatever a step may raise: the rest must still be rolled back
                problems.append("%s: %s" % (what, explain(error) if isinstance(error, OSError) else error))

        touched = bool(self.applied or self.enabled or (self.committed and self.files.unfinished()))
        attempt("files", self.files.undo if self.committed else self.files.discard)
        for step in reversed(self.applied):
            attempt(type(step).__name__, step.undo)
        if self.enabled:
            attempt(self.planned.enabling[0], self.links.undo)
        if touched:
            attempt("daemon-reload", self.system.reload)
        if self.enabled:
            attempt(self.planned.enabling[0], self._check_links)
        unit, down, downtime_ms = "", "", 0
        if self.switch.acted:
            try:
                unit, downtime_ms = self._put_unit_back()
            except Exception as error:
                down = str(error)
        return Undone(touched, tuple(problems), tuple(remains), unit, down, downtime_ms)

    def _check_links(self) -> None:
        """Raise StepError where undoing the links has not led back to what systemd said of them before."""
        before = self.observed.state.get("UnitFileState", "")
        now = self.system.show(self.planned.unit).get("UnitFileState", "")
        if now != before:
            raise StepError("it was %s, and is %s now" % (before or "not enabled", now or "not enabled"))

    def _put_unit_back(self) -> Tuple[str, int]:
        """Have the unit as it was before, running or not; gives Undone's ``unit`` and ``downtime_ms``."""
        switch = self.switch
        if self.planned.remedied:
            switch.look()
            if switch.state.get("ActiveState") == "active":
                return "kept", 0
        if self.planned.action == "reload" and not switch.reload():
            switch.look()
            if not switch.down:
                return "reloaded", 0
        self.system.reset_failed(self.planned.unit)
        if self.observed.failing:
            switch.stop()  # the new process may run, though it is not what was wanted
            switch.start()
            return "failing", 0
        if not self.observed.up:
            if not switch.down:
                switch.stop()
            return "stopped", 0
        failure = self._run_again()
        if failure:
            raise Fault("failed", failure)
        return "running", round((time.monotonic() - switch.since - self.change.settle) * 1000)

    def _run_again(self) -> Optional[str]:
        """Why the unit does not run as it did before, if it does not."""
        switch = self.switch
        failure, released = switch.restart()
        if not failure and not released.ok:  # it may still come up
            failure = switch.start()
        switch.look()
        if failure:
            return failure
        try:
            running = switch.executed()
        except Fault as error:
            return str(error)
        if running:
            return ENDED if running.process.ended_within(self.change.settle) else None
        return "it is %s" % switch.active if switch.down and switch.state.get("Type") != "oneshot" else None
