# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine's Python environment from options to the switch; by itself, or as a step of a service."""

from __future__ import annotations

import os
from typing import Any, Dict, Mapping

from ..gpu import procfs
from ..toolbox.errors import Failed, Needed, Refused
from . import wheels
from .build import Sources
from .environment import EnvironmentStep
from .interpreters import find_interpreter, python_version


def step_for(engine: str, params: Mapping[str, Any], root: str = "/") -> EnvironmentStep:
    """The environment that the options of the module python_environment ask for.

    :param root: where /proc and /sys are (for tests).
    :raises Refused: the driver or the interpreter does not run what is asked for.
    """
    interpreter = find_interpreter(params["interpreter"])
    choice = wheels.choose(
        engine,
        version=params["version"],
        cuda=params["cuda"],
        driver=procfs.kernel_driver(root)["version"],
        python=python_version(interpreter),
        package=params["package"],
        packages=params["packages"],
        without=params["without"],
        constraints=params["constraints"],
    )
    sources = Sources(
        index=params["index_url"],
        extra_indexes=tuple(params["extra_index_urls"]),
        wheels=params["wheels"],
        installer=params["installer"],
        timeout=params["build_timeout"],
    )
    return EnvironmentStep(choice, interpreter, sources, params["root"])


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
        "device": record.get("device"),
        "packages": record.get("packages", {}),
        "previous": step.link("previous"),
    }
