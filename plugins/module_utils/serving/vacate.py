# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that have to leave GPUs before their turn, as another one of the same run is to have these.

Two services that swap their GPUs could else never start: each would find the memory of the other one in use.
"""

from __future__ import annotations

from typing import Any, List, Sequence

from ..converge.model import Outcome, Running, ServiceError, Verdict
from ..gpu.processes import held_by_unit
from ..systemd.manager import ManagerError, seconds
from ..toolbox.errors import Failed
from . import agent, drain
from .model import Host, Plan

_DOWN = ("inactive", "failed")


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
        self.plans: List[Plan] = []

    def make_room(self, plan: Plan, later: Sequence[Plan]) -> None:
        """Stop those of ``later`` that are in the way of ``plan``; their requests end before.

        :raises ServiceError: one cannot be stopped, or its memory is not free afterwards.
        """
        for other in later:
            if other not in self.plans and in_the_way(other, plan, self.host):
                try:
                    self._stop(other)
                except ManagerError as error:
                    raise ServiceError("%s: %s" % (other.unit, error)) from None

    def _stop(self, plan: Plan) -> None:
        system, hooks = self.host.system, plan.declared.hooks
        with system.lock(plan.unit, plan.change.timeout):
            state = system.show(plan.unit)
            if state.get("ActiveState") in _DOWN:
                return
            if hooks and int(state.get("MainPID") or 0):
                hooks.before_stop(_running(plan.unit, state, system))
            self.plans.append(plan)
            plan.change.was_up = True
            failure = system.stop(plan.unit, (seconds(state.get("TimeoutStopUSec", "")) or plan.change.timeout) + 5)
            released = hooks.after_stop() if hooks else Verdict("ok")
        if failure:
            released = Verdict("not_stopped", failure)
        if not released.ok:
            message = "%s: %s: %s" % (plan.unit, released.name, released.message)
            raise ServiceError(message, Outcome(verdict=released))

    def start_again(self) -> str:
        """Start those that are down still, as they were; a sentence that says which, or nothing."""
        said = []
        for plan in self.plans:
            try:
                if self.host.system.show(plan.unit).get("ActiveState") not in _DOWN:
                    continue
                failure = self.host.system.start(plan.unit, plan.change.timeout)
                if not failure and agent.marked(plan.unit):
                    drain.put_back(plan.unit, plan.service.options["undrain_command"])
            except (ManagerError, Failed, OSError) as error:
                failure = str(error)
            said.append(" %s %s." % (plan.unit, "DOES NOT START AGAIN: %s" % failure if failure else "runs again"))
        return "".join(said)


def _running(unit: str, state: Any, system: Any) -> Running:
    pid = int(state["MainPID"])
    return Running(
        unit=unit,
        main_pid=pid,
        invocation_id=state.get("InvocationID", ""),
        environ=system.environ(pid) or {},
        started_monotonic=int(state.get("ExecMainStartTimestampMonotonic") or 0) / 1e6,
        deadline=0.0,
        control_group=state.get("ControlGroup", ""),
        process=system.process(pid),
        system=system,
    )
