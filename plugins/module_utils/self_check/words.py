# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has found of itself → metrics, and one line where the verdict is another one than before. Pure."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Tuple

from ..toolbox.text import one_line

LONGEST = 500
"""Characters of a reason."""
_HELP = (
    ("gpufleet_as_declared", "gauge", "Whether every check of the host found its declared state."),
    ("gpufleet_check_as_declared", "gauge", "The same for each check."),
    ("gpufleet_finding", "gauge", "What was found to be wrong or unusual with a GPU, by its name."),
    ("gpufleet_certificate_not_after_seconds", "gauge", "Unix time at which the certificate of a gateway ends."),
    ("gpufleet_service_as_declared", "gauge", "Whether a service is in its declared state."),
    ("gpufleet_drift", "gauge", "What of a service differs from its declared state, by its name."),
    ("gpufleet_service_verdict_info", "gauge", "The verdict of the last check of a service, as a label."),
    ("gpufleet_service_restarts_total", "counter", "Restarts by systemd since the unit was started."),
    ("gpufleet_service_generation", "gauge", "Number of the last accepted configuration of a service."),
    ("gpufleet_self_check_timestamp_seconds", "gauge", "Unix time of the last check."),
    ("gpufleet_self_check_cpu_seconds", "gauge", "CPU time of that check and its children."),
)


class Check(NamedTuple):
    """One check of the host, and what it found."""

    name: str
    """Such as ``vllm.service``."""
    why: str
    """Why the controller would run the roles; empty where it would not."""
    units: Mapping[str, Mapping[str, Any]]
    """The result of each service that it is about, by unit."""
    findings: Sequence[Mapping[str, Any]] = ()
    """What the facts found of the GPUs, see gpu.health.findings()."""
    certificates: Mapping[str, int] = {}
    """File of each certificate of a gateway, and the Unix time at which it ends."""


def judge(calls: Sequence[Sequence[Any]], answers: Sequence[Mapping[str, Any]], secrets: Iterable[str]) -> List[Check]:
    """What the controller would conclude from these answers.

    :param calls: name of a module, of a function in it, and the parameters, for each answer.
    :param secrets: what no output may contain.
    """
    found = []
    for (module, _function, params), answer in zip(calls, answers):
        result = answer["result"] or {}
        why = ""
        if answer["state"] != "converged":
            why = "%s: %s" % (answer["state"], _last_line(answer["why"]))
        elif result.get("needs"):
            why = "differs: missing: %s" % ", ".join(map(str, result["needs"]))
        elif result.get("proof_due"):
            why = "differs: the service is not verified yet"
        for secret in sorted(secrets, key=len, reverse=True):
            why = why.replace(secret, "********")
        facts = (result.get("ansible_facts") or {}).get("gpu") or {}
        name = ".".join(module.split(".")[-2:])
        known = (facts.get("findings", ()), result.get("certificates") or {})
        found.append(Check(name, one_line(why, LONGEST), _units(params, result), *known))
    return found


def _last_line(text: str) -> str:
    """Of a traceback the exception, and of a message all of it."""
    return text.strip().split("\n")[-1] if text.startswith("Traceback") else text


def _units(params: Mapping[str, Any], result: Mapping[str, Any]) -> Dict[str, Mapping[str, Any]]:
    if result.get("instances"):
        return dict(result["instances"])
    if result.get("unit_state") and params.get("name"):
        name = params["name"]
        return {name if name.endswith(".service") else name + ".service": result}
    return {}


def verdict(checks: Sequence[Check]) -> List[List[str]]:
    """What of the checks makes the verdict: a reason may name a time or a process, which differ each time."""
    found = {(one.name, one.why.partition(":")[0]) for one in checks if one.why}
    found.update((unit, str(result.get("verdict"))) for one in checks for unit, result in one.units.items())
    found.update((one["check"], str(one["gpu"])) for one in _findings(checks))
    return [list(pair) for pair in sorted(found)]


def line(checks: Sequence[Check]) -> str:
    """The verdict for the journal, with its priority."""
    wrong = ["%s %s" % (one.name, one.why) for one in checks if one.why]
    said = "not as declared: " + "; ".join(wrong) if wrong else "as declared: %d checks" % len(checks)
    named = [one["line"] for one in _findings(checks) if not any(one["line"] in text for text in wrong)]
    found = "; found: " + "; ".join(named) if named else ""
    return "<%d>%s%s" % (4 if wrong or found else 5, said, one_line(found, 4 * LONGEST))


def _findings(checks: Sequence[Check]) -> List[Mapping[str, Any]]:
    return [found for one in checks for found in one.findings]


def metrics(checks: Sequence[Check], generations: Mapping[str, int], now: float, cpu: float) -> str:
    """The text for Prometheus.

    :param generations: the number of the last one of each unit that has one.
    :param now: Unix time, in seconds.
    :param cpu: CPU time of the check, in seconds.
    """
    rows: Dict[str, List[Tuple[str, float]]] = {name: [] for name, _type, _help in _HELP}
    rows["gpufleet_as_declared"].append(("", not any(one.why for one in checks)))
    for name in sorted({one.name for one in checks}):
        good = not any(one.why for one in checks if one.name == name)
        rows["gpufleet_check_as_declared"].append((_labels(check=name), good))
    keys = ("check", "gpu", "effect", "action")
    found = {_labels(**{key: "" if one[key] is None else str(one[key]) for key in keys}) for one in _findings(checks)}
    rows["gpufleet_finding"] += [(labels, 1) for labels in sorted(found)]
    for file, ends in sorted(pair for one in checks for pair in one.certificates.items()):
        rows["gpufleet_certificate_not_after_seconds"].append((_labels(file=file), ends))
    for unit, result in sorted(pair for one in checks for pair in one.units.items()):
        named = _labels(unit=unit)
        rows["gpufleet_service_as_declared"].append((named, not result.get("changed")))
        drift = {_labels(unit=unit, kind=str(kind)) for kind in result.get("differs") or ()}
        rows["gpufleet_drift"] += [(labels, 1) for labels in sorted(drift)]
        info = _labels(unit=unit, verdict=str(result.get("verdict")))
        rows["gpufleet_service_verdict_info"].append((info, 1))
        restarts = (result.get("unit_state") or {}).get("n_restarts")
        if restarts is not None:
            rows["gpufleet_service_restarts_total"].append((named, restarts))
        if unit in generations:
            rows["gpufleet_service_generation"].append((named, generations[unit]))
    rows["gpufleet_self_check_timestamp_seconds"].append(("", now))
    rows["gpufleet_self_check_cpu_seconds"].append(("", cpu))
    lines = []
    for name, kind, words in _HELP:
        if rows[name]:
            lines += ["# HELP %s %s" % (name, words), "# TYPE %s %s" % (name, kind)]
            lines += ["%s%s %s" % (name, labels, repr(value + 0)) for labels, value in rows[name]]
    return "\n".join(lines) + "\n"


def _labels(**values: str) -> str:
    pairs = sorted(values.items())
    escaped = [(name, text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, text in pairs]
    return "{%s}" % ",".join('%s="%s"' % pair for pair in escaped)
