# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's servers in a gateway's pools: taken out of them, waited for, and put back, through HAProxy's runtime API."""

from __future__ import annotations

import re
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Tuple

from ..toolbox.errors import Failed, Refused
from . import runtime

_MAINTENANCE, _DRAIN = 0x01, 0x08
"""Bits of a server's administrative state."""
_CONFIGURED = 0x02
"""Bit of the state of a server's agent check."""
_WORDS = {"ready": "ready", "drained": "drain", "maintenance": "maint"}
_PAUSE = 0.2  # seconds between two looks
_CALM = 2  # looks in a row without a request


class Server(NamedTuple):
    """A server of one pool, as a gateway has it."""

    pool: str
    name: str
    state: str
    """``ready``, ``drained``, ``maintenance``."""
    agent: bool
    """Whether the gateway asks an agent about it."""


def converge(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """Have the servers of a host in the declared state, in all pools of this gateway.

    :param params: the parameters of the module ``gateway_server``.
    :returns: the module's result.
    :raises Refused: the gateway has no such server; nothing was changed.
    :raises Failed: the gateway does not answer, or requests were still running at the end.
    """
    try:
        return _converge(params, check_mode, warn)
    except runtime.RuntimeFault as error:
        raise Failed("%s: it runs on a host with the role gateway, and only root may ask it" % error) from None


def _converge(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    wanted, began = params["state"], time.monotonic()
    found = find(servers(), params["host"], params["unit"])
    if not found:
        raise Refused(
            "this gateway has no server of %s%s; it has %s"
            % (
                params["host"],
                " for %s" % params["unit"] if params["unit"] else "",
                ", ".join(sorted({server.name for server in servers()})) or "none",
            )
        )
    changing = [server for server in found if server.state != wanted]
    if changing and not check_mode:
        for server in changing:
            _set(server, wanted)
        runtime.save_state()
    left: List[str] = []
    if wanted != "ready" and not check_mode and params["timeout"] > 0:
        left = _await_idle(found, wanted, params["timeout"])
        if left:
            raise Failed(
                "%s: after %d s there are still %s; it stays out of the pools. Raise timeout, or cut them by a restart"
                % (params["host"], params["timeout"], ", ".join(left)),
                {"changed": bool(changing), "running": left},
            )
    pools = sorted({server.pool for server in found})
    return {
        "changed": bool(changing),
        "msg": "%s: %s in %d pool%s" % (params["host"], wanted, len(pools), "s"[: len(pools) != 1]),
        "pools": pools,
        "servers": {"%s/%s" % (server.pool, server.name): server.state for server in found},
        "seconds": round(time.monotonic() - began, 1),
        "running": left,
        "diff": {
            "before": "".join("%s/%s: %s\n" % server[:3] for server in changing),
            "after": "".join("%s/%s: %s\n" % (server.pool, server.name, wanted) for server in changing),
        },
    }


def find(there: List[Server], host: str, unit: str) -> List[Server]:
    """The servers of a host, or of one of its units. Pure."""
    if unit:
        return [server for server in there if server.name.rpartition(":")[0] == runtime.server_name(host, unit)]
    return [server for server in there if server.name.partition(":")[0] == runtime.host_name(host)]


def servers() -> List[Server]:
    """All servers of this gateway."""
    return read_states(runtime.ask("show servers state"))


def read_states(text: str) -> List[Server]:
    """What ``show servers state`` prints: names in a comment, then a row for each server. Pure."""
    names: List[str] = []
    found = []
    for line in text.splitlines():
        words = line.lstrip("# ").split()
        if line.startswith("#"):
            names = words
        elif names and len(words) >= len(names) - 1:
            row = dict(zip(names, words))
            admin = int(row["srv_admin_state"])
            state = "maintenance" if admin & _MAINTENANCE else "drained" if admin & _DRAIN else "ready"
            found.append(
                Server(row["be_name"], row["srv_name"], state, bool(int(row["srv_agent_state"]) & _CONFIGURED))
            )
    return found


def _set(server: Server, wanted: str) -> None:
    """Set a server's state. The agent check is off unless it is ready: after a reboot its answer would end a drain."""
    place = "%s/%s" % (server.pool, server.name)
    commands = ["%s agent %s" % ("enable" if wanted == "ready" else "disable", place)] if server.agent else []
    for command in [*commands, "set server %s state %s" % (place, _WORDS[wanted])]:
        said = runtime.ask(command)
        if said:
            raise Failed("HAProxy does not take %r: %s" % (command, said))


def _await_idle(found: List[Server], wanted: str, timeout: float) -> List[str]:
    """Wait until these servers have no running or waiting requests; return those that remain at the end.

    A reload may lose a state that is not in the state file, and old workers still have requests: both are checked.
    """
    until, calm = time.monotonic() + timeout, 0
    names = {(server.pool, server.name) for server in found}
    while True:
        for server in servers():
            if (server.pool, server.name) in names and server.state != wanted:
                _set(server, wanted)
        left = _running(names)
        calm = 0 if left else calm + 1
        if calm >= _CALM or time.monotonic() >= until:
            return left
        # HAProxy sends no word when a request ends
        time.sleep(_PAUSE)


def _running(names: Any) -> List[str]:
    counts: Dict[Tuple[str, str], List[int]] = {}
    for rows in [runtime.servers(), *_old_workers()]:
        for row in rows:
            key = (row.get("pxname", ""), row.get("svname", ""))
            if key in names:
                count = counts.setdefault(key, [0, 0])
                count[0] += int(row.get("scur") or 0)
                count[1] += int(row.get("qcur") or 0)
    return [
        "%d request%s running and %d waiting in %s/%s" % (running, "s"[: running != 1], waiting, *key)
        for key, (running, waiting) in sorted(counts.items())
        if running or waiting
    ]


def _old_workers() -> List[List[Dict[str, str]]]:
    """``show stat`` of the processes from before a reload."""
    try:
        processes = runtime.ask("show proc", runtime.MASTER)
        old = re.findall(r"^(\d+)\s+worker\s.*$", processes.partition("# old workers")[2], re.MULTILINE)
        return [runtime.rows(runtime.ask("@!%s show stat -1 4 -1" % pid, runtime.MASTER)) for pid in old]
    except runtime.RuntimeFault:  # it has just ended
        return []
