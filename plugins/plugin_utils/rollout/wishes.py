# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables that a person gives a rollout: what is refused, and what the canary is. Pure."""

from __future__ import annotations

from typing import Any, Iterable, List, Mapping, Optional, Sequence, Tuple

from ...module_utils.toolbox.text import one_line
from . import plan
from .plan import Unit

PREFIX = "rollout_"
NAMES = ("min_ready", "width", "max_failures", "canary", "soak", "room_wait", "take_over", "state", "apply")
"""What a person may set, without the prefix."""
VARIABLES = tuple(PREFIX + name for name in NAMES)
REGISTERED = (
    "check",
    "reached",
    "generations",
    "look",
    "gateways",
    "holder",
    "reservation",
    "refusal",
    "release",
    "admission",
    "soaked",
    "compared",
    "back",
    "result",
)
"""What the playbook registers, and would not if it were given with ``-e``."""


def known(variables: Iterable[str], extra: Iterable[str]) -> None:
    """Refuse a variable that Ansible would ignore silently, or use in place of a result.

    :param variables: all variables of a host.
    :param extra: those that were given with ``-e``.
    :raises ValueError: with its name, and those that exist.
    """
    registered = {PREFIX + name for name in REGISTERED} - set(extra)
    for name in sorted(set(variables) - registered):
        if name.startswith(PREFIX) and name[len(PREFIX) :] not in NAMES:
            raise ValueError("%s: no such variable; there are %s" % (name, ", ".join(VARIABLES)))


def seconds(wish: Any) -> float:
    """A number of seconds.

    :raises ValueError: it is something else.
    """
    try:
        found = float(wish)
    except (TypeError, ValueError):
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ValueError("expected seconds, got %s" % one_line(str(wish)))
    return found


def failures(wish: Any, number: int) -> Tuple[int, Optional[int]]:
    """How many hosts may fail in all, and how many one after the other; None for any number.

    :param wish: a number or a share, or a mapping of ``total`` and ``in_a_row`` to either.
    :param number: hosts that change.
    :raises ValueError: it is something else.
    """
    if not isinstance(wish, Mapping):
        return plan.number(wish, number), None
    unknown = sorted(set(map(str, wish)) - {"total", "in_a_row"})
    if unknown:
        raise ValueError("expected total and in_a_row, got %s" % one_line(", ".join(unknown)))
    row = wish.get("in_a_row")
    return plan.number(wish.get("total", number), number), None if row is None else plan.number(row, number)


def canary(wish: Any, hosts: Sequence[str], units: Sequence[Unit]) -> List[str]:
    """The hosts that are changed first and alone: those that are named, else the first one that changes.

    :param wish: names, as a list or separated by commas; None for the default; empty for no canary.
    :param hosts: the hosts of the run.
    :param units: those that change.
    :raises ValueError: a name is not one of ``hosts``.
    """
    first = list(units[0].hosts) if len(units) > 1 else []
    if wish is None:
        return first
    names = {str(name) for name in wish} if isinstance(wish, list) else {*str(wish).replace(",", " ").split()}
    unknown = sorted(names - set(hosts))
    if unknown:
        raise ValueError("%s is not a host of this run" % one_line(", ".join(unknown)))
    found = [host for unit in units if set(unit.hosts) & names for host in unit.hosts]
    return found or (first if names else [])
