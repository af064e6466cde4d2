# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was found on a host, from the results of the roles' tasks; who serves, from a gateway's figures. Pure."""

from __future__ import annotations

import math
import re
from typing import AbstractSet, Any, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Set, Tuple

from ...module_utils.gateway.runtime import host_name
from ...module_utils.toolbox.text import one_line

SERVICES = {
    "ollama_result": "ollama",
    "vllm_result": "vllm",
    "vllm_shared_check_result": "vllm",
    "vllm_shared_result": "vllm",
    "llama_server_result": "llama_server",
    "gateway_result": "gateway",
    "rollout_result": "",
}
"""What the roles register of their services, and the engine. The last one is for a tasks file of the user's own."""
OTHERS = {
    "gpu_host_agent_result": "the agent for the gateways",
    "gpu_host_self_check_result": "the self check",
    "vllm_environment_result": "the environment",
    "vllm_models_result": "models",
    "llama_server_models_result": "models",
    "ollama_models_result": "models",
}

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Look(NamedTuple):
    """What one host would need."""

    state: str
    """``as declared``, ``differs``, or ``unfit``."""
    why: str = ""
    services: Sequence[Mapping[str, Any]] = ()
    """What changes: ``service``, ``engine``, ``why``, ``restart``, bytes of ``weights`` (0: unknown), the seconds of
    the last ``restarts``, and those of the last ``start`` (0: none was measured)."""
    generation: str = ""
    """What takes all services of the host back to now: the time at which the last one was accepted."""


def look(registered: Mapping[str, Any]) -> Look:
    """What the roles have found in check mode.

    :param registered: the variables of the host.
    """
    if (registered.get("rollout_check") or {}).get("as_declared"):
        return Look("as declared")
    reached = registered.get("rollout_reached") or {}
    if reached.get("unreachable"):
        return Look("unfit", "unreachable: %s" % one_line(str(reached.get("msg"))))
    if registered.get("rollout_apply") and "rollout_result" not in registered:
        return Look("unfit", "the tasks of rollout_apply register no rollout_result")
    results = [*services(registered), *_others(registered)]
    for name, _engine, result in results:
        if result.get("unreachable") or result.get("failed"):
            return Look("unfit", "%s: %s" % (name, reason(result)))
    rows = [
        {
            "service": name,
            "engine": engine,
            "why": _why(result),
            "restart": bool(result.get("restarted")),
            "weights": _weights(result),
            "restarts": [one["downtime_ms"] / 1000 for one in _generations(registered, name) if _timed(one)],
            "start": next((own for own in map(_start, reversed(_generations(registered, name))) if own), 0.0),
        }
        for name, engine, result in results
        if result.get("changed")
    ]
    if not rows:
        return Look("as declared")
    return Look("differs", "; ".join("%(service)s: %(why)s" % row for row in rows), rows, _generation(registered))


def reason(failed: Mapping[str, Any]) -> str:
    """Why a task failed, on one line."""
    return one_line(str(failed.get("msg") or "a task failed without a message"))


def measured(registered: Mapping[str, Any]) -> Dict[str, float]:
    """The seconds for which each restarted service did not serve."""
    return {
        name: round(result["downtime_ms"] / 1000, 2)
        for name, _engine, result in services(registered)
        if result.get("restarted") and _timed(result)  # none in check mode
    }


def left(
    host: str, rows: Sequence[Mapping[str, Any]], served: Mapping[str, Mapping[str, AbstractSet[str]]]
) -> List[str]:
    """The pools that a host leaves for a while, as an engine that serves them there restarts.

    :param served: pool → host → the engines that serve it there. A service of no known engine may serve any.
    """
    engines = {row["engine"] for row in rows if row["restart"]}
    return [
        pool for pool, hosts in served.items() if engines & {*hosts.get(host, ()), *([""] if host in hosts else [])}
    ]


def taken_back(registered: Mapping[str, Any]) -> bool:
    """Whether the roles have changed something, and none of it failed."""
    results = [result for _name, _engine, result in services(registered)]
    return any(result.get("changed") for result in results) and not any(result.get("failed") for result in results)


def failure(registered: Mapping[str, Any]) -> Mapping[str, Any]:
    """The result of the service that failed; empty if none did."""
    return next((result for _name, _engine, result in services(registered) if result.get("failed")), {})


def safe(failed: Mapping[str, Any]) -> bool:
    """Whether a host serves as before after a failed task: it was rolled back, or no service was stopped.

    :param failed: its result. Nobody knows after ``lost``, and where the module ended without an answer.
    """
    if any(failed.get(name) is not None for name in ("module_stdout", "timedout")):
        return False
    return not (failed.get("unreachable") or failed.get("lost")) and bool(
        failed.get("rolled_back") or not failed.get("restarted")
    )


def out(registered: Mapping[str, Any]) -> bool:
    """Whether a maintenance has stopped the services of a host, and has not ended."""
    return bool(_mapping(registered.get("rollout_result")).get("stopped"))


def services(registered: Mapping[str, Any]) -> Iterator[Tuple[str, str, Mapping[str, Any]]]:
    for name, engine in SERVICES.items():
        result = _mapping(registered.get(name))
        instances = _mapping(result.get("instances"))
        for unit, own in instances.items():
            yield one_line(str(unit)).replace(".service", ""), engine, _mapping(own)
        if not instances and not result.get("skipped"):
            yield one_line(str(result.get("service") or engine or "service")), engine, result


def _others(registered: Mapping[str, Any]) -> Iterator[Tuple[str, str, Mapping[str, Any]]]:
    for name, words in OTHERS.items():
        found = _mapping(registered.get(name))
        for result in map(_mapping, found.get("results") or [found]):
            if not result.get("skipped"):
                yield words, "", result


def _why(result: Mapping[str, Any]) -> str:
    reasons = result.get("reasons")
    listed = "; ".join(map(str, reasons)) if isinstance(reasons, (list, tuple)) else ""
    named = result.get("differs")
    names = ", ".join(map(str, named)) + ": " if isinstance(named, (list, tuple)) and named and listed else ""
    return one_line(names + listed or str(result.get("msg") or "changes"))


def _mapping(value: Any) -> Mapping[str, Any]:
    """What a host has answered may be of any type."""
    return value if isinstance(value, Mapping) else {}


def _generations(registered: Mapping[str, Any], service: str) -> List[Mapping[str, Any]]:
    """What the host has recorded of a service; the name of an engine's unit may have a hyphen for an underscore."""
    found = _mapping(_mapping(registered.get("rollout_generations")).get("generations"))
    known: Any = next((found[unit] for unit in _units(service) if unit in found), [])
    return [one for one in known if isinstance(one, Mapping)] if isinstance(known, list) else []


def _generation(registered: Mapping[str, Any]) -> str:
    recorded = _mapping(_mapping(registered.get("rollout_generations")).get("generations"))
    accepted = [_mapping(one).get("accepted") for own in recorded.values() if isinstance(own, list) for one in own]
    accepted += [_mapping(registered.get("rollout_result")).get("generation")]
    return max((one for one in accepted if isinstance(one, str) and _TIME.fullmatch(one)), default="")


def _weights(result: Mapping[str, Any]) -> int:
    """Bytes that a start loads, as far as the engine tells."""
    split = _mapping(result.get("parallel"))
    given = (_mapping(result.get("fit")).get("weight_bytes"), split.get("tensor"), split.get("pipeline"))
    factors = [number for number in given if isinstance(number, int) and 0 < number < 1 << 50]
    return math.prod(factors) if len(factors) == len(given) else 0


def _units(service: str) -> List[str]:
    return [service + ".service", service.replace("_", "-") + ".service"]


def _timed(result: Mapping[str, Any]) -> bool:
    """Whether a restart was measured."""
    found = result.get("downtime_ms")
    return isinstance(found, (int, float)) and 0 < found < 1e9


def _start(generation: Mapping[str, Any]) -> float:
    """The seconds from the start of the process until it was ready; 0 if they were not measured."""
    found = _mapping(generation.get("figures")).get("ready_seconds")
    return float(found) if isinstance(found, (int, float)) and 0 < found < 1e6 else 0.0


_ROW = re.compile(r'^haproxy_server_status\{proxy="[^"]*",server="([^"]*)",state="([^"]*)"\} 1(?:\.0+)?$', re.MULTILINE)


def serving(metrics: str, hosts: Sequence[str]) -> Tuple[Set[str], Set[str]]:
    """The hosts that a gateway sends requests to, and those that it knows.

    :param metrics: its figures in Prometheus' format.
    """
    states: Dict[str, List[str]] = {}
    for server, state in _ROW.findall(metrics):
        states.setdefault(server, []).append(state)
    known: Set[str] = set()
    up: Set[str] = set()
    for host in hosts:
        own = [state for server, found in states.items() if server.startswith(host_name(host) + ":") for state in found]
        if own:
            known.add(host)
            if all(state == "UP" for state in own):
                up.add(host)
    return up, known
