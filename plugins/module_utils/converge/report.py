# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run planned and did, for people: the outcome, the diff, sentences. No secret is in any of it."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

from ..systemd.manager import ManagerError, System, split_items
from .model import Outcome, ServiceError, Verdict
from .observe import Observed
from .override import Override
from .plan import Plan, shown

JOURNAL_LINES = 20
JOURNAL_WIDTH = 300
"""Characters of a line."""
UNIT_AGAIN = {
    "running": "The unit runs again; it was not serving for %.1f s.",
    "failing": "The unit was failing before, and is again.",
    "stopped": "The unit was not running before and is stopped.",
    "reloaded": "The unit has read its previous files again, and was serving all the time.",
    "kept": "It was restarted, which did not fix it, and keeps running.",
}
"""By Undone's ``unit``."""


class Undone(NamedTuple):
    """How much of a run was rolled back."""

    touched: bool = False
    """Whether there was anything to roll back on disk."""
    problems: Tuple[str, ...] = ()
    """What could not be rolled back."""
    remains: Tuple[str, ...] = ()
    """What steps left on purpose, as the end of a sentence."""
    unit: str = ""
    """What the unit does again: ``running``, ``failing``, ``stopped``, ``reloaded``; ``kept`` if it runs on after a
    restart that did not help; empty where it was not touched or is down."""
    down: str = ""
    """Why it is down, though it was up before."""
    downtime_ms: int = 0

    @property
    def nothing(self) -> bool:
        """Whether nothing had been changed."""
        return not (self.touched or self.unit or self.down or self.problems)


def predict(planned: Plan, observed: Observed, override: Override) -> Outcome:
    """The outcome of a plan that is carried out without a fault."""
    environ, hide = observed.running or {}, shown(observed, override)
    return Outcome(
        changed=bool(planned.commands),
        restarted=planned.action == "restart",
        reloaded=planned.reload,
        reasons=[str(reason) for reason in planned.reasons],
        differs=planned.differs,
        planned=planned.commands,
        remedied=planned.remedied,
        drift=dict(planned.drift),
        shadowed=list(planned.shadowed),
        warnings=["systemd stops reading at %s" % place for place in observed.now.unit.broken],
        diff=diff(planned, observed, override),
        environment={name: hide(name, environ[name]) or "" for name in override.variables if name in environ},
        unit_state=unit_state(observed.state),
    )


def diff(planned: Plan, observed: Observed, override: Override) -> Dict[str, str]:
    """What changes, as Ansible shows it; empty where nothing does."""
    before: List[str] = []
    after: List[str] = []
    for file in planned.files:
        if file.old is not None:
            before += ["# %s, mode %04o" % (file.path, file.old_mode), override.shown(file.path, file.old)]
        if file.content is not None:
            after += ["# %s, mode %04o" % (file.path, file.mode), override.shown(file.path, file.content, file.old)]
    before += ["# %s, left by an interrupted run" % path for path in planned.rubbish]
    before += [step.before for step in planned.steps]
    after += [step.after for step in planned.steps]
    if planned.enabling:
        was, will = ("no", "yes") if "enable" in planned.enabling else ("yes", "no")
        before.append("enabled: %s" % was)
        after.append("enabled: %s" % will)
    if planned.action and planned.action != "proof":
        before.append("active: %s" % observed.active)
        states = {"stop": "inactive", "start": "active", "reload": "active, reloaded"}
        after.append("active: %s" % states.get(planned.action, "active, restarted"))
    if planned.remedied:
        before.append("proof: %s" % planned.remedied)
        after.append("proof: ok")
    if before == after:
        return {}
    return {
        "before": override.masked("".join(text.rstrip("\n") + "\n" for text in before)),
        "after": override.masked("".join(text.rstrip("\n") + "\n" for text in after)),
        "before_header": planned.unit,
        "after_header": planned.unit,
    }


def unit_state(state: Mapping[str, str]) -> Dict[str, Any]:
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


def refused(planned: Plan, observed: Observed, verdict: Verdict) -> ServiceError:
    """The error of a run that may not begin."""
    outcome = Outcome(
        verdict=verdict,
        differs=planned.differs,
        drift=dict(planned.drift),
        shadowed=list(planned.shadowed),
        unit_state=unit_state(observed.state),
    )
    return ServiceError("%s (nothing was changed)" % verdict.message, outcome)


def with_journal(verdict: Verdict, system: System, unit: str, invocation: str, override: Override) -> Verdict:
    """A verdict without secrets; with the last lines of the journal of the invocation that failed, if one did."""
    evidence, message = dict(verdict.evidence), override.masked(verdict.message)
    if invocation:
        try:
            system.sync_journal()
            lines = system.journal(unit, invocation, JOURNAL_LINES)
        except ManagerError:
            lines = []  # what was rolled back matters more
        journal = [override.masked(line)[:JOURNAL_WIDTH] for line in lines]
        if journal and "exec_main_status" in evidence:  # how it ended is known, but not why
            message += "; its last words: %s" % journal[-1].strip()
        evidence.update(invocation_id=invocation, journal=journal)
    return Verdict(verdict.name, message, override.masked(evidence), verdict.remedy)


def failure(outcome: Outcome, unit: str, undone: Undone) -> ServiceError:
    """The error of a run that failed with the outcome's verdict: what was found and what was done, in one line."""
    if undone.nothing:
        outcome.changed = outcome.reloaded = False
    else:
        outcome.rolled_back = not (undone.problems or undone.down or outcome.remedied)
        outcome.changed = bool(undone.remains) or not outcome.rolled_back
        outcome.downtime_ms = undone.downtime_ms
    found = "%s: %s: %s." % (unit, outcome.verdict.name, outcome.verdict.message.rstrip("."))
    return ServiceError(" ".join(" ".join([found, *sentences(undone)]).split()), outcome)


def sentences(undone: Undone) -> List[str]:
    """What was rolled back, and what was not."""
    if undone.nothing:
        return ["Nothing was changed."]
    if undone.problems:
        said = ["ROLLBACK FAILED: %s." % "; ".join(undone.problems)]
    elif undone.down:
        said = ["The previous files are restored."]
    else:
        said = ["The previous state is restored." if undone.touched else "There was nothing to put back on disk."]
    said += ["But %s." % "; ".join(undone.remains)] if undone.remains else []
    if undone.unit:
        sentence = UNIT_AGAIN[undone.unit]
        said.append(sentence % (undone.downtime_ms / 1000.0) if "%" in sentence else sentence)
    if undone.down:
        said.append("THE UNIT IS DOWN: it does not start with its previous configuration either (%s)." % undone.down)
    return said
