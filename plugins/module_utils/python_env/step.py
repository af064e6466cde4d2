# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine's Python environment from options to the switch; by itself, or as a step of a service."""

from __future__ import annotations

import os
from typing import Any, Dict, Mapping, Optional, Tuple

from ..gpu import procfs
from ..toolbox.errors import Failed, Needed, Refused
from ..toolbox.files import link
from . import wheels
from .build import Sources
from .environment import EnvironmentStep
from .interpreters import find_interpreter, python_version

FACTS_LIMIT = 10.0
"""Seconds that reading the GPUs may take."""


def step_for(engine: str, params: Mapping[str, Any], root: str = "/") -> EnvironmentStep:
    """The environment that the options of the module python_environment ask for.

    :param root: where /proc and /sys are (for tests).
    :raises Refused: the driver or the interpreter does not run what is asked for.
    """
    interpreter = find_interpreter(params["interpreter"])
    asked = {name: params[name] for name in ("version", "cuda", "package", "packages", "without", "constraints")}
    sources = Sources(
        index=params["index_url"],
        extra_indexes=tuple(params["extra_index_urls"]),
        wheels=params["wheels"],
        installer=params["installer"],
        timeout=params["build_timeout"],
    )

    def step_on(target: wheels.Target) -> EnvironmentStep:
        return EnvironmentStep(wheels.choose(engine, target, **asked), interpreter, sources, params["root"])

    target = _target(interpreter, root)
    step = step_on(target)
    if target.driver is None or step.choice.cuda == "cpu" or not step.needed():
        return step
    # an environment that is in use has run on these GPUs, and a converged host need not be asked for them
    return step_on(target._replace(gpus=_capabilities()))


def _target(interpreter: str, root: str) -> wheels.Target:
    """What of this host decides which wheels run."""
    driver = procfs.kernel_driver(root)["version"]
    return wheels.Target(
        driver=driver,
        python=python_version(interpreter),
        machine=os.uname().machine,
        glibc=_glibc(),
        compat=_compat(root) if driver else None,
    )


def _capabilities() -> Tuple[Tuple[int, int], ...]:
    from ..gpu import facts

    found = [str(device["compute_capability"]).split(".") for device in facts.first_look(FACTS_LIMIT)["devices"]]
    return tuple((int(pair[0]), int(pair[1])) for pair in found if len(pair) == 2)


def _glibc() -> Optional[Tuple[int, int]]:
    try:
        name, _blank, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        first, second = version.split(".")[:2]
        return (int(first), int(second)) if name == "glibc" else None
    except (OSError, ValueError):  # another C library
        return None


def _compat(root: str) -> Optional[wheels.Compat]:
    """The newest cuda-compat that is installed; its library is named after the driver that it comes from."""
    folder = os.path.join(root, "usr/local")
    found = []
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name, "compat")
        library = link(os.path.join(path, "libcuda.so.1")) if name.startswith("cuda-") else None
        version = (library or "").rpartition("libcuda.so.")[2]
        if version[:1].isdigit() and "." in version:
            found.append(wheels.Compat(path, version))
    return max(found, key=lambda one: wheels.numbers(one.driver), default=None)


def check_wheels(step: EnvironmentStep, params: Mapping[str, Any], check_mode: bool) -> None:
    """To be called before a step is applied.

    :raises Needed: the controller has to send them first.
    :raises Refused: they are not where they should be.
    """
    if not params["wheels"] or step.built():
        return
    if not params["remote_src"]:
        if not check_mode:
            raise Needed([params["wheels"]])
    elif not os.path.exists(params["wheels"]):
        raise Refused(
            "wheels: there is no directory %s on this host; expected one with the wheels of %s"
            % (params["wheels"], " ".join(step.choice.packages))
        )


def converge(params: Mapping[str, Any], check_mode: bool, warn: Any) -> Dict[str, Any]:
    """Bring an engine's environment to its declared state.

    :param params: those of the module python_environment.
    :returns: the module's result.
    :raises Refused: nothing was touched.
    :raises Needed: nothing was touched; call again with the wheels on this host.
    :raises Failed: nothing was switched, and nothing of the new environment is left.
    """
    step = step_for(params["engine"], params)
    needed, built = step.needed(), step.built()
    if not needed:
        left = step.leftovers() if check_mode else step.tidy()
        result: Dict[str, Any] = dict(_result(step), changed=bool(left), diff={}, pruned=left)
        if left:
            names = [os.path.join(step.folder, name) for name in left]
            verb = "would remove" if check_mode else "removed"
            result["msg"] += "; %s what runs that were killed have left: %s" % (verb, ", ".join(names))
            result["diff"] = {"before": "\n".join(names) + "\n", "after": ""}
        return result
    check_wheels(step, params, check_mode)
    if step.choice.warning:
        warn(step.choice.warning)
    diff, pruned = step.diff(), []
    if not check_mode:
        try:
            step.apply()
        except Failed as error:
            raise Failed("%s. Nothing of it is left; what was in use still is" % error) from None
        pruned = sorted({*step.prune(), *step.tidy()})
    said = "switched to" if built else "built and switched to"
    result = dict(_result(step), changed=True, diff=diff, pruned=pruned)
    result["msg"] = "%s%s %s" % ("would have " if check_mode else "", said, result["msg"])
    return result


def _result(step: EnvironmentStep) -> Dict[str, Any]:
    record, choice = step.record(), step.choice
    return {
        "msg": "%s %s (%s)" % (choice.engine, choice.version, choice.cuda),
        "path": step.path,
        "python": step.python,
        "version": choice.version,
        "cuda": choice.cuda,
        "compat": choice.compat,
        "device": record.get("device"),
        "packages": record.get("packages", {}),
        "previous": step.link("previous"),
    }
