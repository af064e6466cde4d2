# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts, restarts and stops one unit, and finds the invocation that runs then."""

from __future__ import annotations

import time
from typing import Dict, List, Mapping, Optional, Tuple

from ..systemd.manager import System, restarting, seconds
from ..systemd.process import Process
from .model import Change, Fault, Running, StopHooks, Verdict
from .observe import DOWN, Observed, ends, noticed, precedes

ENDED = "its main process ended"
DEATHS = {"1": "exited with status %s", "2": "was killed by signal %s", "3": "dumped core on signal %s"}
"""By systemd's ExecMainCode."""


def stop_limit(state: Mapping[str, str], otherwise: float) -> float:
    """Seconds that a stop may take: systemd itself kills what does not end, so it is given its time and a little more.

    :param otherwise: seconds for a unit without a limit of its own.
    """
    return (seconds(state.get("TimeoutStopUSec", "")) or otherwise) + 5


def running_of(
    system: System, unit: str, state: Mapping[str, str], process: Process, environ: Dict[str, str], deadline: float
) -> Running:
    """The running invocation of a unit, from its state and its main process; ``deadline``: see Running."""
    return Running(
        unit=unit,
        main_pid=int(state["MainPID"]),
        invocation_id=state.get("InvocationID", ""),
        environ=environ,
        started_monotonic=_started(state),
        deadline=deadline,
        control_group=state.get("ControlGroup", ""),
        process=process,
        system=system,
    )


def _started(state: Mapping[str, str]) -> float:
    return int(state.get("ExecMainStartTimestampMonotonic") or 0) / 1e6


class Switch:
    """One unit, whose ``state`` is what was last seen of it."""

    def __init__(self, system: System, change: Change, hooks: Optional[StopHooks], observed: Observed) -> None:
        self.system = system
        self.change = change
        self.hooks = hooks
        self.unit = observed.unit
        self.state: Mapping[str, str] = observed.state
        self.failing = observed.failing
        self.acted = False
        """Whether the unit was started or stopped; ``since``, on time.monotonic(), is when that began."""
        self.since = 0.0
        self.restarted = False
        self.warnings: List[str] = []

    def look(self) -> None:
        self.state = self.system.show(self.unit)

    @property
    def invocation(self) -> str:
        return self.state.get("InvocationID", "")

    @property
    def down(self) -> bool:
        return self.state.get("ActiveState") in DOWN

    @property
    def active(self) -> str:
        """The state for a person."""
        return "%s (%s)" % (self.state.get("ActiveState"), self.state.get("SubState"))

    def act(self, action: str) -> Optional[Running]:
        """Start, restart, reload or stop the unit.

        :returns: what runs then; None if it was stopped, or has no main process.
        :raises Fault: it did not do so.
        """
        previous = self.invocation
        if action == "reload":
            return self._reload()
        if action != "start":
            self._call_before_stop()
        self.system.reset_failed(self.unit)  # systemd counts regular starts too into StartLimitBurst=
        self.acted, self.since = True, time.monotonic()
        if action == "stop":
            self._stop()
            return None
        failure = self._restart_or_fail() if action == "restart" else self.start()
        self.restarted = action == "restart"
        self.look()
        if failure or self.invocation == previous:
            raise self.fault(failure or "systemd did not start it again", previous)
        running = self.executed()
        if not running and self.down and self.state.get("Type") != "oneshot":
            raise self.fault("it is not running", previous)
        return running

    def _reload(self) -> Optional[Running]:
        self.acted, self.since = True, time.monotonic()
        failure = self.reload()
        self.look()
        if failure:
            raise Fault("not_reloaded", "systemctl reload failed: %s" % failure)
        return self.executed()

    def reload(self) -> Optional[str]:
        """Have the process read its files again; gives what went wrong, if anything did."""
        return self.system.reload_unit(self.unit, self.change.timeout)

    def start(self) -> Optional[str]:
        return self.system.start(self.unit, self.change.timeout)

    def _stop(self) -> None:
        failure = self.stop()
        self.look()
        if not self.down:
            raise Fault("not_stopped", "it is %s after systemctl stop: %s" % (self.active, failure))
        released = self.hooks.after_stop() if self.hooks else Verdict("ok")
        if not released.ok:
            self.warnings.append(released.message)

    def stop(self) -> Optional[str]:
        """What went wrong with the stop, if anything did."""
        return self.system.stop(self.unit, stop_limit(self.state, self.change.timeout))

    def _call_before_stop(self) -> None:
        """Give the process that is about to be stopped time to end its work, if there is one at all."""
        try:
            running = self.executed() if self.hooks and int(self.state.get("MainPID") or 0) else None
        except Fault:
            return
        if running and self.hooks:
            self.hooks.before_stop(running)

    def _restart_or_fail(self) -> Optional[str]:
        failure, released = self.restart()
        if not released.ok:
            raise Fault.of(released)
        return failure

    def restart(self) -> Tuple[Optional[str], Verdict]:
        """What went wrong, and what the hooks found between stop and start; after a fault nothing is started."""
        if not self.hooks:
            if self.failing:  # else a restart by systemd in just this moment could be taken for ours
                self.stop()
            limit = stop_limit(self.state, self.change.timeout)
            return self.system.restart(self.unit, limit, self.change.timeout), Verdict("ok")
        failure = self.stop()
        released = self.hooks.after_stop()
        if failure or not released.ok:
            return failure, released
        return self.start(), released

    def executed(self) -> Optional[Running]:
        """The running invocation once its main process is executed; None for a unit without one."""
        until = time.monotonic() + self.change.timeout
        while precedes(self.state):
            if time.monotonic() > until:
                raise self.fault("its main process was not started within %d s" % self.change.timeout)
            # systemd sends no signal when ExecStartPre= has ended
            time.sleep(0.05)
            self.look()
        pid = int(self.state.get("MainPID") or 0)
        if not pid and ends(self.state):
            raise self.fault(ENDED, invocation=self.invocation)
        return self._running(pid) if pid else None

    def _running(self, pid: int) -> Running:
        """The invocation once ``pid`` is no longer systemd's own child, but the unit's program."""
        invocation, process = self.invocation, self.system.process(pid)
        deadline = (max(_started(self.state), self.since) if self.acted else time.monotonic()) + self.change.timeout
        environ = self.system.environ(pid)
        while environ is None or environ.get("INVOCATION_ID", invocation) != invocation:
            if process.ended_within(0.005):
                raise self.fault(ENDED, invocation=invocation)
            if time.monotonic() > deadline:
                raise self.fault("its main process was not executed within %d s" % self.change.timeout)
            environ = self.system.environ(pid)
        return running_of(self.system, self.unit, self.state, process, environ, deadline)

    def fault(self, what: str, previous: Optional[str] = None, invocation: str = "") -> Fault:
        """What systemd says of a unit that did not come up; ``previous`` is the invocation before it."""
        self.state = state = noticed(self.system, self.unit)
        result, status = state.get("Result", ""), state.get("ExecMainStatus", "0")
        restarts = int(state.get("NRestarts") or 0)
        death = DEATHS.get(state.get("ExecMainCode", ""), "")
        name = "failed"
        if restarting(state) or restarts or result == "start-limit-hit":
            name = "crash_loop"
        elif result == "timeout" or not (self.down or death):
            name = "timeout"
        message = [what]
        if death:
            message.append("the main process " + death % status + (" (cannot be executed)" if status == "203" else ""))
        message.append("Result=%s, %s" % (result, self.active))
        if name == "crash_loop":
            message.append("systemd keeps restarting it")
        fault = Fault(
            name,
            "; ".join(message),
            result=result,
            exec_main_status=int(status) if status.isdigit() else None,
            n_restarts=restarts,
            active_state=state.get("ActiveState"),
            sub_state=state.get("SubState"),
        )
        invocation = invocation or self.invocation
        fault.invocation = invocation if invocation != previous else ""
        return fault
