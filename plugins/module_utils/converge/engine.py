# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings one systemd unit to its declared state and proves it on the running process, or puts everything back."""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import compare
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.atomic import Files, Wanted, public
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import (
    Change,
    Fault,
    Gate,
    Outcome,
    Running,
    ServiceError,
    Step,
    StepError,
    StopHooks,
    Verdict,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.override import (
    DROP_IN,
    SECRET,
    Override,
    as_bytes,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd import render
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import (
    ManagerError,
    System,
    restarting,
    seconds,
    split_items,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import UnitError, merge, unit_name

__all__ = [
    "Change",
    "Fault",
    "Gate",
    "StopHooks",
    "Outcome",
    "Running",
    "ServiceError",
    "Step",
    "StepError",
    "Verdict",
    "converge",
]

DOWN = ("inactive", "failed")
ENABLED = ("enabled", "enabled-runtime")
NOTICES = 10  # seconds that a busy systemd may need to hear of a death
JOURNAL_LINES = 20
JOURNAL_WIDTH = 300  # characters of a line
REMEDIES = {
    errno.ENOSPC: "free space on its file system",
    errno.EDQUOT: "free space on its file system",
    errno.EROFS: "its file system is mounted read-only: find out why, and mount it writable",
    errno.EACCES: "run as root (become)",
    errno.EPERM: "run as root (become); if it was, look for chattr +i and for a container without the capability",
}


def converge(
    change: Change,
    *,
    gate: Optional[Gate] = None,
    steps: Sequence[Step] = (),
    hooks: Optional[StopHooks] = None,
    check_mode: bool = False,
    system: Optional[System] = None,
) -> Outcome:
    """Bring ``change.unit`` to its declared state and prove it on the running process.

    What is declared is compared with the unit's files and with the running process. Files are written only where they
    differ, systemd is reloaded only when it has to read them, and the unit is restarted only when a value that its
    process has differs from the one in force, or where the gate finds of a unit that is as declared that a restart may
    mend it. With ``check_mode`` the same code runs up to the first write.

    ``system`` is the seam to systemd; tests pass a fake one.

    Raises ServiceError after the former state is back, or saying what of it is not.
    """
    system = system or System()
    try:
        name = _checked(change)
        with _no_lock() if check_mode else system.lock(name, change.timeout):
            return _Convergence(change, name, gate, steps, hooks, check_mode, system).run()
    except (UnitError, ManagerError) as error:
        raise ServiceError(
            "%s (nothing was changed)" % error, Outcome(verdict=Verdict("refused", str(error)))
        ) from error
    except OSError as error:
        raise ServiceError("%s (nothing was changed)" % _explain(error), Outcome(verdict=Verdict("refused"))) from error


@contextmanager
def _no_lock() -> Iterator[None]:
    yield


def _checked(change: Change) -> str:
    """The unit's full name; UnitError when something that is declared cannot be carried out."""
    name = unit_name(change.unit)
    if change.state == "absent":
        return name
    both = sorted(set(change.environment) & set(change.secret_environment))
    if both:
        raise UnitError("%s is declared both as environment and as secret_environment: leave one out" % ", ".join(both))
    variables = dict(change.environment, **change.secret_environment)
    if (variables or change.credentials) and not name.endswith(".service"):
        raise UnitError("%s is no service: only a service is given environment and credentials" % name)
    render.check_environment(variables)
    render.check_settings(change.settings)
    render.check_credentials(change.credentials)
    return name


def _explain(error: OSError) -> str:
    remedy = REMEDIES.get(error.errno or 0)
    where = " %s" % error.filename if error.filename else ""
    return "cannot change%s: %s%s" % (where, error.strerror, ": " + remedy if remedy else "")


class _Failed(Exception):
    """What made the change fail."""

    def __init__(self, name: str, message: str, **evidence: Any) -> None:
        super().__init__(message)
        self.verdict = Verdict(name, message, evidence)
        self.invocation = ""
        """The invocation that failed, if there was one."""


class _Convergence:
    """One run of :func:`converge`: read, plan, and unless there is nothing to do, act and prove."""

    def __init__(
        self,
        change: Change,
        name: str,
        gate: Optional[Gate],
        steps: Sequence[Step],
        hooks: Optional[StopHooks],
        check_mode: bool,
        system: System,
    ) -> None:
        self.change = change
        self.gate = gate
        self.hooks = hooks
        self.check_mode = check_mode
        self.system = system
        self.outcome = Outcome()
        self.present = change.state == "present"

        self.state = system.show(name)
        # a drop-in belongs beside the unit's own name, not beside an alias
        self.name = self.state["Id"] if self.state.get("LoadState") == "loaded" else name
        self.override = Override(self.name, change)
        self.steps = [step for step in steps if step.needed()]
        self.applied: List[Step] = []
        self._compare(self.override.wanted(system.names(self.override.credential_directory)))
        self.unfinished = self.files.unfinished()
        self.by_others = False
        """All that is declared is in force already, by files that are not ours."""
        self.looping = ""
        """The invocation that ended after systemd had restarted the unit itself."""
        self.committed = False
        self.links: Any = None
        self.acted = False
        self.stopped_at = 0.0

    def _compare(self, wanted: List[Wanted]) -> None:
        """What of our files is to be written or removed."""
        self.files = Files(wanted, self.system.root)
        self.rewritten = self.files.changes()
        self.rubbish = self.files.rubbish()
        self.drop_in_changes = self.override.drop_in in [file.path for file in self.rewritten]

    # --- reading and planning ----------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        self._refuse_unusable()
        self._await_restart()
        self.was_failing = bool(self.looping) or restarting(self.state)
        # one that is just starting is as much wanted as one that runs
        up = self.state.get("ActiveState") not in (*DOWN, "deactivating")
        self.was_up = (up or self.change.was_up) and not self.was_failing
        self._read()
        self._leave_unwritten()
        self._plan()
        self._describe()
        self._refuse_shadowed()
        self._refuse_by_checks()
        if self.present and self.change.settings and self.drop_in_changes:
            self._refuse_ignored()
        foretell = self.check_mode and not (self.action or self.steps)
        if foretell or not self.outcome.changed:
            self._prove_unchanged()
        if self.outcome.changed and not self.check_mode:
            umask = os.umask(0o022)  # what is made is for a service's user to read, whatever sudo or PAM has set
            try:
                self._act()
            finally:
                os.umask(umask)
        self.outcome.unit_state = _unit_state(self.state)
        return self.outcome

    def _refuse_unusable(self) -> None:
        load, file_state = self.state.get("LoadState"), self.state.get("UnitFileState")
        if not self.present:
            return
        if load == "masked":
            raise UnitError(
                "%s is masked: someone has made it impossible to start; systemctl unmask it first" % self.name
            )
        if load == "not-found" and not self.steps:
            raise UnitError("there is no unit %s on this host: install it first, or correct the name" % self.name)
        if self.state.get("Transient") == "yes":
            raise UnitError(
                "%s is transient: it has no unit file, and is gone once it stops; make a unit file for it" % self.name
            )
        installed = self.steps or "Install" in self.change.settings
        if self.change.enabled and not installed and file_state in ("static", "generated"):
            raise UnitError(
                "%s cannot be enabled: it is %s, as it has no [Install] section of its own" % (self.name, file_state)
            )

    def _await_restart(self) -> None:
        """See how a restart ends that systemd is just making by itself: one death is no crash loop, the next one is.

        A unit that ends again is noted as looping, long before the time is up that it has for its start.
        """
        if not self._ends():
            return
        first, until = self.state.get("InvocationID"), time.monotonic() + self.change.timeout
        while self._ends() and self.state.get("InvocationID") == first and time.monotonic() < until:
            # systemd sends no signal when it restarts a unit: its state is polled until the deadline
            time.sleep(0.05)
            self.state = self.system.show(self.name)
        invocation, pid = self.state.get("InvocationID", ""), int(self.state.get("MainPID") or 0)
        if invocation == first:
            return
        if self._ends() or (pid and self.system.process(pid).ended_within(self.change.settle)):
            self.looping = invocation
            self.state = self._noticed()

    def _read(self) -> None:
        """Merge the unit as it lies on the disk, and as it will with our files."""
        names = [self.name, *(name for name in split_items(self.state.get("Names", "")) if name != self.name)]
        files = self.system.load(names)
        fragment = files[0][0] if files and not files[0][0].endswith(".conf") else ""
        self.specifiers = self.system.specifiers(self.name, fragment)
        self.now = self._view(files, self.system.environment_files)
        self.planned = self._view(self._with_drop_in(files), self._planned_environment_files)
        pid = int(self.state.get("MainPID") or 0)
        self.environ = self.system.environ(pid) if pid else None
        self.running = self.environ or None  # it is unknown where the program has written over it
        secret = self.override.secret_environment
        for view in (self.now, self.planned):  # what a secret replaces is one, too, wherever it stands
            for name, value in view.environment.items():
                if name in secret or value.path == self.override.secret_file:
                    self.override.hide([value.text or ""])
        self.override.hide((self.running or {}).get(name, "") for name in secret)

    def _leave_unwritten(self) -> None:
        """Write no drop-in where others' files have put all that is declared in force: such a host is as declared.

        Sections that only tell something (X-) do not make a difference to the service.
        """
        override = self.override
        plain = all(section.startswith("X-") for section in override.settings)  # no secrets among them either
        there = self.files.read(override.drop_in) is not None
        if there or not plain or not override.environment or self.unfinished or self.steps:
            return
        if all(self.now.text(name) == text for name, text in override.environment.items()):
            self.by_others = True
            others = [file for file in self.files.wanted if file.path != override.drop_in]
            self._compare([*others, Wanted(override.drop_in, None)])
            self.planned = self.now

    def _with_drop_in(self, files: List[Tuple[str, bytes]]) -> List[Tuple[str, bytes]]:
        """``files`` with our drop-in as wanted, in its place among the drop-ins."""
        content = self.override.content(self.override.drop_in)
        found = [file for file in files if file[0] != self.override.drop_in]
        if content is not None:
            # of two files with one name, the one in our directory counts
            found = [file for file in found if os.path.basename(file[0]) != DROP_IN]
            found.append((self.override.drop_in, content))
        fragment = [file for file in found if not file[0].endswith(".conf")]
        drop_ins = [file for file in found if file[0].endswith(".conf")]
        return fragment + sorted(drop_ins, key=lambda file: os.path.basename(os.fsencode(file[0])))

    def _planned_environment_files(self, pattern: str) -> List[Tuple[str, bytes]]:
        if pattern != self.override.secret_pattern:
            return list(self.system.environment_files(pattern))
        content = self.override.content(self.override.secret_file)
        return [] if content is None else [(self.override.secret_file, content)]

    def _view(self, files: List[Tuple[str, bytes]], read_files: Any) -> compare.View:
        unit = merge(files)
        inherited = self.system.inherited() if unit.in_force("Service", "PassEnvironment") else {}
        return compare.View(unit, unit.environment(self.specifiers, read_files, inherited))

    def _plan(self) -> None:
        """Decide what is to be done; the reasons for a restart are part of the outcome."""
        outcome = self.outcome
        active = self.state.get("ActiveState", "inactive")
        declared = self.override.variables
        reasons = outcome.reasons
        if self.change.restart:
            reasons.append(self.change.restart)
        if self.unfinished:
            reasons.append("an earlier run was interrupted before it could prove its change")
        changed = compare.changed_variables(self.now, self.planned)
        if changed:
            reasons.append("the value in force changes: %s" % ", ".join(changed))
        settings = compare.changed_settings(self.now, self.planned)
        if settings:
            reasons.append("settings in force change: %s" % ", ".join(settings))
        files = [file.path for file in self.rewritten if file.path in self.override.files]
        if files:
            reasons.append("files that it reads change: %s" % ", ".join(files))
        reasons += ["%s" % type(step).__name__ for step in self.steps if step.restarts]
        stale: List[str] = []
        if self.running is not None:
            stale += compare.stale(sorted({*declared} - {*changed}), self.planned, self.running)
        if self.environ is not None:
            stale += ["credential %s" % name for name in self._wrong_credentials(self.environ)]
        if stale:
            reasons.append("the running process has other values: %s" % ", ".join(stale))
        loaded_is_old = self._loaded_is_old()
        if self.was_failing and loaded_is_old:
            reasons.append("it is failing, and systemd has not read its files yet")
        outcome.drift = compare.drift(sorted({*declared, *changed}), declared, self.now, self.running, self._hide)

        # what to do with the unit
        self.action: Optional[str] = None
        if self.change.started is False and self.present:
            self.action = None if active in DOWN else "stop"
        elif reasons and active not in DOWN:
            self.action = "restart"
        elif self.change.started and self.present and active in DOWN:
            self.action = "start"
        if self.action != "restart":
            reasons.clear()
        self.file_state = self.state.get("UnitFileState", "")
        self.enabling: Optional[str] = None
        if self.present and self.change.enabled is not None and not self._is_enabled_as_declared(self.file_state):
            self.enabling = "enable" if self.change.enabled else "disable"
        self.reload = bool(self.drop_in_changes or self.steps or self.unfinished or loaded_is_old)
        outcome.changed = bool(
            self.rewritten
            or self.rubbish
            or self.steps
            or self.reload
            or self.action
            or self.enabling
            or self.unfinished
        )
        outcome.restarted = self.action == "restart"
        outcome.reloaded = self.reload
        outcome.warnings += ["systemd stops reading at %s" % place for place in self.now.unit.broken]

    def _is_enabled_as_declared(self, file_state: Optional[str]) -> bool:
        """What is enabled until the next boot only is neither enabled nor disabled."""
        return file_state == "enabled" if self.change.enabled else file_state not in ENABLED

    def _loaded(self) -> Dict[str, str]:
        """The variables of ``Environment=`` as systemd has read them."""
        return dict(item.split("=", 1) for item in split_items(self.state.get("Environment", "")))

    def _loaded_is_old(self) -> bool:
        """Whether systemd has not yet read what lies on the disk."""
        if self.state.get("LoadState") != "loaded":
            return False
        # because of a broken file systemd would say so for ever
        if self.state.get("NeedDaemonReload") == "yes" and not self.now.unit.broken:
            return True
        return not self.by_others and bool(self._not_loaded())

    def _not_loaded(self) -> List[str]:
        """Declared variables that systemd has not read from ``Environment=`` as they are declared."""
        loaded = self._loaded()
        return [name for name, text in sorted(self.override.environment.items()) if loaded.get(name) != text]

    def _hide(self, name: str, text: Optional[str]) -> Optional[str]:
        """Hide a variable's value unless it is declared as plain, or stands in a file that everybody may read.

        An undeclared variable from an environment file is always hidden: people keep secrets there. Where a process
        got another value from is unknown: it is shown if that in force may be shown, or the process was started by us.
        """
        declared = self.override.environment.get(name)
        if text is None or text == declared:
            return text
        if name in self.override.secret_environment:
            return SECRET
        units = {file.path for view in (self.now, self.planned) for file in view.unit.files}
        found = [view.environment[name] for view in (self.now, self.planned) if name in view.environment]
        shown = {
            value.text: (declared is not None or value.path in units)
            and (value.text == declared or public(value.path, self.system.root))
            for value in found
        }
        in_force = self.now.text(name)
        harmless = all(shown.values()) and (self.acted or (in_force is not None and not self.unfinished))
        return text if shown.get(text, harmless) else SECRET

    def _refuse_shadowed(self) -> None:
        """Stop when another file has the last word on something that is declared."""
        outcome, override = self.outcome, self.override
        unset = self.planned.unit.unset(self.specifiers)
        outcome.shadowed = compare.shadows(
            override.variables, override.settings, self.planned, unset, override.drop_in, self._hide
        )
        if outcome.shadowed:
            said = "; ".join(compare.say(shadow) for shadow in outcome.shadowed)
            outcome.verdict = Verdict("shadowed", said, {"shadowed": outcome.shadowed})
            outcome.changed = outcome.restarted = outcome.reloaded = False
            raise ServiceError(
                "%s: what is declared would not be in force: %s. Take it out there, or out of the inventory"
                " (nothing was changed)" % (self.name, said),
                outcome,
            )

    def _refuse_by_checks(self) -> None:
        """Stop when those above object to the unit as it will be."""
        why = self.change.unit_check(self.planned.unit) if self.change.unit_check and self.present else None
        if not why and self.change.pre_change_check and self.outcome.changed:
            why = self.change.pre_change_check()
        if why:
            raise UnitError("%s: %s" % (self.name, why))

    def _refuse_ignored(self) -> None:
        """Stop when systemd would ignore one of the settings; before the steps it may not know the unit yet."""
        content = self.override.content(self.override.drop_in)
        ignored = self.system.verify(self.name, DROP_IN, content) if content and not self.steps else []
        if ignored:
            raise UnitError(
                "%s: systemd would ignore what is declared in settings: %s" % (self.name, "; ".join(ignored))
            )

    def _describe(self) -> None:
        """The difference, for a person."""
        before: List[str] = []
        after: List[str] = []
        for file in self.rewritten:
            old, old_mode = self.files.read(file.path), self.files.mode(file.path)
            if old is not None:
                before += ["# %s, mode %04o" % (file.path, old_mode), self.override.shown(file.path, old)]
            if file.content is not None:
                after += ["# %s, mode %04o" % (file.path, file.mode), self.override.shown(file.path, file.content, old)]
        before += ["# %s, left by an interrupted run" % path[len(self.system.root) :] for path in self.rubbish]
        for step in self.steps:
            difference = step.diff()
            before.append(difference["before"])
            after.append(difference["after"])
        if self.enabling:
            before.append("enabled: %s" % ("no" if self.change.enabled else "yes"))
            after.append("enabled: %s" % ("yes" if self.change.enabled else "no"))
        if self.action and self.action != "proof":
            before.append("active: %s" % self.state.get("ActiveState"))
            after.append("active: %s" % {"stop": "inactive", "start": "active"}.get(self.action, "active, restarted"))
        if self.outcome.remedied:
            before.append("proof: %s" % self.outcome.remedied)
            after.append("proof: ok")
        if before != after:
            self.outcome.diff = {
                "before": self.override.masked("".join(text.rstrip("\n") + "\n" for text in before)),
                "after": self.override.masked("".join(text.rstrip("\n") + "\n" for text in after)),
                "before_header": self.name,
                "after_header": self.name,
            }
        self._report_environment(self.running or {})
        self.outcome.unit_state = _unit_state(self.state)

    def _report_environment(self, environ: Mapping[str, str]) -> None:
        """Put the declared variables as a process has them into the outcome."""
        self.outcome.environment = {
            name: self._hide(name, environ[name]) or "" for name in self.override.variables if name in environ
        }

    # --- acting ------------------------------------------------------------------------------------------------------

    def _act(self) -> None:
        self.outcome.restarted = self.outcome.reloaded = False
        try:
            self.files.stage()
            for step in self.steps:
                self.applied.append(step)
                step.apply()
            with self.change.while_writing():
                self.committed = True
                self.files.commit()
            if self.reload:
                self.outcome.reloaded = True
                self.system.reload()
                self.state = self.system.show(self.name)
            self._check_loaded()
            if self.enabling:
                self._enable()
            self._switch()
        except Exception as error:
            self._roll_back(error)
        except BaseException:
            self._put_back()
            raise
        try:
            self.files.finish()
        except OSError as error:
            self.outcome.warnings.append("left to the next run, as it could not be removed: %s" % _explain(error))

    def _check_loaded(self) -> None:
        """systemd itself must have read what we meant, before the running process is touched."""
        if not self.present:
            return
        if self.state.get("LoadState") != "loaded":
            raise _Failed(
                "not_loaded",
                "systemd does not load it (%s): %s" % (self.state.get("LoadState"), self.state.get("LoadError")),
            )
        if self.steps:
            self._read()
            self._refuse_shadowed()
            self._refuse_by_checks()
        wrong = [] if self.by_others else self._not_loaded()
        if wrong:
            raise _Failed("not_loaded", "systemd has read other values than were written: %s" % ", ".join(wrong))

    def _enable(self) -> None:
        """Enable or disable the unit, as declared."""
        from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.links import Links

        self.links, system = Links(self.system.root), self.system
        self.links.watch(lambda: (system.enable if self.change.enabled else system.disable)(self.name))
        file_state = system.show(self.name).get("UnitFileState")
        if file_state == "enabled-runtime" and not self.change.enabled:
            self.links.watch(lambda: system.disable(self.name, runtime=True))
            file_state = system.show(self.name).get("UnitFileState")
        if not self._is_enabled_as_declared(file_state):
            raise _Failed(
                "not_enabled", "after systemctl %s it is %s: has it an [Install] section?" % (self.enabling, file_state)
            )

    def _refuse_other_links(self) -> None:
        """Raise StepError where undoing the links has not led back to what systemd said of them before."""
        now = self.system.show(self.name).get("UnitFileState", "")
        if now != self.file_state:
            raise StepError("it was %s, and is %s now" % (self.file_state or "not enabled", now or "not enabled"))

    def _switch(self) -> None:
        """Start, restart or stop the unit, and prove what runs then."""
        if not self.action:
            self._prove_unchanged()
        if not self.action:
            return
        if self.action == "proof":
            running = self._executed()
            if running:
                self._prove(running, changed=True)
                self._check_same(running)
            return
        former = self.state.get("InvocationID")
        if self.action != "start":
            self._let_requests_end()
        self.system.reset_failed(self.name)  # systemd counts regular starts, too, into StartLimitBurst=
        self.acted = True
        self.stopped_at = time.monotonic()
        if self.action == "restart":
            failure, released = self._restart()
            if not released.ok:
                raise _Failed(released.name, released.message, **released.evidence)
        elif self.action == "start":
            failure = self.system.start(self.name, self.change.timeout)
        else:
            failure = self.system.stop(self.name, self._stop_limit())
        self.outcome.restarted = self.action == "restart"
        self.state = self.system.show(self.name)
        if self.action == "stop":
            if self.state.get("ActiveState") not in DOWN:
                raise _Failed("not_stopped", "it is %s after systemctl stop: %s" % (_active(self.state), failure))
            released = self.hooks.after_stop() if self.hooks else Verdict("ok")
            if not released.ok:
                self.outcome.warnings.append(released.message)
            return
        if failure or self.state.get("InvocationID") == former:
            raise self._fault(failure or "systemd did not start it anew", former)
        running = self._executed()
        if running:
            self._prove(running, changed=True)
        elif self.state.get("ActiveState") in DOWN and self.state.get("Type") != "oneshot":
            raise self._fault("it is not running", former)
        if self.was_up:
            self.outcome.downtime_ms = round((time.monotonic() - self.stopped_at) * 1000)
        if running and not self.gate and running.process.ended_within(self.change.settle):
            raise self._fault("its main process ended", invocation=running.invocation_id)
        if running:
            self._check_same(running)

    def _let_requests_end(self) -> None:
        """Let the process that is about to be stopped hand over what it is doing, if it is there at all."""
        try:
            running = self._executed() if self.hooks and int(self.state.get("MainPID") or 0) else None
        except _Failed:
            return
        if running and self.hooks:
            self.hooks.before_stop(running)

    def _restart(self) -> Tuple[Optional[str], Verdict]:
        """What went wrong with the restart, and what was found between stop and start; upon that nothing is started."""
        if not self.hooks:
            if self.was_failing:  # else a restart by systemd in just this moment could be taken for ours
                self.system.stop(self.name, self._stop_limit())
            return self.system.restart(self.name, self._stop_limit(), self.change.timeout), Verdict("ok")
        failure = self.system.stop(self.name, self._stop_limit())
        released = self.hooks.after_stop()
        if failure or not released.ok:
            return failure, released
        return self.system.start(self.name, self.change.timeout), released

    def _stop_limit(self) -> float:
        """Seconds after which systemd itself kills what does not stop, and a little."""
        return (seconds(self.state.get("TimeoutStopUSec", "")) or self.change.timeout) + 5

    def _executed(self) -> Optional[Running]:
        """The running invocation once its main process is executed; None for a unit without one."""
        until = time.monotonic() + self.change.timeout
        while self._precedes():
            if time.monotonic() > until:
                raise self._fault("its main process was not started within %d s" % self.change.timeout)
            # systemd sends no word when ExecStartPre= has ended
            time.sleep(0.05)
            self.state = self.system.show(self.name)
        pid, invocation = int(self.state.get("MainPID") or 0), self.state.get("InvocationID", "")
        if not pid:
            if self._ends():
                raise self._fault("its main process ended", invocation=invocation)
            return None
        process = self.system.process(pid)
        started = int(self.state.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
        deadline = (max(started, self.stopped_at) if self.acted else time.monotonic()) + self.change.timeout
        environ = self.system.environ(pid)
        while environ is None or environ.get("INVOCATION_ID", invocation) != invocation:
            if process.ended_within(0.005):
                raise self._fault("its main process ended", invocation=invocation)
            if time.monotonic() > deadline:
                raise self._fault("its main process was not executed within %d s" % self.change.timeout)
            environ = self.system.environ(pid)
        return Running(
            unit=self.name,
            main_pid=pid,
            invocation_id=invocation,
            environ=environ,
            started_monotonic=started,
            deadline=deadline,
            control_group=self.state.get("ControlGroup", ""),
            process=process,
            system=self.system,
        )

    def _precedes(self) -> bool:
        """Whether the unit is about to have a main process: its ExecStartPre= runs."""
        starts = self.state.get("ActiveState") == "activating" and not restarting(self.state)
        return starts and not int(self.state.get("MainPID") or 0)

    def _ends(self) -> bool:
        """Whether the main process has ended though the unit is not down: its ExecStopPost= runs, or RestartSec=."""
        return restarting(self.state) or self.state.get("ActiveState") == "deactivating"

    def _prove(self, running: Running, changed: bool) -> None:
        """The process must have what is declared, and the gate must find nothing wrong."""
        self._prove_environment(running, running.environ)
        if self.gate:
            verdict = self.gate(running, changed)
            self.outcome.verdict = verdict
            if not verdict.ok:
                failed = _Failed(verdict.name, verdict.message)
                failed.verdict = verdict
                raise failed

    def _prove_environment(self, running: Running, environ: Mapping[str, str]) -> None:
        wrong = []
        for name, text in sorted(self.override.variables.items()) if environ else ():
            if name not in environ:
                wrong.append("%s is missing" % name)
            elif environ[name] != text:
                shown = self._hide(name, environ[name]), self._hide(name, text)
                wrong.append("%s is %r, expected %r" % (name, *shown))
        for name in self._wrong_credentials(environ):
            wrong.append(
                "credential %s is not what was declared, or missing (in a container, / must be a shared mount)" % name
            )
        if wrong:
            raise _Failed(
                "unproven",
                "the running process %d does not have what is declared: %s. Its ExecStart= may be changing it"
                % (running.main_pid, "; ".join(wrong)),
            )
        self._report_environment(environ)

    def _wrong_credentials(self, environ: Mapping[str, str]) -> List[str]:
        """The declared credentials that the main process does not see as they are declared."""
        pid = int(self.state["MainPID"])
        environ = environ or {"CREDENTIALS_DIRECTORY": "/run/credentials/" + self.name}
        return [
            name
            for name, text in sorted(self.override.credentials.items())
            if self.system.credential(pid, environ, name) != as_bytes(text)
        ]

    def _check_same(self, running: Running) -> None:
        """The invocation that was proven must be the one that goes on running."""
        self.state = self.system.show(self.name)
        same = self.state.get("InvocationID") == running.invocation_id
        if not same or self.state.get("ActiveState") in DOWN or self._ends():
            raise self._fault("its main process ended", invocation=running.invocation_id)
        # what was started first may since have executed the program itself, in an environment of its own making;
        # where the invocation is not in it, the program has written its title over it
        now = self.system.environ(running.main_pid) or {}
        if now.get("INVOCATION_ID") == running.invocation_id:
            self._prove_environment(running, now)

    def _prove_unchanged(self) -> None:
        """Nothing was started: what runs must be as declared, and a unit that should run must not be failing."""
        active = self.state.get("ActiveState")
        if self.present and self.state.get("LoadState") != "loaded":
            failed = _Failed("not_loaded", "systemd does not load it: %s" % self.state.get("LoadError"))
        elif self.present and (self._ends() or self.looping):
            failed = self._fault("its main process ended", invocation=self.looping or None)
        elif self.present and self.change.started is not False and active not in DOWN:
            try:
                running = self._executed()
                if running:
                    self._prove(running, changed=False)
                return
            except _Failed as error:
                failed = error
        else:
            return
        if self._remedies(failed.verdict):
            return
        if self.outcome.changed and not self.check_mode:
            raise failed
        self.outcome.changed = self.outcome.reloaded = False  # foretold is that it would be taken back
        self._report(failed.verdict, ["Nothing was changed."], failed.invocation)

    def _remedies(self, verdict: Verdict) -> bool:
        """Plan what may mend a unit that is as declared, and does not do what it should all the same."""
        if not (verdict.remedy and self.change.started):
            return False
        why = self.change.pre_change_check() if self.change.pre_change_check else None
        if why:
            verdict.message += "; this run cannot mend it: %s" % why
            return False
        outcome, self.action = self.outcome, verdict.remedy
        verdict.evidence, verdict.message = (
            self.override.masked(verdict.evidence),
            self.override.masked(verdict.message),
        )
        outcome.reasons.append("%s: %s" % (verdict.name, verdict.message))
        if self.check_mode or not outcome.changed:  # foretold; acting tells what was done
            outcome.restarted = self.action == "restart"
        if not outcome.changed:  # else it is part of a change, and taken back with it
            outcome.remedied, outcome.changed = verdict.name, True
            self._describe()
        return True

    # --- failing -----------------------------------------------------------------------------------------------------

    def _fault(self, what: str, former: Optional[str] = None, invocation: Optional[str] = None) -> _Failed:
        """What systemd says of a unit that did not come up."""
        self.state = state = self._noticed()
        result, status = state.get("Result", ""), state.get("ExecMainStatus", "0")
        restarts = int(state.get("NRestarts") or 0)
        ended = {"1": "exited with status %s", "2": "was killed by signal %s", "3": "dumped core on signal %s"}
        how = ended.get(state.get("ExecMainCode", ""), "")
        name = "failed"
        if restarting(state) or restarts or result == "start-limit-hit":
            name = "crash_loop"
        elif result == "timeout" or (state.get("ActiveState") not in DOWN and not how):
            name = "timeout"
        message = [what]
        if how:
            message.append("the main process " + how % status + (" (cannot be executed)" if status == "203" else ""))
        message.append("Result=%s, %s" % (result, _active(state)))
        if name == "crash_loop":
            message.append("systemd goes on restarting it")
        failed = _Failed(
            name,
            "; ".join(message),
            result=result,
            exec_main_status=int(status) if status.isdigit() else None,
            n_restarts=restarts,
            active_state=state.get("ActiveState"),
            sub_state=state.get("SubState"),
        )
        invocation = invocation or state.get("InvocationID", "")
        failed.invocation = invocation if invocation != former else ""
        return failed

    def _noticed(self) -> Dict[str, str]:
        """The unit's state once systemd knows that its main process has ended, if it has."""
        until = time.monotonic() + NOTICES
        while True:
            state = self.system.show(self.name)
            pid = int(state.get("MainPID") or 0)
            if not pid or self.system.process(pid).alive() or time.monotonic() > until:
                return state
            # systemd hears of the death a moment after the kernel knows
            time.sleep(0.02)

    def _roll_back(self, error: Exception) -> None:
        """Put everything back and raise what happened."""
        if isinstance(error, _Failed):
            verdict = error.verdict
        elif isinstance(error, ServiceError):
            verdict = error.outcome.verdict
        elif isinstance(error, OSError):
            verdict = Verdict("not_written", _explain(error))
        elif isinstance(error, (ManagerError, StepError, UnitError)):
            verdict = Verdict("not_done", str(error))
        else:
            verdict = Verdict("error", "%s: %s" % (type(error).__name__, error))
        invocation = error.invocation if isinstance(error, _Failed) else ""
        if self.acted and not invocation:
            invocation = self.state.get("InvocationID", "")
        self._report(verdict, self._put_back(), invocation, error)

    def _put_back(self) -> List[str]:
        """Undo what was done, as far as it goes; sentences that say what was and what was not."""
        said: List[str] = []
        problems: List[str] = []
        remains: List[str] = []

        def attempt(what: str, undo: Callable[[], Any]) -> None:
            try:
                remains.extend(filter(None, [undo()]))
            except Exception as error:  # whatever a step may raise: the rest must still be put back
                problems.append("%s: %s" % (what, _explain(error) if isinstance(error, OSError) else error))

        if not self.committed and not self.applied:
            attempt("files", self.files.discard)
            self.outcome.changed = bool(problems)
            return ["PUTTING BACK FAILED: %s." % "; ".join(problems)] if problems else ["Nothing was changed."]
        if self.outcome.remedied and not self.acted:
            self.outcome.changed = False
            return ["Nothing was changed."]
        touched = bool(self.applied or self.links or self.files.unfinished())
        attempt("files", self.files.undo if self.committed else self.files.discard)
        for step in reversed(self.applied):
            attempt(type(step).__name__, step.undo)
        if self.links:
            attempt(self.enabling or "", self.links.undo)
        if touched:
            attempt("daemon-reload", self.system.reload)
        if self.links:
            attempt(self.enabling or "", self._refuse_other_links)
        down = ""
        if self.acted:
            try:
                said.append(self._run_former())
            except Exception as error:
                down = str(error)
        self.outcome.rolled_back = not (problems or down or self.outcome.remedied)
        self.outcome.changed = bool(remains) or not self.outcome.rolled_back
        if problems:
            said.insert(0, "PUTTING BACK THE FORMER STATE FAILED: %s." % "; ".join(problems))
        elif down:
            said.insert(0, "The former files are back.")
        else:
            said.insert(0, "The former state is back." if touched else "There was nothing to put back on the disk.")
        if remains:
            said.insert(1, "But %s." % "; ".join(remains))
        if down:
            said.append("THE UNIT IS DOWN: it does not come up as it was before either (%s)." % down)
        return said

    def _run_former(self) -> str:
        """Have the unit as it was before, running or not."""
        if self.outcome.remedied:
            self.state = self.system.show(self.name)
            if self.state.get("ActiveState") == "active":
                return "It was restarted, which did not mend it, and runs on."
        self.system.reset_failed(self.name)
        if self.was_failing:
            self.system.stop(self.name, self._stop_limit())  # the new process may run, though it is not what was wanted
            self.system.start(self.name, self.change.timeout)
            return "The unit was failing before, and is again."
        if not self.was_up:
            if self.state.get("ActiveState") not in DOWN:
                self.system.stop(self.name, self._stop_limit())
            return "The unit was not running before and is stopped."
        failure, released = self._restart()
        if not failure and not released.ok:  # it may still come up
            failure = self.system.start(self.name, self.change.timeout)
        self.state = self.system.show(self.name)
        if not failure:
            try:
                running = self._executed()
            except _Failed as error:
                failure = str(error)
            else:
                if running and running.process.ended_within(self.change.settle):
                    failure = "its main process ended"
                elif not running and self.state.get("ActiveState") in DOWN and self.state.get("Type") != "oneshot":
                    failure = "it is %s" % _active(self.state)
        if failure:
            raise _Failed("failed", failure)
        self.outcome.downtime_ms = round((time.monotonic() - self.stopped_at - self.change.settle) * 1000)
        return "The unit runs again; it was not serving for %.1f s." % (self.outcome.downtime_ms / 1000.0)

    def _report(
        self, verdict: Verdict, aftermath: List[str], invocation: str, cause: Optional[Exception] = None
    ) -> None:
        """Raise what was found and what was done about it, in one line; the journal stands once, in the evidence."""
        journal: List[str] = []
        if invocation:
            self.system.sync_journal()
            lines = self.system.journal(self.name, invocation, JOURNAL_LINES)
            journal = [self.override.masked(line)[:JOURNAL_WIDTH] for line in lines]
            verdict.evidence.update(invocation_id=invocation, journal=journal)
        verdict.evidence = self.override.masked(verdict.evidence)
        verdict.message = self.override.masked(verdict.message)
        if journal and "exec_main_status" in verdict.evidence:  # how it ended is known, but not why
            verdict.message += "; its last words: %s" % journal[-1].strip()
        self.outcome.verdict = verdict
        try:
            self.state = self.system.show(self.name)
        except ManagerError:
            pass  # what was last seen has to do
        self.outcome.unit_state = _unit_state(self.state)
        said = ["%s: %s: %s." % (self.name, verdict.name, verdict.message.rstrip(".")), *aftermath]
        raise ServiceError(" ".join(" ".join(said).split()), self.outcome) from cause


def _active(state: Mapping[str, str]) -> str:
    return "%s (%s)" % (state.get("ActiveState"), state.get("SubState"))


def _unit_state(state: Mapping[str, str]) -> Dict[str, Any]:
    """The unit's state for the result."""
    return {
        "load_state": state.get("LoadState"),
        "active_state": state.get("ActiveState"),
        "sub_state": state.get("SubState"),
        "unit_file_state": state.get("UnitFileState"),
        "main_pid": int(state.get("MainPID") or 0),
        "invocation_id": state.get("InvocationID"),
        "n_restarts": int(state.get("NRestarts") or 0),
        "fragment_path": state.get("FragmentPath"),
        "drop_in_paths": split_items(state.get("DropInPaths", "")),
    }
