# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes a service out of its load balancers before it is stopped, and puts it back once it is proven.

A mark, a file of root's below ``/run``, says that a service takes no new requests: ``state`` is ``drain`` while a run
changes it, ``down`` with the ``verdict`` of a gate that found it unfit. The agent of the host
(``programs/gateway_agent.py``) passes that on to the gateways. A mark that a killed run has left is found by the next
one, and a boot leaves none.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from ..converge.model import Fault, Outcome, Running, Verdict
from ..endpoint.client import Endpoint, Load
from ..toolbox import files, record, trusted
from ..toolbox.command import status_of
from ..toolbox.errors import Failed
from ..toolbox.http_stream import HttpError
from ..toolbox.text import one_line
from . import agent

READY = 2
"""Answers after which a gateway sends requests again: between two of them it has looked at the service itself, too."""
HEAR = 10.0
"""Seconds within which every gateway has to ask; they ask once a second."""
REFUSED = 3.0
"""Seconds after the start of an agent by which every gateway has asked it about each of its services."""
COMMAND = 60.0
"""Seconds that a command of the inventory may take."""
_PAUSE = 0.25  # seconds between two looks
_CALM = 2  # looks in a row without a request: a gateway may be about to send one that it has just accepted
_KEPT = 8  # the same for connections that are kept open, while the engine itself reports no requests


def drain(
    running: Running,
    endpoint: Optional[Endpoint],
    port: int,
    command: Sequence[str],
    limit: float,
    warn: Callable[[str], None],
) -> Dict[str, Any]:
    """Redirect new requests, and wait until those of the process have finished.

    The agent may already be configured for the changed service, so only the gateways are taken from its
    configuration.

    :param endpoint: reports the requests of the process; None for an engine that does not.
    :param port: port at which the process listens; 0 if unknown: the declared port is used.
    :param command: argv that takes the service out of another load balancer; empty for none.
    :param limit: seconds for which requests are waited for.
    :param warn: called with what is not as it should be: a silent gateway, requests that are going to be cut.
    :returns: ``seconds``, ``gateways`` and ``silent`` (names of those that know, and of those that did not ask), and
        ``cut`` (what was still running; empty for nothing).
    :raises Fault: ``not_drained``: the command failed.
    """
    began, unit = time.monotonic(), running.unit
    config = record.read(agent.CONFIG)
    gateways, service = config.get("gateways") or {}, (config.get("services") or {}).get(unit)
    asking = sorted(gateways) if service else []
    if service or command:
        _mark(unit, state="drain", command=bool(command))
    if command:
        failure = run_command(command, unit)
        if failure:
            raise Fault("not_drained", "drain_command: %s. Nothing was stopped" % failure)
    silent: List[str] = []
    if gateways and not service:
        _await_refusals(int(config["port"]))
    if asking:
        silent = _await_gateways(unit, int(config["port"]), asking, began)
        if silent:
            warn(
                "%s: %s did not ask the agent of this host for %.0f s: down, taken out by its operator, or it cannot "
                "reach port %d; in the last case it may still send requests here"
                % (unit, ", ".join(silent), HEAR, config["port"])
            )
    addresses = {address for listed in gateways.values() for address in listed}
    port = port or int((service or {}).get("port") or 0)
    left = _await_idle(running, endpoint, port, addresses, limit)
    if left:
        warn("%s: %s after %.0f s; they were cut (drain_timeout)" % (unit, left, limit))
    return {
        "seconds": round(time.monotonic() - began, 1),
        "gateways": [name for name in asking if name not in silent],
        "silent": silent,
        "cut": left,
    }


def _await_gateways(unit: str, port: int, names: Sequence[str], since: float) -> List[str]:
    """Wait until each gateway has received ``drain``; return those that did not in time.

    A gateway that did not ask in the seconds before is down, or its operator has taken this host out: it is not waited
    for.
    """
    until, last = time.monotonic() + HEAR, since - HEAR
    while True:
        found = agent.ask(port)
        drained = {name: then for name, then in _times(found.get("services"), unit, "drained") if then >= since}
        asked = {name: then for name, then in _times(found, "gateways") if then >= last}
        silent = [name for name in names if name not in drained]
        started = found.get("started")
        young = not isinstance(started, float) or started > last
        if time.monotonic() >= until or not (silent if young else set(silent) & set(asked)):
            return silent
        # the agent sends no notification
        time.sleep(0.1)


def _await_refusals(port: int) -> None:
    """Wait until every gateway knows that a service is no longer declared; the agent reports that from its start."""
    until = time.monotonic() + REFUSED
    while time.monotonic() < until:
        started = agent.ask(port).get("started")
        if isinstance(started, float) and started <= time.monotonic() - REFUSED:
            return
        # the agent sends no notification
        time.sleep(0.1)


def _times(found: Any, *path: str) -> List[Tuple[str, float]]:
    """Names and times at a place of the agent's answer; none where something else is there."""
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return [(name, then) for name, then in found.items() if isinstance(then, float)] if isinstance(found, dict) else []


def _await_idle(running: Running, endpoint: Optional[Endpoint], port: int, addresses: Any, limit: float) -> str:
    """Wait until no request is running; return what is still running at the end, or an empty string.

    A gateway opens a connection for each request (role ``gateway``), so connections count for engines that report no
    requests. Where a gateway of another make keeps connections open, the engine's own report decides.
    """
    until, calm, reported = time.monotonic() + limit, 0, 0
    while True:
        load = _load(endpoint, max(1.0, min(5.0, until - time.monotonic())))
        peers = (
            [peer for peer in running.system.peers(running.main_pid, port) if peer in addresses] if addresses else []
        )
        idle = load is None or load.idle
        calm = calm + 1 if idle and not peers else 0
        reported = reported + 1 if load and load.idle else 0
        if calm >= (_CALM if addresses else 1) or reported >= _KEPT:
            return ""
        if time.monotonic() >= until:
            return _still(load, peers)
        # neither sends a word when it ends
        time.sleep(min(_PAUSE, max(0.0, until - time.monotonic())))


def _load(endpoint: Optional[Endpoint], timeout: float) -> Optional[Load]:
    try:
        return endpoint.load(timeout) if endpoint else None
    except HttpError:  # it is ending, or hangs: nothing is known of its requests
        return None


def _still(load: Optional[Load], peers: Sequence[str]) -> str:
    said = []
    if load and not load.idle:
        more = "s"[: load.running != 1]
        said.append("it still has %d request%s running and %d waiting" % (load.running, more, load.waiting))
    if peers:
        form = "connection from %s is" if len(peers) == 1 else "connections from %s are"
        said.append("%d %s open" % (len(peers), form % ", ".join(sorted(set(peers)))))
    return " and ".join(said)


# --- marks


def at_gateways(unit: str) -> bool:
    """Whether a gateway may send requests to a service."""
    return os.path.exists(agent.CONFIG) and unit in (record.read(agent.CONFIG).get("services") or {})


def _mark(unit: str, **said: Any) -> None:
    """Write a mark. The verdict and the command of a previous mark are kept until the service is proven.

    :raises OSError: it cannot be written.
    """
    path = os.path.join(agent.MARKS, unit)
    former = record.read(path)
    kept = {key: former[key] for key in ("verdict", "command") if former.get(key)}
    record.write(path, dict(kept, **{key: value for key, value in said.items() if value}))


def put_back(unit: str, command: Sequence[str], warn: Callable[[str], None]) -> None:
    """Put a service that is proven back into its load balancers.

    :param command: argv that does so for one that ``drain_command`` took it out of; empty for none.
    :param warn: called with the names of gateways that did not hear of it in time.
    :raises Failed: it failed; the mark stays, so that the next run tries again.
    """
    path = os.path.join(agent.MARKS, unit)
    if command and record.read(path).get("command"):
        failure = run_command(command, unit)
        if failure:
            raise Failed(
                "%s is proven, but takes no requests yet: undrain_command: %s. The next run tries again"
                % (unit, failure)
            )
    drained = record.read(path).get("state") == "drain"
    forget(unit)
    if drained:
        _await_return(unit, warn)


def hold(unit: str, command: bool) -> None:
    """Keep a service that is stopped or asleep out of its load balancers; a boot has removed its mark.

    :param command: whether ``drain_command`` took it out of one, so that ``undrain_command`` puts it back.
    """
    _mark(unit, state="drain", command=command)


def forget(unit: str) -> None:
    """Remove the mark of a service that no load balancer should get back."""
    files.remove(os.path.join(agent.MARKS, unit))


def _await_return(unit: str, warn: Callable[[str], None]) -> None:
    """Wait until the gateways send requests again: the service that is changed next could be the last one left."""
    config = record.read(agent.CONFIG)
    service = (config.get("services") or {}).get(unit)
    if not service or service.get("held"):
        return
    until = time.monotonic() + HEAR
    while True:
        service = agent.ask(int(config["port"])).get("services", {}).get(unit)
        told = service.get("ready") if isinstance(service, dict) else None
        counts = {name: told.get(name, READY) for name in config["gateways"]} if isinstance(told, dict) else {}
        late = sorted(name for name, count in counts.items() if not (isinstance(count, int) and count >= READY))
        if not late:
            return
        if time.monotonic() >= until:
            warn(
                "%s is verified, but %s did not ask the agent of this host for %.0f s, and may still send no requests "
                "here when the next service is changed" % (unit, ", ".join(late), HEAR)
            )
            return
        # the agent sends no notification
        time.sleep(0.1)


def after_failure(
    unit: str,
    outcome: Outcome,
    asked: Optional[Verdict],
    drained: bool,
    command: Sequence[str],
    warn: Callable[[str], None],
) -> Optional[str]:
    """Update the mark after a failed run; return a sentence if that fails.

    The process from before a change was proven by an earlier run, so a rollback puts it back. A process that the gate
    has found unfit, and that runs on, is marked as down.

    :param asked: what the gate said last; None where it was not asked. With ``serves`` in its evidence, the process
        does not do what was asked of it, and serves as before.
    :param drained: whether this run has begun to drain the service.
    """
    former = record.read(os.path.join(agent.MARKS, unit))
    fit = asked is None or asked.ok or asked.evidence.get("serves")
    unfit = not fit and not (outcome.rolled_back and outcome.restarted)
    try:
        if unfit or (drained and former.get("verdict")):
            if former or os.path.exists(agent.CONFIG):
                name = asked.name if unfit and asked else former["verdict"]
                _mark(unit, state="down", verdict=name)
        elif drained:
            put_back(unit, command, warn)
    except (OSError, Failed) as error:
        return str(error)
    return None


class MarkStep:
    """A step for a service that is marked: once it is proven it takes requests again."""

    restarts = False

    def __init__(self, unit: str) -> None:
        self.unit = unit

    def needed(self) -> bool:
        return agent.marked(self.unit)

    def diff(self) -> Dict[str, str]:
        said = record.read(os.path.join(agent.MARKS, self.unit))
        before = one_line("%s %s" % (said.get("state") or "drain", said.get("verdict") or "")).strip()
        return {"before": "at the gateways: %s" % before, "after": "at the gateways: ready"}

    def apply(self) -> None:
        pass  # only the proof may put it back

    def undo(self) -> None:
        return None


# --- commands of the inventory


def run_command(argv: Sequence[str], unit: str) -> str:
    """Run a command without a shell, with the unit's name in ``GPUFLEET_UNIT``: why it failed, or nothing."""
    who = trusted.intruder_of(argv)
    if who:
        return "%s is not run as root: %s" % (argv[0], who)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "GPUFLEET_UNIT": unit}
    with tempfile.TemporaryFile() as said:
        try:
            status = status_of(argv, COMMAND, environment=environment, errors=said)
        except OSError as error:
            return "%s cannot be run: %s" % (argv[0], error.strerror)
        if status is None:
            return "%s did not end within %.0f s" % (argv[0], COMMAND)
        if not status:
            return ""
        said.seek(0)
        words = one_line(said.read(2000).decode("utf-8", "replace"))
        return "%s ended with status %d%s" % (argv[0], status, ": " + words if words else "")
