# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The result of a service in one line for a person. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..converge.model import Outcome
from ..placement.memory import gib
from . import digest
from .model import Installs


class Program(NamedTuple):
    """The program that serves."""

    title: str
    version: Optional[str] = None
    """As found at the end; None where it is unknown."""
    installs: Optional[Installs] = None
    """The release that this run installs."""


def line(
    outcome: Outcome, gpus: Sequence[Dict[str, Any]], cpu: bool, parts: Sequence[str], check: bool, program: Program
) -> str:
    """``ok · 4× H200 · chat at http://127.0.0.1:8000 · vLLM 0.33.0 · changed port · restart 1.9 s``.

    :param gpus: those of the result.
    :param cpu: the service is declared to use no GPU.
    :param parts: what the engine has to say, between the GPUs and the program.
    """
    would = check and (outcome.changed or outcome.remedied)
    verdict = _would(outcome, program) if would else outcome.verdict.name
    differs = ["differs: %s" % ", ".join(outcome.differs)] if outcome.differs else []
    done = differs if would else [*_program(program, outcome), *_done(outcome, program)]
    return " · ".join([verdict, "CPU" if cpu else _gpus(gpus), *parts, *done])


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


def _would(outcome: Outcome, program: Program) -> str:
    """What a run would do."""
    if outcome.remedied:
        return "would %s: %s" % ("restart it" if outcome.restarted else "load it again", outcome.reasons[-1])
    said = []
    if program.installs:
        said.append("%s %s" % ("install" if program.installs.first else "change", _release(program)))
    said += ["%s %s" % words for words in zip(("change", "remove"), _variables(outcome, program)) if words[1]]
    if not said and outcome.reasons:
        said.append("restart it: %s" % "; ".join(outcome.reasons))
    return "would %s" % ("; ".join(said) or "change the installation")


def _program(program: Program, outcome: Outcome) -> List[str]:
    """The program, and what this run has made of it."""
    if program.installs and outcome.changed:
        return [("installed %s" if program.installs.first else "%s") % _release(program)]
    return ["%s %s" % (program.title, program.version)] if program.version else []


def _release(program: Program) -> str:
    """``Ollama 0.32.14 → 0.32.15``."""
    installs, after = program.installs or Installs(), program.version
    after = after if after and after != installs.before else installs.after or after
    if installs.first:
        return " ".join(filter(None, [program.title, after]))
    if installs.before and installs.before == after:
        return "%s %s, installed again" % (program.title, after)
    return "%s %s → %s" % (program.title, installs.before or "?", after or "the declared archive")


def _variables(outcome: Outcome, program: Program) -> Tuple[str, str]:
    """The variables that get a value, and those that lose theirs; a new service gets all of its own."""
    names = sorted(set(outcome.drift) - {digest.VARIABLE})
    removed = [name for name in names if outcome.drift[name].get("declared", "") is None]
    first = program.installs and program.installs.first
    return "" if first else ", ".join(name for name in names if name not in removed), ", ".join(removed)


def _gpus(gpus: Sequence[Dict[str, Any]]) -> str:
    counts: Dict[str, int] = {}
    for gpu in gpus:
        short = (gpu["name"] or "GPU").replace("NVIDIA ", "").replace("GeForce ", "")
        counts[short] = counts.get(short, 0) + 1
    return " + ".join("%d× %s" % (count, name) for name, count in counts.items()) or "no GPU"


def _done(outcome: Outcome, program: Program) -> List[str]:
    """What a run has done."""
    variables = zip(("changed", "removed"), _variables(outcome, program)) if outcome.changed else ()
    found = ["%s %s" % words for words in variables if words[1]]
    if outcome.restarted:
        found.append("restart %.1f s" % (outcome.downtime_ms / 1000.0))
    if outcome.remedied:
        found.append("was %s" % outcome.remedied)
    return found
