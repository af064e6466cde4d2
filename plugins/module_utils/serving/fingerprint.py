# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a model still gives the answers that were accepted before: the check, and the record on the host.

The record belongs to root. It is replaced only once a service is proven.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Mapping, Optional

from ..converge.model import Fault
from ..endpoint.client import Endpoint, EndpointError
from ..endpoint.fingerprint import (
    BUSY,
    REPEATS,
    Answer,
    NoLogprobs,
    Recorded,
    Token,
    deviation,
    difference,
    learned,
    take,
)
from ..toolbox import record
from ..toolbox.http_stream import HttpError
from .gate import Proof
from .model import Service

FOLDER = "/var/lib/gpufleet/fingerprints"


def compare(service: Service, endpoint: Endpoint, model: str, warn: Callable[[str], None], proof: Proof) -> None:
    """The check; verdict ``wrong_answers``, or that of a failed request.

    ``figures["fingerprint"]`` then holds what the result reports, and ``proof.accepted`` what :func:`keep` writes.
    """
    prompts = list(service.options["fingerprints"])
    timeout = service.options.get("token_timeout") or service.options["timeout"]
    known = None if service.options["new_answers"] else read(service.unit)
    if known and (known.model, known.prompts) != (model, prompts):
        known = None
    proof.accepted = None
    try:
        first = take(endpoint, model, prompts, timeout)
        further = [take(endpoint, model, prompts, timeout) for _number in range(0 if known else REPEATS)]
        accepted = known or Recorded(model, prompts, first, learned([first, *further]))
        answers, found = first, difference(accepted, first)
        if found:  # other requests in the same batch may move them once
            busy = _busy(endpoint)
            answers = take(endpoint, model, prompts, timeout)
            found = difference(accepted, answers)
            if found and (busy or _busy(endpoint)):  # as in a check that changes nothing, and so drains nothing
                accepted = accepted._replace(tolerance=max(accepted.tolerance, BUSY))
                found = difference(accepted, answers)
    except NoLogprobs as reason:
        if known:  # for example, a model whose numbers have become NaN
            raise Fault("wrong_answers", "the answers of %s can no longer be compared: %s" % (model, reason)) from None
        warn("fingerprints: the answers are not compared: %s" % reason)
        proof.figures["fingerprint"] = {"state": "not_offered"}
        return
    except EndpointError as error:
        if proof.running.dying():
            raise proof.died() from None
        raise Fault(error.name, str(error)) from None
    if found:
        raise Fault(
            "wrong_answers",
            "the answers of %s differ from those recorded on this host: %s. If the change is meant to change them, run "
            "it with -e gpufleet_new_answers=true" % (model, found),
        )
    proof.accepted = None if known else accepted
    proof.figures["fingerprint"] = {
        "state": "same" if known else "recorded",
        "deviation": round(max(map(deviation, accepted.answers, answers)), 4),
        "tolerance": round(accepted.tolerance, 4),
    }


def _busy(endpoint: Endpoint) -> bool:
    """Whether requests of others run; not known of an engine that does not report them."""
    try:
        load = endpoint.load()
    except HttpError:
        return False
    return load is not None and not load.idle


def read(unit: str) -> Optional[Recorded]:
    """What was accepted for a service; None if nothing was, or the record cannot be read."""
    return recorded_in(record.read(place_of(unit)))


def recorded_in(found: Mapping[str, Any]) -> Optional[Recorded]:
    """The fingerprint in a record; None if it has none. Pure."""
    try:
        recorded = Recorded(
            str(found["model"]),
            [str(prompt) for prompt in found["prompts"]],
            [_answer(answer) for answer in found["answers"]],
            float(found["tolerance"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    whole = len(recorded.answers) == len(recorded.prompts) and all(recorded.answers) and recorded.tolerance > 0
    return recorded if whole else None


def report(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The result of the module ``fingerprints_info``."""
    try:
        names = sorted(name for name in os.listdir(FOLDER) if name.endswith(".json") and name[0] != ".")
    except FileNotFoundError:
        names = []
    units = [name[: -len(".json")] for name in names]
    found = {unit: recorded._asdict() for unit, recorded in ((unit, read(unit)) for unit in units) if recorded}
    said = "recorded answers of %d service%s" % (len(found), "s"[: len(found) != 1])
    return {"changed": False, "msg": said, "fingerprints": found}


def _answer(tokens: List[Any]) -> Answer:
    return [
        Token(str(text), float(logprob), {str(word): float(number) for word, number in others.items()})
        for text, logprob, others in tokens
    ]


def keep(unit: str, accepted: Recorded, warn: Callable[[str], None]) -> None:
    """Record what a proof has accepted."""
    try:
        record.write(place_of(unit), accepted._asdict(), mode=0o600)
    except OSError as error:  # the service is proven without it
        warn("fingerprints: the answers of %s are not recorded (%s); the next change records them" % (unit, error))


def place_of(unit: str) -> str:
    """Where the record of a unit is."""
    return "%s/%s.json" % (FOLDER, unit)
