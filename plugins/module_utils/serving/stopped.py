# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stops a service for a while: its files stay, and it is not started or sent requests before it is proven again."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from ..converge.model import Outcome, ServiceError, Verdict
from ..converge.plan import ENABLED
from ..systemd.manager import ManagerError
from . import agent, drain
from .model import Host, Leaving, Service
from .vacate import DOWN, Vacated


def stop(leaving: Leaving, service: Service, host: Host) -> Dict[str, Any]:
    """Drain and stop a service, disable it, and keep it out of its load balancers, also after a boot.

    :returns: the result of the service.
    :raises ServiceError: it could not be drained, stopped or disabled; it runs as before.
    """
    unit, options = service.unit, service.options
    state = host.system.show(unit)
    active, enabled = state.get("ActiveState", "inactive"), state.get("UnitFileState") in ENABLED
    command = bool(options["drain_command"] and options["drain_timeout"])
    known = state.get("LoadState") == "loaded" and (command or drain.at_gateways(unit))
    todo = ["stopped"] * (active not in DOWN) + ["disabled"] * enabled
    todo += ["taken out of its load balancers"] * (known and not agent.marked(unit))
    if todo and not host.check_mode:
        _stop(leaving, service, host, state, command if known else None)
    said = "%s%s" % ("would be " * host.check_mode, ", ".join(todo)) if todo else "is stopped"
    before = "%s, %s\n" % (active, "enabled" if enabled else "disabled")
    diff = {"before": before, "after": "inactive, disabled\n"} if todo else {}
    outcome = Outcome(changed=bool(todo), reasons=["it is to be stopped"] * bool(todo), diff=diff)
    drained = dict(getattr(leaving.hooks, "drained", {}))
    return dict(outcome.as_result(), msg="%s: %s" % (unit, said), drain=drained)


def _stop(leaving: Leaving, service: Service, host: Host, state: Mapping[str, str], command: Optional[bool]) -> None:
    """:param command: whether ``undrain_command`` is to put it back; None: it is in no load balancer."""
    unit, options, vacated = service.unit, service.options, Vacated(host)
    try:
        vacated.stop(unit, leaving.hooks, options["timeout"] or 60, options["undrain_command"])
        if command is not None:
            drain.hold(unit, command)
        if state.get("UnitFileState") in ENABLED:
            host.system.disable(unit, runtime=state.get("UnitFileState") == "enabled-runtime")
    except (ManagerError, OSError) as error:
        said = "%s: %s.%s" % (unit, error, vacated.start_again())
        raise ServiceError(said, Outcome(verdict=Verdict("not_stopped", str(error)))) from error
    except ServiceError as error:
        raise ServiceError(error.message + vacated.start_again(), error.outcome) from error
