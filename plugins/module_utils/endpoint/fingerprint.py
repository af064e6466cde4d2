# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fingerprint of a model: the tokens of its greedy answers to a few prompts, each with its log probability.

The same weights, template and kernels give the same tokens, with log probabilities that differ by little. Other
weights, another quantisation or another chat template move them by more than that, long before a person notices it in
the text.
"""

from __future__ import annotations

import math
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from ..toolbox.text import one_line
from .client import Endpoint, EndpointError

TOKENS = 16
"""Tokens of each answer."""
REPEATS = 3
"""Further answers from which the tolerance is learned."""
LEAST = 0.1
"""Smallest tolerance: a new process of the same model may choose other kernels, and computes in half precision."""
BUSY = 0.5
"""Smallest tolerance while other requests run: in half precision they move each other's log probabilities."""
FACTOR = 8.0
"""Tolerance as a multiple of how much the answers of one process differ."""
_ASKED = 5  # alternatives per token: a tie is decided among the first ones


class Token(NamedTuple):
    """One token of a greedy answer."""

    text: str
    logprob: float
    """Natural logarithm of its probability."""
    others: Dict[str, float]
    """The most likely tokens at its place, usually including itself, with their log probabilities."""


Answer = List[Token]


class Recorded(NamedTuple):
    """A fingerprint that was accepted."""

    model: str
    prompts: List[str]
    answers: List[Answer]
    tolerance: float
    """By how much a log probability may differ."""


class NoLogprobs(Exception):
    """The endpoint generates no text with this model, or reports no log probabilities."""


def take(endpoint: Endpoint, model: str, prompts: Sequence[str], timeout: float) -> List[Answer]:
    """The model's answers, in the order of the prompts.

    :param timeout: seconds for all of them.
    :raises EndpointError: as of :meth:`Endpoint.complete`.
    :raises NoLogprobs: there is nothing to compare.
    """
    until = time.monotonic() + timeout
    found = []
    for prompt in prompts:
        try:
            path, body = endpoint.complete(
                model, prompt, max(0.1, until - time.monotonic()), TOKENS, seed=0, logprobs=True, top_logprobs=_ASKED
            )
        except EndpointError as error:
            if error.name == "not_offered":
                raise NoLogprobs(str(error)) from None
            raise
        answer = read(body)
        if not answer:
            raise NoLogprobs("%s%s reports no log probabilities for %s" % (endpoint.url, path, model))
        found.append(answer)
    return found


def read(body: Dict[str, Any]) -> Answer:
    """The tokens of a completion; empty if it does not report them. Pure."""
    try:
        content = body["choices"][0]["logprobs"]["content"]
        return [
            Token(
                str(token["token"]),
                _number(token["logprob"]),
                {str(other["token"]): _number(other["logprob"]) for other in token.get("top_logprobs") or ()},
            )
            for token in content
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return []


def _number(logprob: Any) -> float:
    """:raises ValueError: it is NaN or infinite, which no comparison would find different."""
    number = float(logprob)
    if not math.isfinite(number):
        raise ValueError(logprob)
    return number


def deviation(one: Answer, other: Answer) -> float:
    """How much two answers differ: the largest difference of log probabilities up to the first other token. Pure.

    There, how much less likely ``one`` considered the token of ``other``; infinite if that is not known. So two
    tokens that were about equally likely count as a small difference.
    """
    worst = 0.0
    for expected, found in zip(one, other):
        if expected.text != found.text:
            likely = expected.others.get(found.text)
            return max(worst, float("inf") if likely is None else expected.logprob - likely)
        worst = max(worst, abs(expected.logprob - found.logprob))
    return worst if len(one) == len(other) else float("inf")


def learned(answers: Sequence[List[Answer]]) -> float:
    """The tolerance, from several fingerprints of one process. Pure."""
    first, further = answers[0], answers[1:]
    worst = max((deviation(one, other) for again in further for one, other in zip(first, again)), default=0.0)
    return max(LEAST, FACTOR * min(worst, 1.0))


def difference(recorded: Recorded, answers: Sequence[Answer]) -> Optional[str]:
    """Where answers differ from the recorded ones by more than is tolerated, as a clause; None: nowhere. Pure."""
    for prompt, expected, found in zip(recorded.prompts, recorded.answers, answers):
        if deviation(expected, found) <= recorded.tolerance:
            continue
        place = next(
            number
            for number in range(1, max(len(expected), len(found)) + 1)
            if deviation(expected[:number], found[:number]) > recorded.tolerance
        )
        now, before = (_shown(answer[place - 1] if place <= len(answer) else None) for answer in (found, expected))
        return "to %r, token %d is %s; recorded: %s" % (one_line(prompt, 60), place, now, before)
    return None


def apart(records: Mapping[str, Recorded]) -> Dict[str, str]:
    """Whose answers differ from those that most give, as a sentence each. Pure.

    :param records: name → what was recorded there, all of one model and the same prompts.
    """
    alike: List[List[str]] = []
    for name, own in records.items():
        group = next((one for one in alike if not _differs(records[one[0]], own)), None)
        if group is None:
            alike.append([name])
        else:
            group.append(name)
    most = max(alike, key=len, default=[])
    return {
        name: "the answers of %s differ from those on %s: %s"
        % (records[name].model, ", ".join(most), _differs(records[most[0]], records[name]))
        for group in alike
        if group is not most
        for name in group
    }


def _differs(one: Recorded, other: Recorded) -> Optional[str]:
    """The same as :func:`difference`, with the larger tolerance of the two."""
    return difference(one._replace(tolerance=max(one.tolerance, other.tolerance)), other.answers)


def _shown(token: Optional[Token]) -> str:
    return "missing" if token is None else "%r (log probability %.2f)" % (one_line(token.text, 30), token.logprob)
