# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record on a host of the rollout that is changing it, so that a second controller leaves it alone.

It does not expire: a rollout may wait for a person, and only a person knows that a controller is gone.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, Callable, Dict, Mapping

from ..toolbox import lock, record
from ..toolbox.errors import Refused

PLACE = "/var/lib/gpufleet/rollout.json"
_WAIT = 10.0  # seconds for another controller that reserves the host at the same moment


def step(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The result of the module ``host_reservation``.

    :param params: the module's parameters.
    :raises Refused: the record cannot be read or written now.
    """
    try:
        with nullcontext() if check_mode else lock.held("rollout", _WAIT, what="the reservation of this host"):
            found = record.read(PLACE)
            own = found.get("holder") in (None, params["holder"])
            if params["state"] == "released":
                return _release(found, own, check_mode)
            return _reserve(params, found, own or params["take_over"], check_mode)
    except OSError as error:
        raise Refused(str(error)) from None


_UNKNOWN = {"run": "?", "by": "an unknown controller", "since": "?"}


def _reserve(params: Mapping[str, Any], found: Mapping[str, Any], free: bool, check_mode: bool) -> Dict[str, Any]:
    if not free:
        who = "rollout %(run)s of %(by)s has reserved this host since %(since)s" % {**_UNKNOWN, **found}
        return {"changed": False, "reserved": False, "new": False, "msg": who}
    wanted = {name: params[name] for name in ("holder", "run", "by")}
    changed = {**found, **wanted} != found
    if changed and not check_mode:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record.write(PLACE, dict(wanted, since=since), mode=0o600)
    new = found.get("holder") != params["holder"]
    return {"changed": changed, "reserved": True, "new": new, "msg": "reserved for rollout %s" % params["run"]}


def _release(found: Mapping[str, Any], own: bool, check_mode: bool) -> Dict[str, Any]:
    """A reservation of another controller stays."""
    changed = bool(found) and own
    if changed and not check_mode:
        record.forget(PLACE)
    said = "released" if changed else "it was not reserved"
    return {"changed": changed, "reserved": False, "new": False, "msg": said}
