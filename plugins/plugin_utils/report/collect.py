# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the report's page shows of a host and of a rollout, from what the playbook has registered. Pure.

Each value is picked by name, so options, environments and diffs, which may contain secrets, stay out of the page.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from ...module_utils.toolbox.text import one_line
from ..rollout import look
from ..run_summary import no_answer

KINDS = ("unreachable", "gpu", "service", "drift", "slow", "note")
"""Kinds of problems, the most serious first."""
LEVELS = {"unreachable": "bad", "gpu": "bad", "service": "bad", "drift": "warn", "slow": "warn"}


def host(name: str, variables: Mapping[str, Any], declared: Mapping[str, Sequence[str]]) -> Dict[str, Any]:
    """One host.

    :param variables: what ``playbooks/report_parts/read.yml`` has registered.
    :param declared: unit → the models that the inventory declares for it.
    :returns: ``name``, ``level`` (``good``, ``warn``, ``bad``), ``problems``, ``driver``, ``gpus``, ``topology``,
        ``rdma``, ``services``.
    """
    read = _mapping(variables.get("report_gpus"))
    facts = _mapping(_mapping(read.get("ansible_facts")).get("gpu"))
    services = list(_services(variables, facts, declared))
    problems = sorted(_problems(variables, read, facts, services), key=lambda one: KINDS.index(one["kind"]))
    levels = {LEVELS.get(one["kind"], "good") for one in problems}
    return {
        "name": _text(name),
        "level": next((level for level in ("bad", "warn") if level in levels), "good"),
        "problems": problems,
        "driver": _text(_mapping(facts.get("driver")).get("version")),
        "gpus": [_gpu(device) for device in _mappings(facts.get("devices"))],
        "topology": _matrix(facts.get("topology")),
        "rdma": [
            {"name": _text(one.get("name")), "near": [_text(word) for word in one.get("gpu_distances") or ()]}
            for one in _mappings(facts.get("rdma"))
        ],
        "services": services,
    }


def _gpu(device: Mapping[str, Any]) -> Dict[str, Any]:
    memory, temperature, power = (_mapping(device.get(name)) for name in ("memory", "temperature", "power"))
    health = _mapping(device.get("health"))
    return {
        "index": _number(device.get("index")),
        "name": _text(device.get("name")).replace("NVIDIA ", ""),
        "used": _number(memory.get("used_bytes")),
        "total": _number(memory.get("total_bytes")),
        "celsius": _number(temperature.get("gpu_celsius")),
        "slows_at": _number(temperature.get("slowdown_celsius")),
        "busy": _number(_mapping(device.get("utilization")).get("gpu_percent")),
        "watts": _number(power.get("usage_watts")),
        "watts_limit": _number(power.get("enforced_limit_watts")),
        "health": _health(health),
        "why": [_text(reason) for reason in health.get("reasons") or ()],
        "units": {_unit(one.get("unit")): _number(one.get("used_bytes")) for one in _mappings(device.get("processes"))},
    }


def _health(health: Mapping[str, Any]) -> str:
    if health.get("lost"):
        return "lost"
    if not health.get("fit"):
        return "unfit"
    return "fit" if health.get("ok") else "slow"


def _services(
    variables: Mapping[str, Any], facts: Mapping[str, Any], declared: Mapping[str, Sequence[str]]
) -> Iterator[Dict[str, Any]]:
    check = _mapping(variables.get("rollout_check"))
    registered = _mapping(check.get("registered")) if check.get("as_declared") else variables
    history = _mapping(_mapping(variables.get("report_generations")).get("generations"))
    history = {_unit(unit): list(_mappings(kept)) for unit, kept in history.items()}
    loaded = {
        _unit(one.get("unit")): list(_mappings(one.get("loaded")))
        for one in _mappings(_mapping(variables.get("report_ollama")).get("results"))
    }
    found = {_unit(unit): (engine, result) for unit, engine, result in look.services(registered) if result}
    for unit in dict.fromkeys([*found, *history]):
        engine, result = found.get(unit) or (unit.partition("@")[0], {})
        failed = bool(result.get("failed"))
        differs = bool(result.get("changed")) and not failed
        kept = history.get(unit) or []
        yield {
            "unit": unit,
            "engine": _text(engine),
            "verdict": _text(result.get("verdict")) or ("failed" if failed else "" if result else "unknown"),
            "line": _text(result.get("msg"), 600),
            "state": "failed" if failed else "differs" if differs else "as declared" if result else "unknown",
            "why": [_text(reason) for reason in result.get("reasons") or ()],
            "drift": sorted(_text(name) for name in _mapping(result.get("drift"))),
            "differs": [_text(name) for name in result.get("differs") or ()],
            "restart": differs and bool(result.get("restarted")),
            "version": _text(result.get("version") or (kept[-1].get("version") if kept else "")),
            "generations": [_generation(one) for one in reversed(kept)],
            "models": list(_models(unit, loaded.get(unit), declared.get(unit) or (), facts)),
        }


def _generation(found: Mapping[str, Any]) -> Dict[str, Any]:
    figures, downtime = _mapping(found.get("figures")), _number(found.get("downtime_ms"))
    return {
        "number": _number(found.get("number")),
        "accepted": _text(found.get("accepted")),
        "verdict": _text(found.get("verdict")),
        "ready": _number(figures.get("ready_seconds")),
        "answer": _text(figures.get("answer")),
        "latency": _number(figures.get("latency_seconds")),
        "unserved": None if downtime is None else downtime / 1000,
        "changes": [_text(change) for change in found.get("changes") or ()],
    }


def _models(
    unit: str, loaded: Optional[Sequence[Mapping[str, Any]]], declared: Sequence[str], facts: Mapping[str, Any]
) -> Iterator[Dict[str, Any]]:
    """The models that a service holds in memory, with the bytes on each GPU.

    :param loaded: what Ollama says of its own; None for other engines, whose processes hold one model each.
    """
    if loaded is not None:
        for one in loaded:
            held = {str(index): _number(size) for index, size in _mapping(one.get("held_bytes")).items()}
            yield {"name": _text(one.get("name")), "held": held, "context": _number(one.get("context"))}
        return
    held = {
        str(device.get("index")): size
        for device in _mappings(facts.get("devices"))
        for size in [sum(_number(one.get("used_bytes")) or 0 for one in _of(unit, device))]
        if size
    }
    if held:
        yield {"name": ", ".join(map(_text, declared)) or unit, "held": held, "context": None}


def _of(unit: str, device: Mapping[str, Any]) -> List[Mapping[str, Any]]:
    return [one for one in _mappings(device.get("processes")) if _unit(one.get("unit")) == unit]


def _problems(
    variables: Mapping[str, Any],
    read: Mapping[str, Any],
    facts: Mapping[str, Any],
    services: Sequence[Mapping[str, Any]],
) -> Iterator[Dict[str, str]]:
    if read.get("unreachable") or not read:
        yield _problem("unreachable", "", no_answer(read), "check that the host is up and that Ansible reaches it")
        return
    if read.get("failed"):
        yield _problem("gpu", "", "the GPUs could not be read: %s" % _text(read.get("msg")))
    for one in _mappings(facts.get("findings")):
        kind = {"unfit": "gpu", "slow": "slow"}.get(str(one.get("effect")), "note")
        place = "GPUs" if one.get("gpu") is None else "GPU %s" % _text(one["gpu"])
        yield _problem(kind, place, "%s: %s" % (one.get("check"), one.get("text")), one.get("remedy"))
    yield from _drift(_mapping(variables.get("rollout_look")), services)


def _drift(found: Mapping[str, Any], services: Sequence[Mapping[str, Any]]) -> Iterator[Dict[str, str]]:
    failed = False
    for one in services:
        if one["state"] == "failed" or one["verdict"] not in ("ok", "", "unknown"):
            failed = True
            yield _problem("service", one["unit"], one["line"] or one["verdict"], "run site.yml, or look into it")
        elif one["state"] == "differs":
            action = "run site.yml; it restarts the service" if one["restart"] else "run site.yml; no restart"
            names = ", ".join(one["differs"]) + ": " if one["differs"] else ""
            yield _problem("drift", one["unit"], names + ("; ".join(one["why"]) or one["line"]), action)
    named = {one["unit"] for one in services}
    for row in _mappings(found.get("services")):
        if row.get("service") not in named:
            yield _problem("drift", row.get("service"), row.get("why"), "run site.yml")
    if found.get("state") == "unfit" and not failed:
        yield _problem("service", "", found.get("msg"))


def _problem(kind: str, place: Any, text: Any, action: Any = "") -> Dict[str, str]:
    return {"kind": kind, "place": _text(place), "text": _text(text, 600), "action": _text(action)}


def rollout(receipt: Mapping[str, Any]) -> Dict[str, Any]:
    """One rollout, from its receipt."""
    hosts = _mapping(receipt.get("hosts"))
    return {
        "run": _text(receipt.get("run")),
        "verdict": _text(receipt.get("verdict")),
        "reason": _text(receipt.get("reason")),
        "seconds": _number(receipt.get("seconds")),
        "error": _number(_mapping(receipt.get("prediction_error")).get("all")),
        "as_declared": len(receipt.get("as_declared") or ()),
        "hosts": [
            {
                "name": _text(name),
                "status": _text(own.get("status")),
                "why": _text(own.get("why")),
                "rolled_back": bool(own.get("rolled_back")),
                "services": [
                    {
                        "service": _text(row.get("service")),
                        "predicted": _number(row.get("predicted")),
                        "measured": _number(row.get("measured")),
                    }
                    for row in _mappings(own.get("services"))
                ],
            }
            for name, own in ((name, _mapping(own)) for name, own in hosts.items())
        ],
        "pools": [
            {
                "name": _text(name),
                **{key: _number(_mapping(pool).get(key)) for key in ("hosts", "minimum", "least_ready")},
            }
            for name, pool in _mapping(receipt.get("pools")).items()
        ],
    }


def _matrix(rows: Any) -> List[List[str]]:
    return [[_text(word) for word in row] for row in rows or () if isinstance(row, (list, tuple))]


def _unit(name: Any) -> str:
    return _text(name).replace(".service", "")


def _text(value: Any, limit: int = 300) -> str:
    return "" if value is None else one_line(str(value), limit)


def _number(value: Any) -> Any:
    return value + 0 if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    """What a host has answered may be of any type."""
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    yield from (one for one in (value if isinstance(value, (list, tuple)) else ()) if isinstance(one, Mapping))
