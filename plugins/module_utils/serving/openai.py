# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for any engine with an OpenAI-compatible endpoint: it lists its model, and does its work."""

from __future__ import annotations

from typing import Callable, Optional

from ..converge.model import Fault
from ..endpoint.client import Endpoint, EndpointError, Load
from ..toolbox.http_stream import HttpError
from ..toolbox.text import one_line
from .checks import Ask, owns_port
from .gate import Proof


def lists_model(endpoint: Endpoint, served: str) -> Ask:
    """Asks an OpenAI-compatible server whether it lists a model; verdicts ``unauthorized``, ``model_missing``."""

    def ask(proof: Proof, seconds: float) -> Optional[str]:
        try:
            names = [entry.get("id") for entry in endpoint.models(seconds)]
        except HttpError as error:
            return str(error)
        except EndpointError as error:
            if error.name != "unauthorized":
                return str(error)
            owns_port(endpoint.port)(proof)
            raise Fault(error.name, str(error)) from None
        if served in names:
            return None
        owns_port(endpoint.port)(proof)
        listed = one_line(", ".join(map(str, names))) or "no model"
        raise Fault("model_missing", "it serves %s, not %s" % (listed, served))

    return ask


def answers(endpoint: Endpoint, served: str, timeout: float, task: Optional[str] = None) -> Callable[[Proof], None]:
    """The model does its own kind of work: a token, an embedding, a score or a class.

    :param task: which of them, where that is declared.

    Verdicts: those of EndpointError, such as ``not_generated``; ``no_progress`` where its own counter stands still.
    """

    def load() -> Optional[Load]:
        try:
            return endpoint.load()
        except HttpError:
            return None

    def check(proof: Proof) -> None:
        # a converged host does not need it
        from ..endpoint.answers import answer

        before = load()
        try:
            answered = answer(endpoint, served, timeout, declared=task)
        except EndpointError as error:
            if proof.running.dying():
                raise proof.died() from None
            raise Fault(error.name, str(error)) from None
        after = load()
        if answered.tokens and before and after and after.generated <= before.generated:
            raise Fault(
                "no_progress",
                "%s answered with a token, but its own counter of generated tokens stands at %d as before: the answer "
                "is not the engine's" % (served, after.generated),
            )
        proof.figures.update(task=answered.task, answer=answered.said)
        if answered.seconds is not None:
            proof.figures["latency_seconds"] = round(answered.seconds, 3)

    return check
