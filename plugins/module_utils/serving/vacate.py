# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that have to leave GPUs before their turn, as another one of the same run is to have these.

Two services that swap their GPUs could else never start: each would find the memory of the other one in use.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, Tuple

from ..converge.model import Outcome, Running, ServiceError, StopHooks, Verdict
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
        except ManagerError as error:
            raise ServiceError("%s: %s" % (unit, error)) from None

    def _stop(self, unit: str, hooks: Optional[StopHooks], timeout: float, undrain: Sequence[str]) -> bool:
        system = self.host.system
        with system.lock(unit, timeout):
            state = system.show(unit)
            if state.get("ActiveState") in _DOWN:
                return False
            if hooks and int(state.get("MainPID") or 0):
                hooks.before_stop(_running(unit, state, system))
            self.units[unit] = (timeout, undrain)
            failure = system.stop(unit, (seconds(state.get("TimeoutStopUSec", "")) or timeout) + 5)
            released = hooks.after_stop() if hooks else Verdict("ok")
        if failure:
            released = Verdict("not_stopped", failure)
        if not released.ok:
            raise ServiceError("%s: %s: %s" % (unit, released.name, released.message), Outcome(verdict=released))
        return True

    def start_again(self) -> str:
        """Start those that are down still, as they were; a sentence that says which, or nothing."""
        said = []
        for unit, (timeout, undrain) in self.units.items():
            try:
                if self.host.system.show(unit).get("ActiveState") not in _DOWN:
                    continue
                failure = self.host.system.start(unit, timeout)
                if not failure and agent.marked(unit):
                    drain.put_back(unit, undrain, self.host.warn)
            except (ManagerError, Failed, OSError) as error:
                failure = str(error)
            said.append(" %s %s." % (unit, "DOES NOT START AGAIN: %s" % failure if failure else "runs again"))
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
