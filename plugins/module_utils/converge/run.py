# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Converges one systemd unit to its declared state and proves it on the running process, or puts everything back."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, List, Optional, Sequence

from ..systemd.manager import ManagerError, System
from ..toolbox.errors import Failed, Refused
from ..toolbox.fields import replace
from . import report
from .atomic import explain
from .model import Change, Fault, Gate, Outcome, ServiceError, Step, StopHooks, Verdict
from .observe import Observed, observe, reread
from .override import DROP_IN, Override, checked
from .plan import Plan, plan, shadow_verdict, shadows, with_remedy
from .proof import Proof, Proven
from .switch import Switch

if TYPE_CHECKING:
    from .undo import Done


def converge(
    change: Change,
    *,
    gate: Optional[Gate] = None,
    steps: Sequence[Step] = (),
    hooks: Optional[StopHooks] = None,
    check_mode: bool = False,
    system: Optional[System] = None,
) -> Outcome:
    """Converge ``change.unit`` to its declared state and prove it on the running process.

    What is declared is compared with the unit's files and with the running process. Files are written only where they
    differ, systemd is reloaded only when it has to read them, and the unit is restarted only when a value that its
    process has differs from the one in force, or when the gate finds that a restart may fix a unit that is in its
    declared state.

    :param gate: proves the running process.
    :param steps: what must change together with the unit.
    :param hooks: what has to happen around a stop.
    :param check_mode: run the same code up to the first write.
    :param system: the seam to systemd; tests pass a fake one.
    :raises ServiceError: the previous state is back, or the message says what of it is not.
    """
    system = system or System()
    try:
        name = checked(change)
        with nullcontext() if check_mode else system.lock(name, change.timeout):
            needed = [step for step in steps if step.needed()]
            observed, override = observe(system, name, change, needed)
            switch = Switch(system, change, hooks, observed)
            proof = Proof(override, gate, change, switch)
            run = _Run(change, needed, observed, override, plan(observed, override, change, bool(hooks)), switch, proof)
            return run.go(check_mode)
    except (Refused, ManagerError) as error:
        raise _refused(str(error), str(error)) from error
    except OSError as error:
        raise _refused(explain(error)) from error


def _refused(message: str, found: str = "") -> ServiceError:
    return ServiceError("%s (nothing was changed)" % message, Outcome(verdict=Verdict("refused", found)))


class _Run:
    """One run, once it is planned: refuses it, or does it, proves it, and keeps it or puts it back."""

    def __init__(
        self,
        change: Change,
        steps: List[Step],
        observed: Observed,
        override: Override,
        planned: Plan,
        switch: Switch,
        proof: Proof,
    ) -> None:
        self.change = change
        self.steps = steps
        self.observed = observed
        self.override = override
        self.plan = planned
        self.switch = switch
        self.proof = proof
        self.outcome = report.predict(planned, observed, override)

    def go(self, check_mode: bool) -> Outcome:
        """Do what is planned; where nothing is started, prove what runs, and plan what may fix it."""
        self._refuse()
        as_is = not (self.plan.action or self.plan.steps) if check_mode else not self.plan.commands
        fault = self._fault_of_unchanged() if as_is else None
        if fault:  # in check mode, a run would put its change back
            raise self._failed(fault.verdict, fault.invocation, report.Undone())
        if self.plan.commands and not check_mode:
            umask = os.umask(0o022)  # a service's user has to read what is created, whatever sudo or PAM has set
            try:
                self._do()
            finally:
                os.umask(umask)
        self.outcome.warnings += self.switch.warnings
        self.outcome.unit_state = report.unit_state(self.switch.state)
        return self.outcome

    # --- before anything is written

    def _refuse(self) -> None:
        """Raise where this run must not begin."""
        if self.plan.refusal:
            raise report.refused(self.plan, self.observed, self.plan.refusal)
        self._ask_checks()
        override, unit = self.override, self.plan.unit
        content = {file.path: file.content for file in self.plan.files}.get(override.drop_in)
        if content and self.change.settings and not self.steps:  # before the steps systemd may not know the unit yet
            ignored = self.switch.system.verify(unit, DROP_IN, content)
            if ignored:
                raise Refused("%s: systemd would ignore what is declared in settings: %s" % (unit, "; ".join(ignored)))

    def _ask_checks(self) -> None:
        """Raise where the caller does not want the unit as it will be, or no change now."""
        change, why = self.change, None
        if change.unit_check and change.state == "present":
            why = change.unit_check(self.observed.planned.unit)
        if not why and change.pre_change_check and self.plan.commands:
            why = change.pre_change_check()
        if why:
            raise Refused("%s: %s" % (self.plan.unit, why))

    def _fault_of_unchanged(self) -> Optional[Fault]:
        """What is wrong with a unit of which nothing is started, unless a remedy is planned for it."""
        try:
            self._note(self.proof.unchanged(self.observed))
            return None
        except Fault as error:
            fault = error
        if not self.proof.remedy(fault.verdict):
            return fault
        masked, verdict = self.override.masked, fault.verdict
        verdict = Verdict(verdict.name, masked(verdict.message), masked(verdict.evidence), verdict.remedy)
        self.plan = with_remedy(self.plan, verdict, bool(self.switch.hooks))
        self.outcome = replace(report.predict(self.plan, self.observed, self.override), verdict=verdict)
        return None

    # --- writing, starting, proving

    def _do(self) -> None:
        from .undo import Done

        done = Done(self.change, self.observed, self.plan, self.switch)
        try:
            done.write(self.steps)
            self._check_loaded()
            if self.plan.enabling:
                done.enable()
            self._switch_and_prove()
        except Exception as error:
            invocation = self._failed_invocation(error)
            undone = done.put_back()
            self._did(done)
            raise self._failed(_verdict_of(error), invocation, undone) from error
        except BaseException:
            done.put_back()
            raise
        self._did(done)
        self.change.accepted(self.outcome)
        try:
            done.files.finish()
        except OSError as error:
            self.outcome.warnings.append("left to the next run, as it could not be removed: %s" % explain(error))

    def _did(self, done: "Done") -> None:
        self.outcome.restarted, self.outcome.reloaded = self.switch.restarted, done.reloaded

    def _check_loaded(self) -> None:
        """systemd itself must have read what was written, before the running process is touched."""
        if self.change.state == "absent":
            return
        self.proof.loaded()
        if self.steps:
            self.observed = reread(self.observed, self.switch.system, self.override, self.switch.state)
            self.outcome.shadowed = shadows(self.observed, self.override)
            verdict = shadow_verdict(self.plan.unit, self.outcome.shadowed)
            if verdict:
                raise Fault.of(verdict)
            self._ask_checks()
        self.proof.has_read(self.observed)

    def _switch_and_prove(self) -> None:
        """Start, restart or stop the unit, and prove what runs then."""
        fault = None if self.plan.action else self._fault_of_unchanged()
        if fault:
            raise fault
        action, switch = self.plan.action, self.switch
        if not action:
            return
        running = switch.executed() if action == "proof" else switch.act(action)
        if running:
            self._note(self.proof.started(self.observed, running))
        if self.observed.up and action == "restart":
            self.outcome.downtime_ms = round((time.monotonic() - switch.since) * 1000)
        if running:
            environment = self.proof.stays(self.observed, running)
            self.outcome.environment = self.outcome.environment if environment is None else environment

    def _note(self, proven: Optional[Proven]) -> None:
        if proven:
            self.outcome.verdict, self.outcome.environment = proven

    # --- failing

    def _failed_invocation(self, error: Exception) -> str:
        """The invocation whose journal says why."""
        known = error.invocation if isinstance(error, Fault) else ""
        return known or (self.switch.invocation if self.switch.acted else "")

    def _failed(self, verdict: Verdict, invocation: str, undone: report.Undone) -> ServiceError:
        switch, unit = self.switch, self.plan.unit
        self.outcome.verdict = report.with_journal(verdict, switch.system, unit, invocation, self.override)
        try:
            switch.look()
        except ManagerError:
            pass  # the last known state is reported
        self.outcome.unit_state = report.unit_state(switch.state)
        return report.failure(self.outcome, unit, undone)


def _verdict_of(error: Exception) -> Verdict:
    if isinstance(error, Fault):
        return error.verdict
    if isinstance(error, OSError):
        return Verdict("not_written", explain(error))
    if isinstance(error, (Refused, Failed)):
        return Verdict("not_done", str(error))
    return Verdict("error", "%s: %s" % (type(error).__name__, error))
