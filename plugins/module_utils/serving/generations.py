# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last accepted configurations of each service, and the way back to one of them.

A generation is what was declared, not what was written: going back is a run like any other, with the declared values of
that time, so everything is decided, checked and proven again on the host as it is now. Secrets are never recorded; the
inventory's are used. One file for each unit holds the last few, written at once after a proof and before the previous
files are given up: if a run is killed in between, the next one repeats the proof.
"""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any, Callable, Dict, List, Mapping, Sequence

from ..converge.model import Outcome
from ..toolbox import record, trusted
from ..toolbox.errors import Refused
from ..toolbox.text import one_line
from .model import STAYING, Service
from .sources import without_secrets

FOLDER = "/var/lib/gpufleet/generations"
KEPT = 5
"""Generations of a service."""
SECRETS = frozenset({"api_key", "client_keys", "hf_token", "secret_environment"})
"""A test compares this with the option tables of all engines."""
_OF_A_RUN = frozenset(
    {
        *(
            "name",
            "state",
            "instances",
            "main",
            "generation",
            "prove",
            "facts_timeout",
            "restart",
            "nodes",
            "node_rank",
        ),
        *("drain_timeout", "drain_command", "undrain_command", "fingerprints", "new_answers", "remove_models"),
        "models_dir_change",
    }
)
"""Options that say which services exist, or how a run treats them, not what a service is."""
_SOURCES = frozenset({"mirror", "archive", "addons", "remote_src"})
"""Options that say where a release comes from, not what it is: they differ between a run that sends it from the
controller and the next one."""
_OF_A_HOST = _SOURCES | {"prefix", "version", "archive_checksum"}
"""Options of all instances of a host together: one of them alone cannot go back to another release."""
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:Z|\+00:00)?")
"""YAML parses a time with seconds, and Ansible writes it back with ``+00:00``."""
_WIDEST = 40  # characters of a value in a history


# --- recording


def accept(
    service: Service, engine: str, figures: Mapping[str, Any], version: Any, installed: bool, outcome: Outcome
) -> List[Dict[str, Any]]:
    """Record what was just proven, unless it was also accepted last. If that fails, the outcome gets a warning.

    :param figures: of the proof.
    :param version: of the program; None if it is unknown.
    :param installed: whether this run has installed a release.
    :returns: the generation; none if there is nothing new.
    """
    options = json.loads(json.dumps(_kept(service)))
    try:
        before = read(service.unit, engine)
        changes = _changes(before[-1]["options"], options) or ["release"] * installed if before else []
        if before and not changes:
            return []
        found = {
            "number": before[-1]["number"] + 1 if before else 1,
            "accepted": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "changes": changes,
            "verdict": outcome.verdict.name,
            "figures": {key: value for key, value in figures.items() if isinstance(value, (str, int, float))},
            "version": version,
            "downtime_ms": outcome.downtime_ms,
            "options": options,
        }
        kept = [dict(one, options=_cleared(one["options"], service)) for one in [*before, found][-KEPT:]]
        history = {"unit": service.unit, "engine": engine, "generations": kept}
        record.write(place_of(service.unit), history, mode=0o600)
    except (Refused, OSError) as error:
        outcome.warnings.append("%s is verified, but its generation is not recorded: %s" % (service.unit, error))
        return []
    return [found]


def place_of(unit: str) -> str:
    """Where the history of a unit is."""
    return "%s/%s.json" % (FOLDER, unit)


def _kept(service: Service) -> Dict[str, Any]:
    """The options that make a generation: none that is a secret, or holds a URL with one."""
    return {name: value for name, value in service.options.items() if name in _names(service) and not _secret(value)}


def _names(service: Service) -> List[str]:
    left_out = SECRETS | _OF_A_RUN | (_OF_A_HOST if service.name else frozenset())
    return [name for name in service.options if name not in left_out]


def _cleared(options: Mapping[str, Any], service: Service) -> Dict[str, Any]:
    """The options without variables that were plain when they were recorded, and are secret now."""
    secret, environment = service.options.get("secret_environment") or {}, options.get("environment")
    if not isinstance(environment, dict):
        return dict(options)
    return dict(options, environment={name: text for name, text in environment.items() if name not in secret})


def _secret(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return any(map(_secret, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and without_secrets(value) != value


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> List[str]:
    """What differs, in words; of a long value or one with parts only the name."""

    def shown(value: Any) -> str:
        return "none" if value is None else json.dumps(value) if isinstance(value, bool) else one_line(str(value))

    said = []
    for name in sorted({*before, *after} - _SOURCES):
        old, new = before.get(name), after.get(name)
        short = not any(isinstance(one, (dict, list)) or len(shown(one)) > _WIDEST for one in (old, new))
        if old != new:
            said.append("%s %s → %s" % (name, shown(old), shown(new)) if short else name)
    return said


# --- reading


def read(unit: str, engine: str = "") -> List[Dict[str, Any]]:
    """The generations of a unit, the newest last.

    :param engine: whose they must be; empty for any.
    :raises Refused: the file is not what root recorded for this unit.
    """
    place = place_of(unit)
    why = trusted.intruder(place)
    if why:
        raise Refused("%s is not used, as %s; expected a file that only root can write: remove it" % (place, why))
    if not os.path.lexists(place):
        return []
    if not (os.path.islink(place) or os.access(place, os.R_OK)):
        raise Refused("%s cannot be read by user %d; expected root: set become" % (place, os.geteuid()))
    found = record.read(place)
    generations = found.get("generations")
    if found.get("unit") != unit or not isinstance(generations, list) or not all(map(_whole, generations)):
        raise Refused("%s does not hold generations of %s: remove it; the next change starts a new one" % (place, unit))
    if engine and found.get("engine") != engine:
        said = "%s holds generations of %s, while %s is declared as %s: remove it"
        raise Refused(said % (place, one_line(str(found.get("engine"))), unit, engine))
    return generations


def _whole(generation: Any) -> bool:
    parts = {"number": int, "accepted": str, "changes": list, "figures": dict, "downtime_ms": int, "options": dict}
    return isinstance(generation, dict) and all(isinstance(generation.get(key), kind) for key, kind in parts.items())


# --- going back


def back(services: Sequence[Service], engine: str) -> List[Service]:
    """The services, those with the option ``generation`` with the options of that generation.

    :raises Refused: there is none, or this version of the collection cannot read it.
    """
    found = {service.unit: _back(service, engine) for service in services}
    return [service._replace(siblings=[found[other.unit] for other in service.siblings]) for service in found.values()]


def _back(service: Service, engine: str) -> Service:
    options, wanted = service.options, service.options.get("generation")
    if wanted is None or options["state"] not in STAYING:
        return service
    generation = pick(read(service.unit, engine), str(wanted).strip(), service.unit)
    recorded, known = _cleared(generation["options"], service), _names(service)
    unknown = sorted(set(recorded) - set(known))
    if unknown:
        raise Refused(
            "generation: generation %d of %s has %s, which this version of the collection does not know: declare its "
            "values instead" % (generation["number"], service.unit, one_line(", ".join(unknown)))
        )
    differs = sorted(name for name, value in recorded.items() if options[name] != value and name not in _SOURCES)
    said = "generation %d" % generation["number"]  # without its time, or a fleet's summary could not fold hosts
    said += ", not as declared: %s" % ", ".join(differs) if differs else ", which is as declared"
    return service._replace(options=dict(options, **recorded), held=said)


def pick(generations: Sequence[Mapping[str, Any]], wanted: str, unit: str) -> Mapping[str, Any]:
    """The generation of a number, or the last one that was accepted up to a time.

    :raises Refused: there is none.
    """
    kept = ", ".join("%d of %s" % (one["number"], one["accepted"]) for one in generations)
    time_of = _TIME.fullmatch(wanted)
    if not (time_of or wanted.isdecimal()):
        raise Refused("generation is %r; expected a number, or a time in UTC such as 2026-11-30T08:00Z" % wanted)
    # 08:00Z sorts after 08:00:59Z, so a time without seconds has its whole minute
    until = "%sT%sZ" % time_of.groups() if time_of else ""
    found = [one for one in generations if (one["accepted"] <= until if until else one["number"] == int(wanted))]
    if not found:
        which = "that was accepted by %s" % until if until else wanted
        raise Refused("generation: %s has no generation %s; it has: %s" % (unit, which, kept or "none"))
    return found[-1]


# --- showing


def report(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The result of the module ``generations_info``."""
    units = sorted(name[: -len(".json")] for name in _listed() if name.endswith(".json") and name[0] != ".")
    found: Dict[str, List[Dict[str, Any]]] = {}
    for unit in units:
        if params["unit"] in (None, unit, unit.rpartition(".")[0]):
            try:
                found[unit] = read(unit)
            except Refused as error:
                warn(str(error))
    count = sum(map(len, found.values()))
    return {
        "changed": False,
        "msg": "%d generations of %d services" % (count, len(found)),
        "generations": found,
        "table": table(found),
    }


def _listed() -> List[str]:
    try:
        return os.listdir(FOLDER)
    except OSError:
        return []


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> List[str]:
    """A line for each generation, the newest first; columns of equal width."""
    rows = [("service", "no.", "accepted", "verdict", "proof", "unserved", "changed")]
    for unit, generations in found.items():
        for one in reversed(generations):
            rows.append(
                (
                    *(one_line(unit), str(one["number"]), one_line(one["accepted"]), one_line(str(one.get("verdict")))),
                    *(_proof(one), "%.1f s" % (one["downtime_ms"] / 1000.0)),
                    one_line("; ".join(map(str, one["changes"]))) or "(the first)",
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows] if len(rows) > 1 else []


def _proof(generation: Mapping[str, Any]) -> str:
    figures = generation["figures"]
    said = [str(generation.get("version") or "")]
    said += ["ready in %s s" % figures["ready_seconds"]] if "ready_seconds" in figures else []
    if "answer" in figures:
        seconds = figures.get("latency_seconds")
        said.append(str(figures["answer"]) + ("" if seconds is None else " in %s s" % seconds))
    return one_line(", ".join(filter(None, said))) or "-"
