# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a rollout before it, and its receipt after it: for a person, and as data. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from ...module_utils.serving.reservation import PLACE
from . import capacity, predict
from . import state as states
from .state import Planned, State


def plan_lines(planned: Planned) -> List[str]:
    """The plan as text."""
    number = sum(len(unit.hosts) for unit in planned.units)
    lines = ["%s to change, %s as declared" % (_hosts(number), _hosts(len(planned.as_declared)))]
    for number, step in enumerate(capacity.steps(planned), 1):
        lines.append("%d. %s%s" % (number, "canary " if step["canary"] else "", ", ".join(step["hosts"])))
        for host in step["hosts"]:
            for row in planned.services.get(host, ()):
                lines.append("   %s %s: %s" % (host, row["service"], row["why"]))
                if row["restart"]:
                    lines.append(
                        "   %s  restart, about %.1f s without it (%s)" % (host, row["predicted"], row["basis"])
                    )
        lines += ["   " + line for line in pool_lines(step["pools"])]
    return lines


def pool_lines(pools: Mapping[str, Mapping[str, Any]]) -> List[str]:
    """What a step leaves of the pools."""
    return ["pool %s: %s" % (name, said) for name, pool in pools.items() for said in _pool(pool)]


def _pool(pool: Mapping[str, Any]) -> List[str]:
    """What a step leaves of a pool."""
    lines = ["%(ready)d of %(hosts)d ready, at least %(minimum)d" % pool]
    if not pool["ready"]:
        lines.append("about %.1f s unserved" % pool["seconds"])
    if "drained" in pool:
        what = "go to the other hosts" if pool["ready"] else "find no host"
        number = pool["moved"] if pool["ready"] else pool["unserved"]
        lines.append(
            "requests: about %.0f are waited for, %.0f %s (gateways' mean rate)" % (pool["drained"], number, what)
        )
    return lines


def renewed_lines(planned: Planned) -> List[str]:
    """What the canary has changed of the plan."""
    groups: Dict[str, List[str]] = {}
    for host, rows in planned.services.items():
        for row in rows:
            if "renewed" in row:
                said = "after the canary: %s restarts in about %.1f s" % (row["service"], row["renewed"])
                groups.setdefault(said, []).append(host)
    return ["%s on %s" % (said, ", ".join(hosts)) for said, hosts in groups.items()]


def receipt(state: State, now: float) -> Dict[str, Any]:
    """What a run was predicted to cost, and what it cost."""
    planned = state.plan
    if planned is None:
        return {"run": state.run, "verdict": "incomplete", "hosts": {}}
    return {
        "run": state.run,
        "verdict": states.verdict(state),
        "reason": state.stopped or states.exceeded(state),
        "seconds": round(now - state.began, 1),
        "resumed": state.resumed,
        "as_declared": planned.as_declared,
        "steps": capacity.steps(planned),
        "hosts": {host: _host(state, planned, host) for unit in planned.units for host in unit.hosts},
        "canary": {host: [*worse, *state.unknown[host]] for host, worse in state.worse.items()},
        "pools": {
            name: {"hosts": len(pool.hosts), "minimum": pool.minimum, "least_ready": state.least.get(name)}
            for name, pool in planned.pools.items()
        },
        "prediction_error": _errors(state, planned),
    }


def _host(state: State, planned: Planned, host: str) -> Dict[str, Any]:
    own = state.hosts[host]
    rows = [dict(row, measured=own.measured.get(row["service"])) for row in planned.services.get(host, ())]
    return {"status": own.status, "why": own.why, "rolled_back": own.rolled_back, "services": rows}


def _errors(state: State, planned: Planned) -> Dict[str, Any]:
    """How far off the predictions were: all, those from restarts measured on the host, those renewed by the canary."""
    rows = [
        (row, state.hosts[host].measured.get(row["service"]))
        for host in planned.services
        for row in planned.services[host]
    ]
    return {
        "all": predict.error((row["predicted"], real) for row, real in rows),
        "measured_here": predict.error((row["predicted"], real) for row, real in rows if row["restarts"]),
        "after_the_canary": predict.error((row["renewed"], real) for row, real in rows if "renewed" in row),
    }


def receipt_lines(found: Mapping[str, Any]) -> List[str]:
    """The receipt as text; its first line is the summary."""
    lines = [summary(found)]
    table: List[Sequence[str]] = []
    for host, own in found["hosts"].items():
        for row in own["services"] or [{"service": "", "predicted": 0, "measured": None}]:
            seconds = [_seconds(row.get(name)) for name in ("predicted", "renewed", "measured")]
            table.append((host, str(row["service"]), *seconds, own["status"], own["why"]))
    if table:
        table.insert(0, ("host", "service", "predicted", "renewed", "measured", "status", ""))
        widths = [max(len(row[column]) for row in table) for column in range(6)]
        for cells in table:
            padded = [cell.ljust(width) for cell, width in zip(cells, widths)]
            lines.append(("  " + "  ".join([*padded, cells[6]])).rstrip())
    lines += ["  canary %s: %s" % (host, line) for host, own in found.get("canary", {}).items() for line in own]
    for name, pool in found.get("pools", {}).items():
        if pool["least_ready"] is not None:
            counts = (name, pool["least_ready"], pool["hosts"], pool["minimum"])
            lines.append("  pool %s: never fewer than %d of %d ready, at least %d wanted" % counts)
    errors = found.get("prediction_error") or {}
    said = ["%s by %.0f %%" % (name.replace("_", " "), 100 * off) for name, off in errors.items() if off is not None]
    return lines + (["  predictions were off: %s" % ", ".join(said)] if said else [])


def _seconds(value: Any) -> str:
    return "-" if value is None else "%.1f s" % value


def not_taken_back(why: str, host: str, generation: str, problem: str) -> str:
    """Why the canary failed, and what takes it back."""
    if not generation:
        return "%s. It is not taken back, as nothing was recorded there before: declare the previous values" % why
    command = "ansible-playbook gpufleet.inference.rollback -e gpufleet_generation=%s --limit %s" % (generation, host)
    return "%s. It is not taken back (%s): run %s" % (why, problem, command)


def not_reserved(taken: Mapping[str, str], failed: Mapping[str, str]) -> str:
    """Why a run cannot begin.

    :param taken: hosts that another controller's rollout has reserved, and what they say of it.
    :param failed: hosts that could not be reserved, and why.
    """
    said = ["%s: %s" % pair for pair in taken.items()]
    said += ["%s cannot be reserved: %s" % pair for pair in failed.items()]
    advice = (
        ". Wait until that rollout has ended, or stop it there. If its controller is gone for good, add "
        "-e rollout_take_over=true"
    )
    return "this run has changed nothing: %s%s" % ("; ".join(said), advice if taken else "")


def not_released(host: str, why: str) -> str:
    """What is left on a host, and how it goes away."""
    return (
        "%s could not be released, so other controllers' rollouts may not change it: %s. The next rollout of this "
        "inventory releases it; to do so yourself, remove %s there" % (host, why, PLACE)
    )


def summary(found: Mapping[str, Any]) -> str:
    """One line: the verdict, the counts, the reason."""
    counts: Dict[str, int] = {}
    for own in found["hosts"].values():
        counts[own["status"]] = counts.get(own["status"], 0) + 1
    words = {"done": "changed", "waiting": "not touched", "failed": "failed", "lost": "lost"}
    parts = ["%d %s" % (counts[status], word) for status, word in words.items() if counts.get(status)]
    hand = sum(counts.get(status, 0) for status in states.IN_HAND)
    parts += ["%d in hand" % hand] if hand else []
    parts.append("%d as declared" % len(found.get("as_declared", ())))
    said = "rollout %s: %s" % (found["verdict"], ", ".join(parts))
    why = [own["why"] for own in found["hosts"].values() if own["status"] in states.FAILED]
    reason = found.get("reason") or ""
    return said + ("; %s" % reason if reason else "") + (": %s" % why[0] if why else "")


def _hosts(number: int) -> str:
    return "%d host%s" % (number, "s"[: number != 1])
