# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For how many seconds a service will not serve, and how far off such predictions were. Pure."""

from __future__ import annotations

from statistics import median
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

KEPT = 5
"""Restarts of a service on a host that are remembered; a single slow one does not move their median."""
DEFAULTS = {"ollama": 10.0, "vllm": 120.0, "llama_server": 30.0, "gateway": 0.0, "": 10.0, "maintenance": 600.0}
"""Seconds that a service of an engine does not serve, where no restart was measured yet; and those of a maintenance."""

Series = Dict[str, Dict[str, List[float]]]
"""Host → service → the seconds of its last restarts, the newest last."""


def remember(series: Series, host: str, measured: Mapping[str, float]) -> None:
    """Add the restarts of one host."""
    for service, seconds in measured.items():
        own = series.setdefault(host, {})
        own[service] = [*own.get(service, ()), seconds][-KEPT:]


Rates = Dict[str, Dict[str, float]]
"""Engine → host → bytes of weights that a measured restart took a second for."""


def rates(hosts: Mapping[str, Sequence[Mapping[str, Any]]]) -> Rates:
    """How fast measured restarts were, by the bytes that they load.

    :param hosts: the services of each host.
    """
    found: Dict[str, Dict[str, List[float]]] = {}
    for host, rows in hosts.items():
        for row in rows:
            if row.get("weights") and row.get("restarts"):
                own = found.setdefault(row["engine"], {}).setdefault(host, [])
                own.append(row["weights"] / median(row["restarts"]))
    return {engine: {host: median(own) for host, own in known.items()} for engine, known in found.items()}


def predicted(series: Series, rates: Rates, host: str, row: Mapping[str, Any]) -> Dict[str, Any]:
    """The prediction for one service: ``predicted`` (seconds), ``basis`` in words, ``restarts`` measured here.

    :param rates: of :func:`rates`.
    :param row: the service. Its ``restarts``, which the host has recorded, count more than the rollout's own: they
        include those of other runs.
    """
    service = row["service"]
    here: List[float] = list(row.get("restarts") or series.get(host, {}).get(service, []))[-KEPT:]
    others = [median(own[service]) for own in series.values() if own.get(service)]
    known = rates.get(row["engine"], {})
    if not row["restart"]:
        seconds, basis = 0.0, "no restart"
    elif here:
        seconds, basis = median(here), "median of the last %d restarts here" % len(here)
        basis = basis if len(here) > 1 else "last restart here"
    elif row.get("start"):
        seconds, basis = row["start"], "last start here"
    elif row.get("weights") and known:
        where, rate = ("here", known[host]) if host in known else ("on other hosts", median(known.values()))
        seconds, basis = row["weights"] / rate, "its weights, by restarts measured %s" % where
    elif others:
        seconds, basis = median(others), "restarts of other hosts"
    else:
        seconds, basis = DEFAULTS.get(service, DEFAULTS[row["engine"]]), "default"
    return {"predicted": round(seconds, 2), "basis": basis, "restarts": here if row["restart"] else []}


def renewed(
    rows: Sequence[Mapping[str, Any]], canary: Sequence[Mapping[str, Any]], measured: Mapping[str, float]
) -> List[Dict[str, Any]]:
    """The services of a host, with predictions ``renewed`` by the canary for those that change as they did there.

    Where both have measured restarts of their own, the canary shows how much longer or shorter they become.
    Elsewhere, its own time is the best guess.

    :param canary: the services of the canary.
    :param measured: the seconds that they took.
    """
    found = []
    for row in map(dict, rows):
        same = ("service", "why", "restart")
        alike = next((one for one in canary if all(one[name] == row[name] for name in same)), None)
        seconds = measured.get(row["service"])
        if alike and row["restart"] and seconds:
            both = row["restarts"] and alike["restarts"] and alike["predicted"]
            row["renewed"] = round(row["predicted"] * seconds / alike["predicted"] if both else seconds, 2)
        found.append(row)
    return found


def error(pairs: Iterable[Tuple[float, Optional[float]]]) -> Optional[float]:
    """By how much predictions were wrong: the sum of the differences divided by what was measured.

    :param pairs: predicted and measured seconds; None where nothing was measured.
    :returns: 0.2 means 20 %; None if there is nothing to compare.
    """
    known = [(expected, real) for expected, real in pairs if real is not None]
    whole = sum(real for _expected, real in known)
    return round(sum(abs(expected - real) for expected, real in known) / whole, 2) if whole else None
