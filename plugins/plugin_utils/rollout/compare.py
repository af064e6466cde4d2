# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the canary does worse than the hosts that have not changed, from what a gateway counts meanwhile. Pure."""

from __future__ import annotations

import re
from typing import AbstractSet, Callable, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Tuple

from ...module_utils.gateway.runtime import host_name


class Counters(NamedTuple):
    """What a gateway has counted of one server so far."""

    requests: float = 0
    failed: float = 0
    open: float = 0
    """Requests that it is answering now."""
    seconds: float = 0
    """For a request, the mean of the last 1024."""


class Load(NamedTuple):
    """What some servers of a pool did in a while."""

    requests: float = 0
    failed: float = 0
    busy: float = 0
    """Seconds of all requests together."""
    earlier: float = 0
    """Requests of before, as far as they count in their mean."""
    earlier_busy: float = 0


class Rule(NamedTuple):
    """What makes a canary worse: more than ``factor`` times the others' figure, plus ``margin``."""

    sentence: str
    """With the pool, the canary's figure and the others'."""
    figure: Callable[[Load], float]
    least: int
    """Requests that the canary and the others must each have had; fewer show nothing."""
    factor: float
    margin: float
    before: bool = False
    """Whether the factor is that by which the canary has changed: its hardware may be another one."""


RULES = (
    Rule(
        "{mine:.0f} % of its requests for {pool} failed; at the others, {theirs:.0f} %",
        lambda load: 100 * min(1.0, load.failed / load.requests),
        50,
        2,
        5,
    ),
    Rule(
        "a request for {pool} takes {mine:.2f} s; expected, from the others now and both before: {theirs:.2f} s",
        lambda load: load.busy / load.requests,
        50,
        1.5,
        0.05,
        True,
    ),
)

_ADDS: Mapping[str, Sequence[Tuple[str, int]]] = {
    "sessions_total": [("requests", 1)],
    "retry_warnings_total": [("requests", -1), ("failed", 1)],  # sent once more, here or to another server
    "connection_errors_total": [("failed", 1)],
    "response_errors_total": [("failed", 1)],  # streams that were cut as well
    "http_responses_total 5xx": [("failed", 1)],
    "current_sessions": [("open", 1)],
    "total_time_average_seconds": [("seconds", 1)],
}
"""Figure of HAProxy's to what it adds to the counters."""
_LINE = re.compile(
    r'^haproxy_server_(\w+)\{proxy="([^"]*)",server="([^"]*)"(?:,code="([^"]*)")?\} ([0-9.]+)$', re.MULTILINE
)
_REMEMBERED = 1024
_START = re.compile(r"^haproxy_process_start_time_seconds ([0-9.]+)$", re.MULTILINE)


class Sample(NamedTuple):
    """What a gateway has counted at one time."""

    at: float
    """Seconds of a clock."""
    started: str
    """When its process was: a new one counts from 0."""
    counters: Mapping[Tuple[str, str], Counters]
    """Of each pool and server."""


def sample(at: float, metrics: str) -> Sample:
    """:param metrics: the gateway's figures in Prometheus' format."""
    found: Dict[Tuple[str, str], Counters] = {}
    for name, pool, server, code, value in _LINE.findall(metrics):
        for field, sign in _ADDS.get("%s %s" % (name, code) if code else name, ()):
            known = found.get((pool, server), Counters())
            found[pool, server] = known._replace(**{field: getattr(known, field) + sign * float(value)})
    started = _START.search(metrics)
    return Sample(at, started[1] if started else "", found)


def watched(samples: Sequence[Sample], canary: AbstractSet[str], others: AbstractSet[str]) -> Dict[str, List[Load]]:
    """What the canary and the others did between the first sample and the last one, for each of the canary's pools.

    :param samples: in their order. Those of before a restart of the gateway do not count.
    :param canary: hosts.
    :param others: hosts that serve as before.
    """
    samples = [one for one in samples if one.started == samples[-1].started]
    found: Dict[str, List[Load]] = {}
    for pool, server in samples[-1].counters if samples else ():
        for side, hosts in enumerate((canary, others)):
            if any(server.startswith(host_name(host) + ":") for host in hosts):
                sides = found.setdefault(pool, [Load(), Load()])
                sides[side] = _sum(sides[side], _load(samples, (pool, server)))
    return {pool: sides for pool, sides in found.items() if sides[0].requests}


def _load(samples: Sequence[Sample], key: Tuple[str, str]) -> Load:
    known = [(one.at, one.counters.get(key, Counters())) for one in samples]
    first, last = known[0][1], known[-1][1]
    busy = sum((then - now) * (one.open + other.open) / 2 for (now, one), (then, other) in zip(known, known[1:]))
    # as many as have begun, less half of those that this has left open: seconds of the others are not complete
    requests = last.requests - first.requests - (last.open - first.open) / 2
    earlier = min(first.requests, _REMEMBERED)
    return Load(
        max(0.0, requests), max(0.0, last.failed - first.failed), busy, earlier, round(earlier * first.seconds, 3)
    )


def _sum(one: Sequence[float], other: Sequence[float]) -> Load:
    return Load(*(mine + theirs for mine, theirs in zip(one, other)))


def judged(watched: Iterable[Mapping[str, Sequence[Sequence[float]]]]) -> Tuple[List[str], List[str]]:
    """What of the canary is worse, a clause each; and what could not be compared.

    :param watched: what :func:`watched` has found at each gateway.
    """
    pools: Dict[str, List[Load]] = {}
    for found in watched:
        for pool, sides in found.items():
            pools[pool] = [_sum(*pair) for pair in zip(pools.get(pool, [Load(), Load()]), sides)]
    worse, unknown = [], []
    for pool, (canary, others) in pools.items():
        for rule in RULES:
            least = min(canary.requests, others.requests)
            earlier = min(canary.earlier, others.earlier)
            if least < rule.least:
                counts = (pool, canary.requests, others.requests, rule.least)
                unknown.append("too few requests for %s to compare: %d there, %d at the others; %d are needed" % counts)
            elif rule.before and earlier < rule.least:
                unknown.append("too few requests for %s before the change to compare the speed" % pool)
            else:
                mine, theirs = (
                    rule.figure(canary),
                    rule.figure(others) * (_before(canary, others) if rule.before else 1),
                )
                if mine > rule.factor * theirs + rule.margin:
                    worse.append(rule.sentence.format(pool=pool, mine=mine, theirs=theirs))
    return worse, list(dict.fromkeys(unknown))


def _before(canary: Load, others: Load) -> float:
    """How many times as long as the others the canary took before the change."""
    theirs = others.earlier_busy / others.earlier
    return canary.earlier_busy / canary.earlier / theirs if theirs else 1.0
