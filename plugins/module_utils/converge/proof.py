# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proves the running process: it has what is declared, and the gate finds nothing wrong."""

from __future__ import annotations

from typing import Dict, Mapping, NamedTuple, Optional

from .model import Change, Fault, Gate, Running, Verdict
from .observe import Observed, ends, wrong_credentials
from .override import Override
from .plan import not_loaded, shown
from .switch import ENDED, Switch


class Proven(NamedTuple):
    """What was proven, and the declared variables as the process has them, secrets masked."""

    verdict: Verdict
    environment: Dict[str, str]


class Proof:
    """The proof of one unit. Every check raises Fault where it fails."""

    def __init__(self, override: Override, gate: Optional[Gate], change: Change, switch: Switch) -> None:
        self.override = override
        self.gate = gate
        self.change = change
        self.switch = switch

    def loaded(self) -> None:
        """systemd itself has loaded the unit."""
        state = self.switch.state
        if state.get("LoadState") != "loaded":
            why = state.get("LoadState"), state.get("LoadError")
            raise Fault("not_loaded", "systemd does not load it (%s): %s" % why)

    def has_read(self, observed: Observed) -> None:
        """systemd has read the declared variables."""
        wrong = not_loaded(observed, self.override, self.switch.state)
        if wrong:
            raise Fault("not_loaded", "systemd has read other values than were written: %s" % ", ".join(wrong))

    def started(self, observed: Observed, running: Running) -> Proven:
        """A process that was started, or is asked as if it had been."""
        environment = self._environment(observed, running, running.environ)
        return Proven(self._ask(running, changed=True), environment)

    def stays(self, observed: Observed, running: Running) -> Optional[Dict[str, str]]:
        """The invocation that was proven must be the one that keeps running; gives its environment if that is known."""
        switch = self.switch
        if not self.gate and running.process.ended_within(self.change.settle):
            raise switch.fault(ENDED, invocation=running.invocation_id)
        switch.look()
        if switch.invocation != running.invocation_id or switch.down or ends(switch.state):
            raise switch.fault(ENDED, invocation=running.invocation_id)
        # what was started first may since have executed the program itself, in an environment that it made itself;
        # without the invocation in it, the program has overwritten it with its title
        now = running.system.environ(running.main_pid) or {}
        return self._environment(observed, running, now) if now.get("INVOCATION_ID") == running.invocation_id else None

    def unchanged(self, observed: Observed) -> Optional[Proven]:
        """A unit that nothing was started of; None where nothing of it runs that could be proven."""
        switch = self.switch
        if self.change.state == "absent":
            return None
        self.loaded()
        if ends(switch.state) or observed.looping:
            raise switch.fault(ENDED, invocation=observed.looping)
        if self.change.started is False or switch.down:
            return None
        running = switch.executed()
        if not running:
            return None
        environment = self._environment(observed, running, running.environ)
        verdict = self._ask(running, changed=False)
        return Proven(self._ask(running, changed=True) if self.change.prove else verdict, environment)

    def remedy(self, verdict: Verdict) -> str:
        """What may fix a unit in its declared state; empty where nothing may, or the unit is not to be touched."""
        if not (verdict.remedy and self.change.started):
            return ""
        why = self.change.pre_change_check() if self.change.pre_change_check else None
        if why:
            verdict.message += "; this run cannot fix it: %s" % why
            return ""
        return verdict.remedy

    def _ask(self, running: Running, changed: bool) -> Verdict:
        verdict = self.gate(running, changed) if self.gate else Verdict("ok")
        if not verdict.ok:
            raise Fault.of(verdict)
        return verdict

    def _environment(self, observed: Observed, running: Running, environ: Mapping[str, str]) -> Dict[str, str]:
        """Check what the process has against what is declared."""
        hide = shown(observed, self.override, ours=self.switch.acted)
        wrong = []
        for name, text in sorted(self.override.variables.items()) if environ else ():
            if name not in environ:
                wrong.append("%s is missing" % name)
            elif environ[name] != text:
                wrong.append("%s is %r, expected %r" % (name, hide(name, environ[name]), hide(name, text)))
        pid = int(self.switch.state["MainPID"])
        for name in wrong_credentials(running.system, self.override, pid, environ):
            wrong.append(
                "credential %s is not what was declared, or missing (in a container, / must be a shared mount)" % name
            )
        if wrong:
            raise Fault(
                "unproven",
                "the running process %d does not have what is declared: %s. Its ExecStart= may be changing it"
                % (running.main_pid, "; ".join(wrong)),
            )
        return {name: hide(name, environ[name]) or "" for name in self.override.variables if name in environ}
