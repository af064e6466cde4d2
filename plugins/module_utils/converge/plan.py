# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides what to do, from what is declared and what was observed. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..systemd.manager import split_items
from . import compare
from .model import Change, Verdict
from .observe import DOWN, FileChange, Observed, StepChange
from .override import DROP_IN, SECRET, Override

ENABLED = ("enabled", "enabled-runtime")

SENTENCES = {
    "requested": "%s",
    "interrupted": "an earlier run was interrupted before it could prove its change",
    "environment": "the value in force changes: %s",
    "settings": "settings in force change: %s",
    "files": "files that it reads change: %s",
    "step": "%s",
    "process": "the running process has other values: %s",
    "remedy": "%s",
    "unread": "it is failing, and systemd has not read its files yet",
}


STATES = {"start": "stopped", "stop": "running"}
"""What is wrong with a unit that an action starts or stops."""


class Reason(NamedTuple):
    """Why a unit is restarted or proven again; ``kind`` is a key of SENTENCES."""

    kind: str
    names: Tuple[str, ...] = ()

    def __str__(self) -> str:
        sentence = SENTENCES[self.kind]
        return sentence % ", ".join(self.names) if "%s" in sentence else sentence


class Plan(NamedTuple):
    """What one run does, or would do in check mode."""

    unit: str
    action: Optional[str] = None
    """``start``, ``stop``, ``restart``, ``reload``, ``proof`` (ask the gate as after a change), or None."""
    verbs: Tuple[str, ...] = ()
    """What systemctl does for the action."""
    enabling: Tuple[str, ...] = ()
    """What systemctl does to enable or disable the unit."""
    reload: bool = False
    rubbish: Tuple[str, ...] = ()
    """Paths that an interrupted run has left, and that are removed."""
    files: Tuple[FileChange, ...] = ()
    """Our files to be written, and after them those to be removed."""
    steps: Tuple[StepChange, ...] = ()
    reasons: Tuple[Reason, ...] = ()
    drift: Mapping[str, Dict[str, Optional[str]]] = {}
    shadowed: Tuple[Dict[str, Any], ...] = ()
    refusal: Optional[Verdict] = None
    """Why nothing may be done: ``refused`` or ``shadowed``."""
    remedied: str = ""
    """The verdict that is the only reason to do anything."""

    @property
    def differs(self) -> List[str]:
        """What differs from the declaration, by names that every view shows: docs/faults.md has all of them."""
        verbs = [verb.partition(" ")[0] for verb in self.enabling]
        found = [
            *(reason.kind for reason in self.reasons if reason.kind not in ("requested", "remedy", "unread")),
            *("override" if file.path.endswith("/" + DROP_IN) else "files" for file in self.files),
            *(["step"] if self.steps else []),
            *(["not_loaded"] if self.reload and not (self.files or self.steps) else []),
            *([STATES[self.action]] if self.action in STATES else []),
            *("disabled" if verb == "enable" else "enabled" for verb in verbs),
            *(["leftovers"] if self.rubbish else []),
            *(["shadowed"] if self.shadowed else []),
            *([self.remedied] if self.remedied else []),
        ]
        return list(dict.fromkeys(found))

    @property
    def commands(self) -> List[str]:
        """The writes and systemctl commands, in order; empty where there is nothing to do."""
        return [
            *("remove %s" % path for path in self.rubbish),
            *("apply %s" % step.name for step in self.steps),
            *("%s %s" % ("remove" if file.content is None else "write", file.path) for file in self.files),
            *(["systemctl daemon-reload"] if self.reload else []),
            *("systemctl %s %s" % (verb, self.unit) for verb in (*self.enabling, *self.verbs)),
            *(["prove %s" % self.unit] if self.action == "proof" else []),
        ]


def plan(observed: Observed, override: Override, change: Change, hooks: bool = False) -> Plan:
    """Decide what to do.

    :param observed: the unit as it was found.
    :param override: our files for it.
    :param hooks: whether something has to happen between a stop and a start.
    """
    refusal = _unusable(observed, change)
    shadowed = [] if refusal else shadows(observed, override)
    changed = compare.changed_variables(observed.now, observed.planned)
    reasons = _reasons(observed, override, change, changed)
    action = _action(observed, change, reasons)
    return Plan(
        unit=observed.unit,
        action=action,
        verbs=_verbs(action, hooks, observed.failing),
        enabling=_enabling(observed.state.get("UnitFileState", ""), change),
        reload=bool(
            override.drop_in in [file.path for file in observed.files]
            or observed.steps
            or observed.unfinished
            or _loaded_is_old(observed, override)
        ),
        rubbish=observed.rubbish,
        files=observed.files,
        steps=observed.steps,
        reasons=tuple(reasons) if action in ("restart", "reload") else (),
        drift=compare.drift(
            sorted({*override.variables, *changed}),
            override.variables,
            observed.now,
            observed.running,
            shown(observed, override),
        ),
        shadowed=tuple(shadowed),
        refusal=refusal or shadow_verdict(observed.unit, shadowed),
    )


def with_remedy(planned: Plan, verdict: Verdict, hooks: bool) -> Plan:
    """The same plan, and after it what may fix the unit: ``verdict`` is without secrets."""
    return planned._replace(
        action=verdict.remedy,
        verbs=_verbs(verdict.remedy, hooks, False),
        reasons=(*planned.reasons, Reason("remedy", ("%s: %s" % (verdict.name, verdict.message),))),
        remedied="" if planned.commands else verdict.name,
    )


def _reasons(observed: Observed, override: Override, change: Change, changed: List[str]) -> List[Reason]:
    """Why a unit that runs is restarted."""
    settings = compare.changed_settings(observed.now, observed.planned)
    files = [file.path for file in observed.files if file.path in override.files]
    stale = ["credential %s" % name for name in observed.wrong_credentials]
    if observed.running is not None:
        stale = compare.stale(sorted({*override.variables} - {*changed}), observed.planned, observed.running) + stale
    found = [
        ("requested", [change.restart] if change.restart else []),
        ("environment", changed),
        ("settings", settings),
        ("files", files),
        *(("step", [step.name]) for step in observed.steps if step.restarts),
        ("process", stale),
    ]
    reasons = [Reason(kind, tuple(names)) for kind, names in found if names]
    if observed.unfinished:
        reasons.insert(1 if change.restart else 0, Reason("interrupted"))
    if observed.failing and _loaded_is_old(observed, override):
        reasons.append(Reason("unread"))
    return reasons


def _action(observed: Observed, change: Change, reasons: Sequence[Reason]) -> Optional[str]:
    down, present = observed.active in DOWN, change.state == "present"
    if present and change.started is False:
        return None if down else "stop"
    if reasons and not down:
        only_files = change.reloads and observed.active == "active" and {reason.kind for reason in reasons} == {"files"}
        return "reload" if only_files else "restart"
    return "start" if present and change.started and down else None


def _verbs(action: Optional[str], hooks: bool, failing: bool) -> Tuple[str, ...]:
    """systemd counts regular starts into StartLimitBurst= too, so it forgets them first."""
    if action == "restart" and hooks:
        return ("reset-failed", "stop", "start")
    if action == "restart" and failing:  # else a restart by systemd in just this moment could be taken for ours
        return ("reset-failed", "stop", "restart")
    if action == "reload":
        return ("reload",)
    return ("reset-failed", action) if action in ("start", "stop", "restart") else ()


def _enabling(file_state: str, change: Change) -> Tuple[str, ...]:
    if change.state == "absent" or change.enabled is None or enabled_as_declared(file_state, change):
        return ()
    if change.enabled:
        return ("enable",)
    return ("disable", "disable --runtime") if file_state == "enabled-runtime" else ("disable",)


def enabled_as_declared(file_state: str, change: Change) -> bool:
    """A unit that is enabled until the next boot only is neither enabled nor disabled."""
    return file_state == "enabled" if change.enabled else file_state not in ENABLED


def _loaded_is_old(observed: Observed, override: Override) -> bool:
    """Whether systemd has not yet read what lies on the disk."""
    if observed.state.get("LoadState") != "loaded":
        return False
    # because of a broken file systemd would always say so
    if observed.state.get("NeedDaemonReload") == "yes" and not observed.now.unit.broken:
        return True
    return bool(not_loaded(observed, override, observed.state))


def not_loaded(observed: Observed, override: Override, state: Mapping[str, str]) -> List[str]:
    """Declared variables that systemd has not read from ``Environment=`` with their declared value."""
    if observed.by_others:
        return []
    loaded = dict(item.split("=", 1) for item in split_items(state.get("Environment", "")))
    return [name for name, text in sorted(override.environment.items()) if loaded.get(name) != text]


# --- what may be shown


def shown(observed: Observed, override: Override, ours: bool = False) -> compare.Hide:
    """How a variable's value is shown: hidden unless it is declared as plain, or stands in a file that all may read.

    An undeclared variable from an environment file is always hidden: people keep secrets there. Where a process got
    another value from is unknown: it is shown if the one in force may be shown, or if ``ours``, that is if this run
    has started the process.
    """
    units = {file.path for view in (observed.now, observed.planned) for file in view.unit.files}

    def hide(name: str, text: Optional[str]) -> Optional[str]:
        declared = override.environment.get(name)
        if text is None or text == declared:
            return text
        if name in override.secret_environment:
            return SECRET
        views = [view.environment for view in (observed.now, observed.planned)]
        visible = {
            value.text: (declared is not None or value.path in units)
            and (value.text == declared or value.path in observed.public)
            for value in (view[name] for view in views if name in view)
        }
        known = observed.now.text(name) is not None and not observed.unfinished
        return text if visible.get(text, all(visible.values()) and (ours or known)) else SECRET

    return hide


# --- what stops a run


def shadows(observed: Observed, override: Override) -> List[Dict[str, Any]]:
    """What is declared but would not be in force, as another file has the last word."""
    return compare.shadows(
        override.variables,
        override.settings,
        observed.planned,
        observed.planned.unit.unset(observed.specifiers),
        override.drop_in,
        shown(observed, override),
    )


def shadow_verdict(unit: str, shadowed: List[Dict[str, Any]]) -> Optional[Verdict]:
    if not shadowed:
        return None
    said = "; ".join(compare.say(shadow) for shadow in shadowed)
    return Verdict(
        "shadowed",
        "what is declared for %s would not be in force: %s. Remove it there, or from the inventory" % (unit, said),
        {"shadowed": shadowed},
    )


def _unusable(observed: Observed, change: Change) -> Optional[Verdict]:
    """Why no state can be declared for a unit."""
    unit, state, file_state = observed.unit, observed.state, observed.state.get("UnitFileState")
    written = any(step.writes_unit for step in observed.steps)
    why = ""
    if change.state == "absent":
        return None
    if state.get("LoadState") == "masked":
        why = "%s is masked, so it cannot start: systemctl unmask it first" % unit
    elif state.get("LoadState") == "not-found" and not written:
        why = "there is no unit %s on this host: %s, or correct the name" % (unit, change.install_hint)
    elif state.get("Transient") == "yes":
        why = "%s is transient: it has no unit file, and is gone once it stops; create a unit file for it" % unit
    elif change.enabled and not written and "Install" not in change.settings and file_state in ("static", "generated"):
        why = "%s cannot be enabled: it is %s, as it has no [Install] section of its own" % (unit, file_state)
    return Verdict("refused", why) if why else None
