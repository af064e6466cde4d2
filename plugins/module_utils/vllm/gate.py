# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the proof that are vLLM's alone: an engine that is asleep lists its models and answers no request."""

from __future__ import annotations

from ..converge.model import Fault
from ..endpoint.client import Endpoint
from ..serving.gate import Check, Proof


def awake(endpoint: Endpoint, served: str, accept: bool) -> Check:
    """Whether the engine is awake; verdict ``asleep``.

    :param accept: an engine that is asleep passes, and the figures say so.
    """

    def check(proof: Proof) -> None:
        from .sleep import asleep

        proof.figures.pop("asleep", None)
        if not asleep(endpoint):
            return
        if not accept:
            raise Fault(
                "asleep",
                "it runs and lists %s, but its engine is asleep and answers no request; wake it with POST %s/wake_up "
                "(restart it after level 2, which drops the weights), or declare asleep: accept"
                % (served, endpoint.url),
            )
        proof.figures["asleep"] = True

    return check


def unless_asleep(check: Check) -> Check:
    """The check is made only where ``awake`` found the engine awake."""

    def made(proof: Proof) -> None:
        if not proof.figures.get("asleep"):
            check(proof)

    return made
