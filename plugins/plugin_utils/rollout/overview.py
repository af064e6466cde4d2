# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory would change on a fleet, at what price and risk, as data and as a table. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ...module_utils.converge import compare
from ...module_utils.gpu import health
from ...module_utils.toolbox.text import one_line
from . import capacity, look, words
from .state import Planned

NOTHING, CHANGES, IMPOSSIBLE = "nothing", "changes", "impossible"
SHOWN = 60
"""Characters of one value."""
STATES = (("declared", "declared"), ("on_disk", "on disk"), ("running", "running"))
COLUMNS = ("host", "service", "change", "restart", "unserved", "GPUs", "port", "why")


def host_row(
    registered: Mapping[str, Any],
    found: Mapping[str, Any],
    priced: Sequence[Mapping[str, Any]],
    ports: Mapping[str, int],
) -> Dict[str, Any]:
    """What one host has, would get and risks.

    :param registered: its variables, with the results of the roles or of their check.
    :param found: its ``state``, and why (``msg``).
    :param priced: what changes there, with the predicted seconds.
    :param ports: unit → the port that the inventory declares.
    :returns: ``state``, ``why``, ``services`` (list), ``risks`` (list of str).
    """
    results = {name: result for name, _engine, result in look.services(_results(registered)) if result}
    rows = [_service(row, results.get(row["service"], {}), ports) for row in priced]
    known = {row["service"] for row in rows}
    for name, result in results.items():
        if name not in known and found["state"] == "as declared":
            rows.append(_service({"service": name, "why": "", "restart": False, "predicted": 0.0}, result, ports))
    risks = ["cannot be changed: %s" % found["msg"]] if found["state"] == "unfit" else []
    gpu = _mapping(_mapping(registered.get("ansible_facts")).get("gpu"))
    found_on = [one for one in map(_mapping, _list(gpu.get("findings"))) if health.matters(one)]
    risks += [one_line(str(one.get("line"))) for one in found_on]
    hidden = [shadow for result in results.values() for shadow in map(_mapping, _list(result.get("shadowed")))]
    risks += [one_line(compare.say(shadow)) for shadow in hidden if {"name", "file", "line"} <= set(shadow)]
    return {"state": found["state"], "why": str(found["msg"]), "services": rows, "risks": list(dict.fromkeys(risks))}


def overview(
    hosts: Mapping[str, Mapping[str, Any]], planned: Optional[Planned], refused: str, silent: Sequence[str] = ()
) -> Dict[str, Any]:
    """The plan of a fleet.

    :param hosts: name → host_row().
    :param planned: the rollout's plan of the hosts that can be changed; None if there can be none.
    :param refused: why there can be none.
    :param silent: gateways that do not answer.
    """
    unfit = [name for name, own in hosts.items() if own["state"] == "unfit"]
    steps = capacity.steps(planned) if planned else []
    reason = refused or ("%s cannot be changed: %s" % (unfit[0], hosts[unfit[0]]["why"]) if unfit else "")
    changing = [name for name, own in hosts.items() if own["state"] == "differs"]
    risks = [{"host": name, "text": text} for name, own in hosts.items() for text in own["risks"]]
    risks += [{"host": name, "text": "this gateway does not answer"} for name in silent]
    for step in steps:
        for name, pool in step["pools"].items():
            if not pool["ready"]:
                text = "pool %s has no other host: about %.1f s unserved" % (name, pool["seconds"])
                risks.append({"host": ", ".join(step["hosts"]), "text": text})
    return {
        "verdict": IMPOSSIBLE if reason else CHANGES if changing else NOTHING,
        "reason": reason,
        "risks": risks,
        "hosts": {name: {key: own[key] for key in ("state", "why", "services")} for name, own in hosts.items()},
        "steps": steps,
    }


def lines(found: Mapping[str, Any]) -> List[str]:
    """The plan as text: the verdict, the risks, the table, the steps."""
    counts = [sum(own["state"] == state for own in found["hosts"].values()) for state in ("differs", "as declared")]
    said = ["plan: %s; %d to change, %d as declared" % (found["verdict"], *counts)]
    said += ["  impossible: %s" % found["reason"]] if found["reason"] else []
    said += ["  risk: %s: %s" % (risk["host"], risk["text"]) for risk in found["risks"]]
    said += _table(found["hosts"])
    for number, step in enumerate(found["steps"], 1):
        said.append("  step %d: %s%s" % (number, "canary " * step["canary"], ", ".join(step["hosts"])))
        said += ["    " + line for line in words.pool_lines(step["pools"])]
    return said


def _results(registered: Mapping[str, Any]) -> Mapping[str, Any]:
    """The results of the roles, or what their check says that they would be."""
    check = _mapping(registered.get("rollout_check"))
    return _mapping(check.get("registered")) if check.get("as_declared") else registered


def _service(row: Mapping[str, Any], result: Mapping[str, Any], ports: Mapping[str, int]) -> Dict[str, Any]:
    claimed = result.get("visible_devices", "") is not None  # only Ollama may leave the choice to its server
    gpus = [gpu.get("index") for gpu in map(_mapping, _list(result.get("gpus")))] if claimed else []
    drift: Dict[str, Any] = {str(name): dict(_mapping(three)) for name, three in _mapping(result.get("drift")).items()}
    return {
        **row,
        "changes": bool(row["why"]),
        "drift": drift,
        "gpus": gpus,
        "ports": [ports[row["service"]]] if row["service"] in ports else [],
    }


def _table(hosts: Mapping[str, Mapping[str, Any]]) -> List[str]:
    rows: List[Tuple[Sequence[str], List[str]]] = [(COLUMNS, [])]
    for name, own in hosts.items():
        for row in own["services"] or [{"service": "-", "why": "", "restart": False, "changes": False}]:
            own_cells = (
                name,
                row["service"],
                "unfit" if own["state"] == "unfit" else "yes" if row["changes"] else "no",
                "yes" if row["restart"] else "no",
                "%.1f s" % row["predicted"] if row["restart"] and row["predicted"] is not None else "-",
                ",".join(map(str, row.get("gpus", ()))) or "-",
                ",".join(map(str, row.get("ports", ()))) or "-",
                one_line(row["why"]),
            )
            rows.append((own_cells, [_drift(variable, three) for variable, three in row.get("drift", {}).items()]))
    widths = [max(len(cells[column]) for cells, _drifts in rows) for column in range(len(COLUMNS) - 1)]
    said = []
    for cells, drifts in rows:
        said.append(("  " + "  ".join([*map(str.ljust, cells, widths), cells[-1]])).rstrip())
        said += ["      " + drift for drift in drifts]
    return said if len(rows) > 1 else []


def _drift(variable: str, three: Mapping[str, Any]) -> str:
    """A variable's three values, and the file that sets the one on disk."""
    parts = ["%s %s" % (title, _value(three[key])) for key, title in STATES if key in three]
    place = " (%s)" % one_line(str(three["file"])) if three.get("file") else ""
    return "%s: %s%s" % (one_line(variable), ", ".join(parts), place)


def _value(value: Any) -> str:
    return "nothing" if value is None else one_line(str(value), SHOWN)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()
