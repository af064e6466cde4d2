# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the proof that are vLLM's alone: whether its engine is awake or asleep, as declared.

An engine in the other state is a fault whose remedy is the proof: where the same check is made again, it changes that.
"""

from __future__ import annotations

from typing import Optional

from ..converge.model import Fault, StopHooks
from ..endpoint.client import Endpoint
from ..serving.gate import Check, Proof
from ..toolbox.http_stream import HttpError

GIB = 1 << 30


def awake(endpoint: Endpoint, served: str, accept: bool, admin: bool, timeout: float) -> Check:
    """An engine that is to be awake; verdict ``asleep``.

    :param accept: an engine that is asleep passes, and the figures say so.
    :param admin: whether it has the paths that put it to sleep and wake it.
    :param timeout: seconds that it may take to wake up.
    """

    def check(proof: Proof) -> None:
        from .sleep import level

        proof.figures.pop("asleep", None)
        found = level(endpoint)
        if accept and found:
            proof.figures["asleep"] = True
        if accept or not found:
            return
        wakes = admin and found == 1
        if not (proof.changed and wakes):
            raise Fault(
                "asleep",
                "it runs and lists %s, but its engine is asleep and answers no request" % served,
                remedy="proof" if wakes else "restart",
            )
        _post(endpoint, "/wake_up", timeout, "asleep")
        if level(endpoint):
            raise Fault("asleep", "POST %s/wake_up did not wake its engine" % endpoint.url)

    return check


def noted(endpoint: Endpoint) -> Check:
    """Notes in the figures whether the engine is asleep, whatever is declared."""

    def check(proof: Proof) -> None:
        from .sleep import level

        proof.figures.pop("asleep", None)
        if level(endpoint):
            proof.figures["asleep"] = True

    return check


def asleep(endpoint: Endpoint, weights: int, hooks: Optional[StopHooks], timeout: float) -> Check:
    """An engine that is to be asleep, and gets no requests; verdicts ``awake``, ``host_memory``.

    :param weights: bytes that must fit into the host's memory.
    :param hooks: let its requests end before.
    :param timeout: seconds that it may take to fall asleep; pinning the host's memory takes a second per GB or two.
    """

    def check(proof: Proof) -> None:
        from ..serving import agent, drain

        unit, sleeps = proof.running.unit, proof.figures.get("asleep")
        held = agent.marked(unit) or not drain.at_gateways(unit)
        if sleeps and held:
            return
        if not sleeps:
            _check_host_memory(weights)
        if not proof.changed:
            said = "gateways may send requests to it" if sleeps else "its engine is awake, but is to be asleep"
            raise Fault("awake", said, remedy="proof")
        if not sleeps:
            _fall_asleep(endpoint, hooks, timeout, proof)
        if drain.at_gateways(unit):
            drain.hold(unit, command=False)

    return check


def _fall_asleep(endpoint: Endpoint, hooks: Optional[StopHooks], timeout: float, proof: Proof) -> None:
    from .sleep import level

    if hooks:
        hooks.before_stop(proof.running)
    try:
        _post(endpoint, "/sleep?level=1", timeout, "awake")
    except Fault as fault:
        fault.verdict.evidence["serves"] = not level(endpoint)
        raise
    if not level(endpoint):
        raise Fault("awake", "POST %s/sleep did not put its engine to sleep" % endpoint.url)
    proof.figures["asleep"] = True


def _check_host_memory(weights: int) -> None:
    from .sleep import host_memory

    free = host_memory()
    if free and weights > free:
        raise Fault(
            "host_memory",
            "asleep, it keeps %.1f GiB of weights in the host's memory, of which %.1f GiB are free; free more, or stop "
            "the instance (state: stopped)" % (weights / GIB, free / GIB),
            serves=True,
        )


def _post(endpoint: Endpoint, path: str, timeout: float, verdict: str) -> None:
    try:
        answer = endpoint.ask("POST", path, timeout)
    except HttpError as error:
        raise Fault(verdict, "POST %s%s: %s" % (endpoint.url, path, error)) from None
    if answer.status != 200:
        raise Fault(verdict, "POST %s%s answers %d: %s" % (endpoint.url, path, answer.status, answer.error))


def unless_asleep(check: Check) -> Check:
    """The check is made only where the engine was found awake."""

    def made(proof: Proof) -> None:
        if not proof.figures.get("asleep"):
            check(proof)

    return made
