# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings one systemd unit to its declared state and proves it on the running process, or puts everything back."""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Protocol, Sequence, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.service import render
from ansible_collections.gpufleet.inference.plugins.module_utils.service.atomic import Files, Wanted
from ansible_collections.gpufleet.inference.plugins.module_utils.service.systemd import (
    ManagerError,
    Process,
    System,
    seconds,
    split_items,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.service.unit import (
    LIST_KEYS,
    Unit,
    UnitError,
    Value,
    merge,
    parse_environment_file,
    process_settings,
    unit_name,
)

DIRECTORY = "/etc/systemd/system"
DROP_IN = "zz-gpufleet.conf"
"""Sorts after ``override.conf``, the file of ``systemctl edit``, so that what is declared is in force."""
SECRETS = "/etc/gpufleet"

SECRET = "<secret>"
DOWN = ("inactive", "failed")
ENABLED = ("enabled", "enabled-runtime")
JOURNAL_LINES = 20
REMEDIES = {
    errno.ENOSPC: "free space on its file system",
    errno.EDQUOT: "free space on its file system",
    errno.EROFS: "its file system is mounted read-only: find out why, and mount it writable",
    errno.EACCES: "run as root (become)",
    errno.EPERM: "run as root (become); if it was, look for chattr +i and for a container without the capability",
}


@dataclass
class Change:
    """What is declared for one unit.

    An empty ``environment`` or ``settings`` means that our override declares none, not that others' are removed.
    """

    unit: str
    """Full unit name, such as ``ollama.service``; a name without a suffix means a service."""
    state: str = "present"
    """``present`` or ``absent`` (our override, secret file and credentials are removed)."""
    environment: Dict[str, str] = field(default_factory=dict)
    settings: Dict[str, Dict[str, List[str]]] = field(default_factory=dict)
    """Section to key to values, one line each; a first value of ``""`` resets what the unit had before."""
    secret_environment: Dict[str, str] = field(default_factory=dict)
    """Kept in a root-only ``EnvironmentFile``, ``/etc/gpufleet/UNIT.env``."""
    credentials: Dict[str, str] = field(default_factory=dict)
    """Credential id to content, handed over by ``LoadCredential=``."""
    enabled: Optional[bool] = None
    started: Optional[bool] = None
    timeout: float = 60
    """Seconds, from the start of the new process, within which the unit must be up and pass the gate."""
    settle: float = 2
    """Seconds for which a unit without a gate is watched after a start: one that dies within them has failed."""


class Step(Protocol):
    """Something that must change together with the unit, such as installing its binary.

    Steps are applied in order before systemd is reloaded and undone in reverse order on rollback.
    """

    restarts: bool
    """True when a running unit must be restarted after this step was applied."""

    def needed(self) -> bool:
        """Tell, by reading alone, whether there is something to do."""

    def diff(self) -> Dict[str, str]:
        """Give ``before`` and ``after`` as text for a person."""

    def apply(self) -> None:
        """Do it; on an exception the step leaves things as they were, or ``undo`` cleans up."""

    def undo(self) -> None:
        """Put back what was before ``apply``; must also work after an ``apply`` that failed half-way."""


@dataclass
class Verdict:
    """What a gate found. ``name`` is ``ok`` or the name of a fault."""

    name: str
    message: str = ""
    evidence: Dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.name == "ok"


@dataclass
class Running:
    """The unit's running invocation, as a gate sees it."""

    unit: str
    main_pid: int
    invocation_id: str
    environ: Dict[str, str]
    """``/proc/MAINPID/environ``, secrets included: a gate must not report it as it is."""
    started_monotonic: float
    """Seconds on CLOCK_MONOTONIC (as ``time.monotonic()``) at which the main process was started."""
    deadline: float
    """Value of ``time.monotonic()`` at which the gate has to have an answer."""
    control_group: str
    process: Process
    system: System

    @property
    def pids(self) -> List[int]:
        """All processes of the unit's control group, workers included."""
        return self.system.pids(self.control_group)

    def journal(self, max_lines: int = 1000) -> List[str]:
        """The last lines that this invocation logged, oldest first."""
        return self.system.journal(self.invocation_id, max_lines)

    def journal_from_start(self) -> Iterator[str]:
        """What this invocation logged, from its first line on; no more is read than is taken."""
        return self.system.journal_from_start(self.invocation_id)

    def alive(self) -> bool:
        """False as soon as the main process has ended, and with it this invocation. Costs no process."""
        return self.process.alive()


Gate = Callable[[Running, bool], Verdict]


@dataclass
class Outcome:
    """What ``converge`` did; in check mode, what it would do. Secrets are in none of it."""

    changed: bool = False
    restarted: bool = False
    reloaded: bool = False
    rolled_back: bool = False
    verdict: Verdict = field(default_factory=lambda: Verdict("ok"))
    reasons: List[str] = field(default_factory=list)
    """Why the unit was restarted."""
    drift: Dict[str, Dict[str, Optional[str]]] = field(default_factory=dict)
    """Name to ``declared``, ``on_disk`` and ``running``, as found, of every variable for which the three differ."""
    shadowed: List[Dict[str, Any]] = field(default_factory=list)
    """``name``, ``declared``, ``effective``, ``file`` and ``line`` of what another file overrides."""
    warnings: List[str] = field(default_factory=list)
    diff: Dict[str, str] = field(default_factory=dict)
    unavailable_ms: int = 0
    """Time from the unit's stop by us until the new process was proven, or the former one was back."""
    environment: Dict[str, str] = field(default_factory=dict)
    """The declared variables as the running process has them."""
    unit_state: Dict[str, Any] = field(default_factory=dict)

    def as_result(self) -> Dict[str, Any]:
        """The keys for ``exit_json`` or ``fail_json``; the warnings are for ``module.warn``."""
        return {
            "changed": self.changed,
            "restarted": self.restarted,
            "reloaded": self.reloaded,
            "rolled_back": self.rolled_back,
            "verdict": self.verdict.name,
            "evidence": self.verdict.evidence,
            "reasons": self.reasons,
            "drift": self.drift,
            "shadowed": self.shadowed,
            "diff": self.diff,
            "unavailable_ms": self.unavailable_ms,
            "environment": self.environment,
            "unit_state": self.unit_state,
        }


class ServiceError(Exception):
    """The unit could not be brought to its declared state; ``outcome`` says what was done and put back."""

    def __init__(self, message: str, outcome: Optional[Outcome] = None) -> None:
        super().__init__(message)
        self.message = message
        self.outcome = outcome or Outcome()


def converge(
    change: Change,
    *,
    gate: Optional[Gate] = None,
    steps: Sequence[Step] = (),
    check_mode: bool = False,
    system: Optional[System] = None,
) -> Outcome:
    """Bring ``change.unit`` to its declared state and prove it on the running process.

    What is declared is compared with the unit's files and with the running process. Files are written only where they
    differ, systemd is reloaded only when it has to read them, and the unit is restarted only when a value that its
    process has differs from the one in force. With ``check_mode`` the same code runs up to the first write.

    ``system`` is the seam to systemd; tests pass a fake one.

    Raises ServiceError after the former state is back, or saying what of it is not.
    """
    system = system or System()
    try:
        name = _checked(change)
        with _no_lock() if check_mode else system.lock(name, change.timeout):
            return _Convergence(change, name, gate, steps, check_mode, system).run()
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
        self, change: Change, name: str, gate: Optional[Gate], steps: Sequence[Step], check_mode: bool, system: System
    ) -> None:
        self.change = change
        self.gate = gate
        self.check_mode = check_mode
        self.system = system
        self.outcome = Outcome()
        self.present = change.state == "present"
        self.variables = dict(change.environment, **change.secret_environment) if self.present else {}

        self.state = system.show(name)
        # a drop-in belongs beside the unit's own name, not beside an alias
        self.name = self.state["Id"] if self.state.get("LoadState") == "loaded" else name
        self.drop_in = "%s/%s.d/%s" % (DIRECTORY, self.name, DROP_IN)
        self.secret_file = "%s/%s.env" % (SECRETS, self.name)
        self.credential_directory = "%s/credentials/%s" % (SECRETS, self.name)

        self.steps = [step for step in steps if step.needed()]
        self.applied: List[Step] = []
        self.files = Files(self._wanted(), system.root)
        self.rewritten = self.files.changes()
        self.unfinished = self.files.unfinished()
        self.drop_in_changes = self.drop_in in [file.path for file in self.rewritten]
        self.was_up = self.state.get("ActiveState") in ("active", "reloading", "refreshing")
        self.was_failing = self.state.get("SubState") == "auto-restart"
        self.committed = False
        self.enabling_done = False
        self.acted = False
        self.stopped_at = 0.0

    # --- what is wanted ----------------------------------------------------------------------------------------------

    def _settings(self) -> Dict[str, Dict[str, List[str]]]:
        """The declared settings and those that hand over the secrets."""
        settings = {section: dict(keys) for section, keys in self.change.settings.items()}
        service = dict(settings.get("Service", {}))
        if self.change.secret_environment:
            service["EnvironmentFile"] = [*service.get("EnvironmentFile", []), self.secret_file]
        if self.change.credentials:
            loads = ["%s:%s/%s" % (name, self.credential_directory, name) for name in sorted(self.change.credentials)]
            service["LoadCredential"] = [*service.get("LoadCredential", []), *loads]
        if service:
            settings["Service"] = service
        return settings

    def _wanted(self) -> List[Wanted]:
        """Our files, in the order in which they are changed: a drop-in never names a file that is not there."""
        drop_in = secrets = ""
        credentials: Dict[str, str] = {}
        if self.present:
            drop_in = render.drop_in(self.name, self.change.environment, self._settings())
            secrets = render.environment_file(self.change.secret_environment)
            credentials = self.change.credentials
        here = [name for name in self.system.names(self.credential_directory) if not name.startswith(".")]
        private = [Wanted(self.secret_file, _bytes(secrets) if secrets else None, 0o600)]
        for name in sorted({*here, *credentials}):
            content = _bytes(credentials[name]) if name in credentials else None
            private.append(
                Wanted("%s/%s" % (self.credential_directory, name), content, 0o600, 0o700, own_directories=3)
            )
        override = Wanted(self.drop_in, _bytes(drop_in) if drop_in else None)
        return [*private, override] if drop_in else [override, *private]

    def _private(self, path: str) -> bool:
        return path == self.secret_file or path.startswith(self.credential_directory + "/")

    # --- reading and planning ----------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        self._refuse_unusable()
        self._read()
        self._plan()
        self._describe()
        self._refuse_shadowed()
        if self.present and self.change.settings and self.drop_in_changes:
            self._refuse_ignored()
        if self.check_mode and self.outcome.changed:
            return self.outcome
        if self.outcome.changed:
            self._act()
        else:
            self._prove_unchanged()
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

    def _read(self) -> None:
        """Merge the unit as it lies on the disk, and as it will with our files."""
        names = [self.name, *(name for name in split_items(self.state.get("Names", "")) if name != self.name)]
        files = self.system.load(names)
        fragment = files[0][0] if files and not files[0][0].endswith(".conf") else ""
        self.specifiers = self.system.specifiers(self.name, fragment)
        self.unit = merge(files)
        self.next_unit = merge(self._with_drop_in(files))
        self.on_disk = self._environment(self.unit, planned=False)
        self.effective = self._environment(self.next_unit, planned=True)
        pid = int(self.state.get("MainPID") or 0)
        self.running = self.system.environ(pid) if pid else None

    def _with_drop_in(self, files: List[Tuple[str, bytes]]) -> List[Tuple[str, bytes]]:
        """``files`` with our drop-in as wanted, in its place among the drop-ins."""
        content = next(file.content for file in self.files.wanted if file.path == self.drop_in)
        fragment = [file for file in files if not file[0].endswith(".conf")]
        others = [file for file in files if file[0].endswith(".conf") and file[0] != self.drop_in]
        ours = [(self.drop_in, content)] if content is not None else []
        return fragment + sorted(others + ours, key=lambda file: os.path.basename(os.fsencode(file[0])))

    def _environment(self, unit: Unit, planned: bool) -> Dict[str, Value]:
        planned_secrets = next(file.content for file in self.files.wanted if file.path == self.secret_file)

        def read(pattern: str) -> List[Tuple[str, bytes]]:
            if planned and pattern == self.secret_file:
                return [(pattern, planned_secrets)] if planned_secrets is not None else []
            return list(self.system.environment_files(pattern))

        inherits = bool(unit.in_force("Service", "PassEnvironment"))
        return unit.environment(self.specifiers, read, self.system.inherited() if inherits else {})

    def _plan(self) -> None:
        """Decide what is to be done; the reasons for a restart are part of the outcome."""
        outcome = self.outcome
        active = self.state.get("ActiveState", "inactive")
        reasons = outcome.reasons
        if self.unfinished:
            reasons.append("an earlier run was interrupted before it could prove its change")
        names = sorted({*self.on_disk, *self.effective})
        changed = [name for name in names if _text(self.on_disk, name) != _text(self.effective, name)]
        if changed:
            reasons.append("the value in force changes: %s" % ", ".join(changed))
        before, after = process_settings(self.unit), process_settings(self.next_unit)
        keys = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
        if keys:
            reasons.append("settings in force change: %s" % ", ".join("[%s] %s" % key for key in keys))
        reasons += ["%s" % type(step).__name__ for step in self.steps if step.restarts]
        if self.running is not None:
            pid = int(self.state["MainPID"])
            stale = [
                name
                for name in sorted(self.variables)
                if name not in changed and self.running.get(name) != _text(self.effective, name)
            ]
            stale += ["credential %s" % name for name in self._wrong_credentials(pid, self.running)]
            if stale:
                reasons.append("the running process has other values: %s" % ", ".join(stale))
        for name in sorted({*self.variables, *changed}):
            running = self.running.get(name) if self.running is not None else None
            three = (self.variables.get(name), _text(self.on_disk, name), running)
            if self.running is None:
                three = three[:2] + three[1:2]
            if len(set(three)) > 1:
                hidden = self._hidden(name)
                outcome.drift[name] = {
                    "declared": hidden(three[0]),
                    "on_disk": hidden(three[1]),
                    "running": hidden(running),
                }

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
        file_state = self.state.get("UnitFileState", "")
        self.enabling: Optional[str] = None
        if self.change.enabled is not None and self.present and (file_state in ENABLED) != self.change.enabled:
            self.enabling = "enable" if self.change.enabled else "disable"
        self.reload = bool(self.drop_in_changes or self.steps or self.unfinished or self._loaded_is_old())
        outcome.changed = bool(
            self.rewritten or self.steps or self.reload or self.action or self.enabling or self.unfinished
        )
        outcome.restarted = self.action == "restart"
        outcome.reloaded = self.reload
        outcome.warnings += ["systemd stops reading at %s" % place for place in self.unit.broken]

    def _loaded(self) -> Dict[str, str]:
        """The variables of ``Environment=`` as systemd has read them."""
        return dict(item.split("=", 1) for item in split_items(self.state.get("Environment", "")))

    def _loaded_is_old(self) -> bool:
        """Whether systemd has not yet read what lies on the disk."""
        if self.state.get("LoadState") != "loaded":
            return False
        if (
            self.state.get("NeedDaemonReload") == "yes" and not self.unit.broken
        ):  # a broken file makes it say so forever
            return True
        loaded = self._loaded()
        return self.present and any(loaded.get(name) != text for name, text in self.change.environment.items())

    def _hidden(self, name: str) -> Callable[[Optional[str]], Optional[str]]:
        """Hides a variable's value when it is a secret of ours, or comes from a file in which others keep theirs."""
        readable = {file.path for file in (*self.unit.files, *self.next_unit.files)}
        found = [values[name].path for values in (self.on_disk, self.effective) if name in values]
        public = name not in self.change.secret_environment and (
            name in self.change.environment or all(path in readable for path in found)
        )
        return lambda text: text if public or text is None else SECRET

    def mask(self, text: str) -> str:
        """``text`` without our secrets."""
        secrets = [*self.change.secret_environment.values(), *self.change.credentials.values()]
        for secret in sorted(secrets, key=len, reverse=True):
            for form in (secret, secret.strip()):
                if len(form) > 3:
                    text = text.replace(form, SECRET)
        return text

    def _masked(self, value: Any) -> Any:
        """A gate's evidence without our secrets."""
        if isinstance(value, dict):
            return {key: self._masked(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._masked(item) for item in value]
        return self.mask(value) if isinstance(value, str) else value

    def _refuse_shadowed(self) -> None:
        """Stop when another file has the last word on something that is declared."""
        lines = []
        unset = self.next_unit.unset(self.specifiers)
        for name, text in sorted(self.variables.items()):
            if _text(self.effective, name) == text:
                continue
            hidden = self._hidden(name)
            winner = self.effective.get(name) or unset.get(name) or Value(None, self.drop_in)
            lines.append(self._shadow(name, hidden(text), hidden(_text(self.effective, name)), winner))
        for section, keys in self._settings().items() if self.present else ():
            for key, values in keys.items():
                winner_line = self._overriding(section, key, values)
                if winner_line:
                    lines.append(self._shadow("[%s] %s" % (section, key), " ".join(values), *winner_line))
        if lines:
            self.outcome.verdict = Verdict("shadowed", "; ".join(lines), {"shadowed": self.outcome.shadowed})
            self.outcome.changed = self.outcome.restarted = self.outcome.reloaded = False
            raise ServiceError(
                "%s: what is declared would not be in force: %s. Take it out there, or out of the inventory"
                " (nothing was changed)" % (self.name, "; ".join(lines)),
                self.outcome,
            )

    def _shadow(self, name: str, declared: Optional[str], effective: Optional[str], winner: Value) -> str:
        self.outcome.shadowed.append(
            {"name": name, "declared": declared, "effective": effective, "file": winner.path, "line": winner.line}
        )
        now = "removes it" if effective is None else "sets %r" % effective
        return "%s is declared %r, but %s %s" % (name, declared, winner.place, now)

    def _overriding(self, section: str, key: str, values: List[str]) -> Optional[Tuple[Optional[str], Value]]:
        """The value and place of a later file that overrides what we declare for a key."""
        lines = [line for line in self.next_unit.assignments if (line.section, line.key) == (section, key)]
        ours = [number for number, line in enumerate(lines) if line.path == self.drop_in]
        if not ours:
            return None
        later = lines[ours[-1] + 1 :]
        if key in LIST_KEYS:
            later = [line for line in later if not line.value]
        elif later and later[-1].value == values[-1]:
            later = []
        return (later[-1].value or None, Value(later[-1].value, later[-1].path, later[-1].line)) if later else None

    def _refuse_ignored(self) -> None:
        content = next(file.content for file in self.files.wanted if file.path == self.drop_in)
        ignored = self.system.verify(self.name, DROP_IN, content or b"") if content and not self.steps else []
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
                before += ["# %s, mode %04o" % (file.path, old_mode), self._shown(file.path, old, None)]
            if file.content is not None:
                after += ["# %s, mode %04o" % (file.path, file.mode), self._shown(file.path, file.content, old)]
        for step in self.steps:
            difference = step.diff()
            before.append(difference["before"])
            after.append(difference["after"])
        if self.enabling:
            before.append("enabled: %s" % ("no" if self.change.enabled else "yes"))
            after.append("enabled: %s" % ("yes" if self.change.enabled else "no"))
        if self.action:
            before.append("active: %s" % self.state.get("ActiveState"))
            after.append("active: %s" % {"stop": "inactive", "start": "active"}.get(self.action, "active, restarted"))
        if before != after:
            self.outcome.diff = {
                "before": "".join(text.rstrip("\n") + "\n" for text in before),
                "after": "".join(text.rstrip("\n") + "\n" for text in after),
                "before_header": self.name,
                "after_header": self.name,
            }
        pid_environment = self.running or {}
        self.outcome.environment = {
            name: self._hidden(name)(pid_environment[name]) or "" for name in self.variables if name in pid_environment
        }
        self.outcome.unit_state = _unit_state(self.state)

    def _shown(self, path: str, content: bytes, other: Optional[bytes]) -> str:
        """A file's content as a diff may show it; ``other`` is what it replaces."""
        if not self._private(path):
            return content.decode("utf-8", "replace")
        if path != self.secret_file:
            return SECRET if other is None or other == content else "<secret, changed>"
        old = parse_environment_file(other) if other else {}
        return "\n".join(
            "%s=%s" % (name, SECRET if name not in old or old[name][0] == text else "<secret, changed>")
            for name, (text, _line) in parse_environment_file(content).items()
        )

    # --- acting ------------------------------------------------------------------------------------------------------

    def _act(self) -> None:
        self.outcome.restarted = self.outcome.reloaded = False
        try:
            self.files.stage()
            for step in self.steps:
                self.applied.append(step)
                step.apply()
            self.committed = True
            self.files.commit()
            if self.reload:
                self.outcome.reloaded = True
                self.system.reload()
                self.state = self.system.show(self.name)
            self._check_loaded()
            if self.enabling:
                self.enabling_done = True
                getattr(self.system, self.enabling)(self.name)
                self._check_enabled()
            self._switch()
        except Exception as error:
            self._roll_back(error)
        except BaseException:
            self._put_back()
            raise
        try:
            self.files.finish()
        except OSError as error:
            self.outcome.warnings.append("what was before is left beside our files: %s" % _explain(error))

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
        loaded = self._loaded()
        wrong = [name for name, text in sorted(self.change.environment.items()) if loaded.get(name) != text]
        if wrong:
            raise _Failed("not_loaded", "systemd has read other values than were written: %s" % ", ".join(wrong))

    def _check_enabled(self) -> None:
        file_state = self.system.show(self.name).get("UnitFileState")
        if (file_state in ENABLED) != self.change.enabled:
            raise _Failed(
                "not_enabled", "after systemctl %s it is %s: has it an [Install] section?" % (self.enabling, file_state)
            )

    def _switch(self) -> None:
        """Start, restart or stop the unit, and prove what runs then."""
        if not self.action:
            self._prove_unchanged()
            return
        former = self.state.get("InvocationID")
        self.system.reset_failed(self.name)  # systemd counts regular starts, too, into StartLimitBurst=
        self.acted = True
        self.stopped_at = time.monotonic()
        if self.action == "restart":
            failure = self.system.restart(self.name, self._stop_limit(), self.change.timeout)
        elif self.action == "start":
            failure = self.system.start(self.name, self.change.timeout)
        else:
            failure = self.system.stop(self.name, self._stop_limit())
        self.outcome.restarted = self.action == "restart"
        self.state = self.system.show(self.name)
        if self.action == "stop":
            if self.state.get("ActiveState") not in DOWN:
                raise _Failed("not_stopped", "it is %s after systemctl stop: %s" % (_active(self.state), failure))
            return
        if failure or self.state.get("InvocationID") == former:
            raise self._fault(failure or "systemd did not start it anew", former)
        running = self._executed()
        if running:
            self._prove(running, changed=True)
        elif self.state.get("ActiveState") in DOWN and self.state.get("Type") != "oneshot":
            raise self._fault("it is not running", former)
        if self.was_up:
            self.outcome.unavailable_ms = round((time.monotonic() - self.stopped_at) * 1000)
        if running and not self.gate and running.process.ended_within(self.change.settle):
            raise self._fault("its main process ended", former)
        if running:
            self._check_same(running)

    def _stop_limit(self) -> float:
        """Seconds after which systemd itself kills what does not stop, and a little."""
        return (seconds(self.state.get("TimeoutStopUSec", "")) or self.change.timeout) + 5

    def _executed(self) -> Optional[Running]:
        """The running invocation once its main process is executed; None for a unit without one."""
        pid = int(self.state.get("MainPID") or 0)
        if not pid:
            if self.state.get("SubState") == "auto-restart":
                raise self._fault("its main process ended")
            return None
        process = self.system.process(pid)
        started = int(self.state.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
        deadline = (max(started, self.stopped_at) if self.acted else time.monotonic()) + self.change.timeout
        environ = self.system.environ(pid)
        while environ is None or environ.get("INVOCATION_ID", self.state["InvocationID"]) != self.state["InvocationID"]:
            if process.ended_within(0.005):
                raise self._fault("its main process ended")
            if time.monotonic() > deadline:
                raise self._fault("its main process was not executed within %d s" % self.change.timeout)
            environ = self.system.environ(pid)
        return Running(
            unit=self.name,
            main_pid=pid,
            invocation_id=self.state.get("InvocationID", ""),
            environ=environ,
            started_monotonic=started,
            deadline=deadline,
            control_group=self.state.get("ControlGroup", ""),
            process=process,
            system=self.system,
        )

    def _prove(self, running: Running, changed: bool) -> None:
        """The process must have what is declared, and the gate must find nothing wrong."""
        wrong = []
        for name, text in sorted(self.variables.items()):
            if running.environ.get(name) != text:
                hidden = self._hidden(name)
                wrong.append(
                    "%s is %r, expected %r" % (name, hidden(running.environ.get(name)), hidden(text))
                    if name in running.environ
                    else "%s is missing" % name
                )
        for name in self._wrong_credentials(running.main_pid, running.environ):
            wrong.append(
                "credential %s is not what was declared, or missing (in a container, / must be a shared mount)" % name
            )
        if wrong:
            raise _Failed(
                "unproven",
                "the running process %d does not have what is declared: %s. Its ExecStart= may be changing it"
                % (running.main_pid, "; ".join(wrong)),
            )
        self.outcome.environment = {name: self._hidden(name)(running.environ[name]) or "" for name in self.variables}
        if self.gate:
            verdict = self.gate(running, changed)
            self.outcome.verdict = verdict
            if not verdict.ok:
                failed = _Failed(verdict.name, verdict.message)
                failed.verdict = verdict
                raise failed

    def _wrong_credentials(self, pid: int, environ: Mapping[str, str]) -> List[str]:
        """The declared credentials that a process does not see as they are declared."""
        return [
            name
            for name, text in sorted(self.change.credentials.items() if self.present else ())
            if self.system.credential(pid, environ, name) != _bytes(text)
        ]

    def _check_same(self, running: Running) -> None:
        """The invocation that was proven must be the one that goes on running."""
        self.state = self.system.show(self.name)
        same = self.state.get("InvocationID") == running.invocation_id
        if not same or self.state.get("ActiveState") in DOWN or self.state.get("SubState") == "auto-restart":
            raise self._fault("its main process ended", invocation=running.invocation_id)

    def _prove_unchanged(self) -> None:
        """Nothing was started: what runs must be as declared, and a unit that should run must not be failing."""
        active = self.state.get("ActiveState")
        if self.present and self.state.get("LoadState") != "loaded":
            failed = _Failed("not_loaded", "systemd does not load it: %s" % self.state.get("LoadError"))
        elif self.present and self.state.get("SubState") == "auto-restart":
            failed = self._fault("its main process ended")
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
        if self.outcome.changed:
            raise failed
        self._report(failed.verdict, ["Nothing was changed."], failed.invocation)

    # --- failing -----------------------------------------------------------------------------------------------------

    def _fault(self, what: str, former: Optional[str] = None, invocation: Optional[str] = None) -> _Failed:
        """What systemd says of a unit that did not come up."""
        self.state = state = self._noticed()
        result, status = state.get("Result", ""), state.get("ExecMainStatus", "0")
        restarts = int(state.get("NRestarts") or 0)
        ended = {"1": "exited with status %s", "2": "was killed by signal %s", "3": "dumped core on signal %s"}
        how = ended.get(state.get("ExecMainCode", ""), "")
        name = "failed"
        if state.get("SubState") == "auto-restart" or restarts or result == "start-limit-hit":
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
        until = time.monotonic() + 2
        while True:
            state = self.system.show(self.name)
            pid = int(state.get("MainPID") or 0)
            if not pid or self.system.process(pid).alive() or time.monotonic() > until:
                return state
            time.sleep(0.02)

    def _roll_back(self, error: Exception) -> None:
        """Put everything back and raise what happened."""
        if isinstance(error, _Failed):
            verdict = error.verdict
        elif isinstance(error, ServiceError):
            verdict = error.outcome.verdict
        elif isinstance(error, OSError):
            verdict = Verdict("not_written", _explain(error))
        elif isinstance(error, (ManagerError, UnitError)):
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

        def attempt(what: str, undo: Callable[[], Any]) -> None:
            try:
                undo()
            except Exception as error:  # whatever a step may raise: the rest must still be put back
                problems.append("%s: %s" % (what, _explain(error) if isinstance(error, OSError) else error))

        if not self.committed and not self.applied:
            attempt("files", self.files.discard)
            self.outcome.changed = bool(problems)
            return ["PUTTING BACK FAILED: %s." % "; ".join(problems)] if problems else ["Nothing was changed."]
        touched = bool(self.applied or self.enabling_done or self.files.unfinished())
        attempt("files", self.files.undo if self.committed else self.files.discard)
        for step in reversed(self.applied):
            attempt(type(step).__name__, step.undo)
        if self.enabling_done:
            back = self.system.disable if self.enabling == "enable" else self.system.enable
            attempt(self.enabling or "", lambda: back(self.name))
        if touched:
            attempt("daemon-reload", self.system.reload)
        if self.acted:
            attempt("unit", lambda: said.append(self._run_former()))
        self.outcome.rolled_back = not problems
        self.outcome.changed = bool(problems)
        if problems:
            return ["PUTTING BACK THE FORMER STATE FAILED: %s." % "; ".join(problems), *said]
        return ["The former state is back." if touched else "There was nothing to put back on the disk.", *said]

    def _run_former(self) -> str:
        """Have the unit as it was before, running or not."""
        self.system.reset_failed(self.name)
        if self.was_failing:
            self.system.start(self.name, self.change.timeout)
            return "The unit was failing before, and is again."
        if not self.was_up:
            if self.state.get("ActiveState") not in DOWN:
                self.system.stop(self.name, self._stop_limit())
            return "The unit was not running before and is stopped."
        failure = self.system.restart(self.name, self._stop_limit(), self.change.timeout)
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
            raise _Failed("failed", "the former configuration does not come up either: %s" % failure)
        self.outcome.unavailable_ms = round((time.monotonic() - self.stopped_at - self.change.settle) * 1000)
        return "The unit runs again; it was not serving for %.1f s." % (self.outcome.unavailable_ms / 1000.0)

    def _report(
        self, verdict: Verdict, aftermath: List[str], invocation: str, cause: Optional[Exception] = None
    ) -> None:
        """Raise what was found, with the journal of the invocation that failed, and what was done about it."""
        journal: List[str] = []
        if invocation:
            self.system.sync_journal()
            journal = [self.mask(line) for line in self.system.journal(invocation, JOURNAL_LINES)]
            verdict.evidence.update(invocation_id=invocation, journal=journal)
        verdict.evidence = self._masked(verdict.evidence)
        verdict.message = self.mask(verdict.message)
        self.outcome.verdict = verdict
        try:
            self.state = self.system.show(self.name)
        except ManagerError:
            pass  # what was last seen has to do
        self.outcome.unit_state = _unit_state(self.state)
        said = ["%s: %s: %s." % (self.name, verdict.name, verdict.message.rstrip(".")), *aftermath]
        if journal:
            said.append("Last lines of the invocation that failed:")
        raise ServiceError("\n".join([" ".join(said), *("    " + line for line in journal)]), self.outcome) from cause


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(values: Mapping[str, Value], name: str) -> Optional[str]:
    return values[name].text if name in values else None


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
