# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that have to leave GPUs before their turn, as another one of the same run is to have these.

Two services that swap their GPUs could else never start: each would find the memory of the other one in use.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, Tuple

from ..converge import switch
from ..converge.model import Fault, Outcome, ServiceError, StopHooks, Verdict
from ..gpu.processes import held_by_unit
from ..systemd.manager import ManagerError
from . import agent, drain
from .model import Host, Plan

DOWN = ("inactive", "failed")


def in_the_way(other: Plan, plan: Plan, host: Host) -> bool:
    """Whether ``other`` uses memory of GPUs that it is to leave, and that are new to ``plan``."""
    if not plan.placed.devices:
        return False
    used, known = (held_by_unit(host.facts["devices"], unit) for unit in (other.unit, plan.unit))
    stays = {device["uuid"] for device in other.placed.devices}
    wanted = {device["uuid"] for device in plan.placed.devices}
    return bool((wanted & set(used)) - stays - set(known))


class Vacated:
    """The services that this run has stopped before their turn."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.units: Dict[str, Tuple[float, Any]] = {}
        """Unit to the seconds that its start may take, and its ``undrain_command``."""

    def make_room(self, plan: Plan, later: Sequence[Plan]) -> None:
        """Stop those of ``later`` that are in the way of ``plan``; their requests end before.

        :raises ServiceError: one cannot be stopped, or its memory is not free afterwards.
        """
        for other in later:
            if other.unit not in self.units and in_the_way(other, plan, self.host):
                other.change.was_up = self.stop(
                    other.unit, other.declared.hooks, other.change.timeout, other.service.options["undrain_command"]
                )

    def stop(self, unit: str, hooks: Optional[StopHooks], timeout: float, undrain: Sequence[str]) -> bool:
        """Stop a service; whether it ran.

        :param timeout: seconds that its start may take.
        :param undrain: its ``undrain_command``, for the case that it is started again.
        :raises ServiceError: it cannot be stopped, or its memory is not free afterwards.
        """
        try:
            return self._stop(unit, hooks, timeout, undrain)
        except (ManagerError, OSError) as error:
            raise ServiceError("%s: %s" % (unit, error), Outcome(verdict=Verdict("not_stopped", str(error)))) from None
        except Fault as fault:
            raise ServiceError("%s: %s" % (unit, fault), Outcome(verdict=fault.verdict)) from None

    def _stop(self, unit: str, hooks: Optional[StopHooks], timeout: float, undrain: Sequence[str]) -> bool:
        system = self.host.system
        with system.lock(unit, timeout):
            state = system.show(unit)
            if state.get("ActiveState") in DOWN:
                return False
            self.units[unit] = (timeout, undrain)  # a drain that fails must be undone, too
            pid = int(state.get("MainPID") or 0)
            if hooks and pid:
                process, environ = system.process(pid), system.environ(pid) or {}
                hooks.before_stop(switch.running_of(system, unit, state, process, environ, 0.0))
            failure = system.stop(unit, switch.stop_limit(state, timeout))
            released = hooks.after_stop() if hooks else Verdict("ok")
        if failure:
            released = Verdict("not_stopped", failure)
        if not released.ok:
            raise ServiceError("%s: %s: %s" % (unit, released.name, released.message), Outcome(verdict=released))
        return True

    def keep(self, unit: str) -> None:
        """Leave a service as it is from now on: others have taken its place."""
        self.units.pop(unit, None)

    def start_again(self) -> str:
        """Start those that are down still, as they were, and end all drains; sentences that say so, or nothing."""
        said = []
        for unit, (timeout, undrain) in self.units.items():
            try:
                down = self.host.system.show(unit).get("ActiveState") in DOWN
                failure = self.host.system.start(unit, timeout) if down else None
            except ManagerError as error:
                down, failure = True, str(error)
            if down:
                said.append(" %s %s." % (unit, "DOES NOT START AGAIN: %s" % failure if failure else "runs again"))
            if not failure and agent.marked(unit):
                problem = drain.after_failure(unit, Outcome(), None, True, undrain, self.host.warn)
                said += [" %s." % problem] if problem else []
        return "".join(said)
