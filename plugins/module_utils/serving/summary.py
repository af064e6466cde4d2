# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The result of a service in one line for a person. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

from ..converge.model import Outcome
from ..placement.memory import gib
from . import digest


def line(outcome: Outcome, gpus: Sequence[Dict[str, Any]], cpu: bool, parts: Sequence[str], check: bool) -> str:
    """``ok · 4× H200 · chat at http://127.0.0.1:8000 · restart 1.9 s``.

    :param gpus: those of the result.
    :param cpu: the service is declared to use no GPU.
    :param parts: what the engine has to say, between the GPUs and the restart.
    """
    return " · ".join([_verdict(outcome, check), "CPU" if cpu else _gpus(gpus), *parts, *_restart(outcome, check)])


def served(model: str, url: str, proof: Any) -> List[str]:
    """Parts of the line: what is served where, the memory that it uses, and what it answered.

    :param proof: of the gate (serving.gate.Proof).
    """
    used, figures = sum(proof.used.values()), proof.figures
    parts = ["%s at %s%s" % (model, url, ", %s in use" % gib(used) if used else "")]
    if "answer" in figures:
        seconds = figures.get("latency_seconds")
        parts.append(figures["answer"] + ("" if seconds is None else " in %.2f s" % seconds))
    return parts


def _verdict(outcome: Outcome, check: bool) -> str:
    if check and outcome.remedied:
        return "would %s: %s" % ("restart it" if outcome.restarted else "load it again", outcome.reasons[-1])
    if check and outcome.changed:
        names = sorted(set(outcome.drift) - {digest.VARIABLE})
        if outcome.reasons and not names:
            return "would restart it: %s" % "; ".join(outcome.reasons)
        return "would change %s" % (", ".join(names) or "the installation")
    return outcome.verdict.name


def _gpus(gpus: Sequence[Dict[str, Any]]) -> str:
    counts: Dict[str, int] = {}
    for gpu in gpus:
        short = (gpu["name"] or "GPU").replace("NVIDIA ", "").replace("GeForce ", "")
        counts[short] = counts.get(short, 0) + 1
    return " + ".join("%d× %s" % (count, name) for name, count in counts.items()) or "no GPU"


def _restart(outcome: Outcome, check: bool) -> List[str]:
    found = []
    if outcome.restarted and not check:
        found.append("restart %.1f s" % (outcome.downtime_ms / 1000.0))
    if outcome.remedied and not check:
        found.append("was %s" % outcome.remedied)
    return found
