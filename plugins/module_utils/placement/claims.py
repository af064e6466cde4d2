# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who claims which GPUs and ports of a host, and whether two services get in each other's way.

A claim stands in the override of its own unit, in a section that systemd passes over, and so is written, put back and
removed together with what it is about:

    [X-Gpufleet]
    Exclusive=yes
    GPU=GPU-11111111-2222-3333-4444-555555555555
    Port=11434

A service claims by having these lines among its settings (:func:`lines`), after :func:`check` found nobody in the way.
Two runs for two services may check at the same time. So :func:`claiming` checks again under a lock of the host,
which is held until the override is written.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..converge.model import StepError
from ..converge.override import DIRECTORY, DROP_IN
from ..systemd.manager import ManagerError
from ..systemd.unit import parse

SECTION = "X-Gpufleet"
WAIT = 60
"""Seconds to wait for another service that claims, which takes milliseconds."""
SHARE = re.compile(r"[0-9]*\.?[0-9]+")


class Claim(NamedTuple):
    """What one service takes of a host."""

    unit: str
    """Full name, such as ``ollama.service``."""
    gpus: Mapping[str, Optional[float]] = {}
    """UUID to the share of its memory, 0 to 1; None: as much as it gets."""
    exclusive: bool = True
    """Nobody else may use these GPUs. Shared GPUs are shared only among services that all say so."""
    ports: Tuple[int, ...] = ()
    """TCP ports on which it listens."""


def lines(claim: Claim) -> Dict[str, Dict[str, List[str]]]:
    """The claim as ``Change.settings`` takes it, to be merged with the unit's other settings."""
    keys: Dict[str, List[str]] = {}
    if claim.gpus:
        keys["Exclusive"] = ["yes" if claim.exclusive else "no"]
        keys["GPU"] = [
            uuid if share is None else "%s %s" % (uuid, round(share, 4)) for uuid, share in sorted(claim.gpus.items())
        ]
    if claim.ports:
        keys["Port"] = [str(port) for port in sorted(claim.ports)]
    return {SECTION: keys} if keys else {}


def read(unit: str, content: bytes) -> Claim:
    """The claim in the text of a unit's override."""
    gpus: Dict[str, Optional[float]] = {}
    ports: List[int] = []
    exclusive = True
    for line in parse(content, "").assignments:
        if line.section != SECTION:
            continue
        if line.key == "GPU":
            uuid, _blank, share = line.value.partition(" ")
            gpus[uuid] = float(share) if SHARE.fullmatch(share) else None
        elif line.key == "Port" and line.value.isdigit():
            ports.append(int(line.value))
        elif line.key == "Exclusive":
            exclusive = line.value != "no"
    return Claim(unit, gpus, exclusive, tuple(ports))


def held(system: Any) -> List[Claim]:
    """The claims that lie on this host, in the order of the units' names. ``system`` is a systemd.System."""
    units = [name[:-2] for name in system.names(DIRECTORY) if name.endswith(".d")]
    found = ((unit, system.read("%s/%s.d/%s" % (DIRECTORY, unit, DROP_IN))) for unit in sorted(units))
    claims = [read(unit, content) for unit, content in found if content and SECTION.encode() in content]
    return [claim for claim in claims if claim.gpus or claim.ports]


@contextmanager
def claiming(
    claim: Claim, system: Any, leaving: Sequence[str] = (), label: Callable[[str], str] = lambda uuid: uuid
) -> Iterator[None]:
    """Check a claim again and hold the ledger while the caller writes it, so that no other run claims in between.

    :param leaving: units whose claims do not count: the same run is about to change or remove them.
    :raises StepError: another run was faster.
    :raises ManagerError: the ledger is not free.
    """
    with system.lock("claims", WAIT):
        _check([claim], system, leaving, label, True)
        yield


def check(
    declared: Sequence[Claim], system: Any, leaving: Sequence[str] = (), label: Callable[[str], str] = lambda uuid: uuid
) -> None:
    """Raise StepError when a declared service would get in the way of another one, declared or on the host.

    The message names both, what they both claim, and what to do.

    To be asked before anything is written, with all services that the same run declares. What is converged is seen from
    the files alone. systemd is asked only upon a conflict, whose other unit must still be there and be running or
    enabled, and for a port that is new to its service, on which nobody else may listen.

    :param system: a systemd.System.
    :param leaving: units that the same run takes off the host.
    :param label: how messages name a GPU, from its UUID.
    """
    _check(declared, system, leaving, label, False)


def _check(
    declared: Sequence[Claim], system: Any, leaving: Sequence[str], label: Callable[[str], str], runs_count: bool
) -> None:
    """:param runs_count: whether a claim also counts while another run brings its unit up."""
    units = {claim.unit for claim in declared} | set(leaving)
    held_before = held(system)
    others = [claim for claim in held_before if claim.unit not in units]
    found = _met(declared, others, label)
    if found and others:  # only now is systemd asked
        others = [
            claim
            for claim in others
            if _stands(system.show(claim.unit)) or (runs_count and _is_being_changed(claim.unit, system))
        ]
        found = _met(declared, others, label)
    known = {(claim.unit, port) for claim in held_before for port in claim.ports}
    new = [(claim.unit, port) for claim in declared for port in claim.ports if (claim.unit, port) not in known]
    found = found or _taken(new, units, system)
    if found:
        raise StepError(found)


def _taken(ports: Sequence[Tuple[str, int]], ours: Iterable[str], system: Any) -> Optional[str]:
    """The first of the ports (unit, port) on which a process listens that is in none of our units; None: all free."""
    for unit, port in ports:
        listener = system.listener(port)
        if not listener:
            continue
        pid, name = listener
        if not any(pid in system.pids(system.show(our).get("ControlGroup", "")) for our in ours):
            return (
                "port %d, on which %s is to listen, is taken by process %d (%s): give the service another port, or "
                "stop that process (systemctl status %d names its unit)" % (port, unit, pid, name, pid)
            )
    return None


def _met(declared: Sequence[Claim], others: Sequence[Claim], label: Callable[[str], str]) -> Optional[str]:
    """The first thing that is claimed beyond what there is of it, as a sentence with the names; None: nothing is."""
    everyone = [*declared, *others]
    for number, claim in enumerate(declared):
        for other in everyone[number + 1 :]:
            what = _between(claim, other, label)
            if what:
                if other in others:
                    what += "; %s is on this host already: systemctl disable --now %s releases it" % (
                        other.unit,
                        other.unit,
                    )
                return what
        for uuid in claim.gpus:
            shares = [(other.unit, other.gpus.get(uuid) or 0.0) for other in everyone]
            shares = [(unit, share) for unit, share in shares if share]
            if len(shares) > 1 and sum(share for _unit, share in shares) > 1.0001:
                return "%s share GPU %s, but claim %s of its memory, more than there is: lower one of them" % (
                    " and ".join(unit for unit, _share in shares),
                    label(uuid),
                    " and ".join("%.0f %%" % (100 * share) for _unit, share in shares),
                )
    return None


def _between(one: Claim, two: Claim, label: Callable[[str], str]) -> Optional[str]:
    """What two services cannot both have, whatever their shares."""
    names = (one.unit, two.unit)
    ports = sorted(set(one.ports) & set(two.ports))
    if ports:
        return "%s and %s both listen on port %d: give each its own" % (*names, ports[0])
    common = [uuid for uuid in one.gpus if uuid in two.gpus]
    alone = [claim.unit for claim in (one, two) if claim.exclusive]
    if not (common and alone):
        return None
    return "%s and %s both claim GPU %s, and %s for itself alone: give them different GPUs, or let both share" % (
        *names,
        ", ".join(label(uuid) for uuid in common),
        "each" if len(alone) == 2 else alone[0],
    )


def _stands(state: Mapping[str, str]) -> bool:
    """Whether a unit still is what its claim is about: one that was removed or disabled manually holds nothing.

    Nor does a job that has ended, as its unit is never enabled.
    """
    if state.get("LoadState") != "loaded":
        return False
    down = state.get("ActiveState") in ("inactive", "failed")
    return not down or state.get("UnitFileState") in ("enabled", "enabled-runtime")


def _is_being_changed(unit: str, system: Any) -> bool:
    """Whether another run is changing a unit: it holds the unit's lock until it is proven."""
    try:
        with system.lock(unit, 0):
            return False
    except ManagerError:
        return True
