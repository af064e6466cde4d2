# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service that was set up manually, as the inventory variables that reproduce it. Reads only.

What may be a secret is never reported, and what cannot be declared is noted and stays where it is.
"""

from __future__ import annotations

import os
import re
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from ..gpu.select import select, visible_devices
from ..placement.choice import VARIABLE, visible_list
from ..systemd.unit import Unit, Value, merge, unit_name
from ..toolbox.errors import Refused

OF_THE_SYSTEM = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
)
"""What a unit or systemd itself gives to any process."""

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"://[^/@]*@")


class ByHand(NamedTuple):
    """A unit as it is in force."""

    unit: str
    state: Mapping[str, str]
    files: Sequence[Tuple[str, bytes]]
    merged: Unit
    environment: Mapping[str, Value]


class Adopted:
    """What was found: options and variables for the inventory, and what they cannot say."""

    def __init__(self) -> None:
        self.options: Dict[str, Any] = {}
        self.environment: Dict[str, str] = {}
        self.notes: List[str] = []


def read(system: Any, name: str) -> ByHand:
    """:raises Refused: there is no such unit."""
    unit = unit_name(name)
    state, files = system.show(unit), system.load([unit])
    if not any(content and not path.endswith(".conf") for path, content in files):
        raise Refused("there is no unit %s on this host that could be adopted; correct the name" % unit)
    merged = merge(files)
    inherited = system.inherited() if merged.in_force("Service", "PassEnvironment") else {}
    environment = merged.environment(system.specifiers(unit), system.environment_files, inherited)
    return ByHand(unit, state, files, merged, environment)


def variables(
    by_hand: ByHand,
    found: Adopted,
    *,
    devices: List[Dict[str, Any]],
    root: str,
    known: Callable[[str], bool],
    take: Callable[[str, str], None],
) -> None:
    """Each variable as an option, as a further variable, or as a note.

    :param devices: the GPUs, out of the facts.
    :param root: is put before every path (for tests).
    :param known: whether the engine knows a variable, and so that it holds no secret.
    :param take: takes a variable and its text into ``found``; Refused where the engine would misread it.
    """
    is_private = private_below(root)
    for name, value in sorted(by_hand.environment.items()):
        text = value.text or ""
        if name in OF_THE_SYSTEM:
            continue
        hidden = not known(name) and (SECRET_NAME.search(name) or is_private(value.path))
        if hidden or _PASSWORD_IN_URL.search(text):
            found.notes.append(
                "%s (%s) is not reported, as it may be a secret; it stays where it is" % (name, value.place)
            )
            continue
        try:
            if name == VARIABLE:
                _gpus(text, devices, found)
            else:
                take(name, text)
        except Refused as error:
            found.notes.append("%s (%s) is not adopted: %s; it stays where it is" % (name, value.place, error))


def result(by_hand: ByHand, found: Adopted, prefix: str, facts: Mapping[str, Any], system: Any) -> Dict[str, Any]:
    """The module's result.

    :param prefix: of the role's variables, such as ``ollama_``.
    """
    notes = found.notes + _differences(by_hand, system)
    variables = {prefix + name: value for name, value in found.options.items()}
    if found.environment:
        variables[prefix + "environment"] = found.environment
    variables.update(_host(facts))
    return {
        "changed": False,
        "msg": "%s: %d variables, %d notes" % (by_hand.unit, len(variables), len(notes)),
        "variables": variables,
        "notes": notes,
        "files": [path for path, _content in by_hand.files],
    }


def _gpus(text: str, devices: List[Dict[str, Any]], found: Adopted) -> None:
    """CUDA_VISIBLE_DEVICES as the wish that gives this text, or as it is.

    :raises Refused: it names none of this host's GPUs.
    """
    listed = visible_list(text)
    chosen = select(devices, listed)
    by_number = [int(item) if item.isdigit() else item for item in listed]
    for wish in ("all", by_number) if len(chosen) == len(devices) else (by_number,):
        try:
            if visible_devices(select(devices, wish), devices, wish) == text:
                found.options["visible_devices"] = wish
                return
        except Refused:
            continue
    found.environment[VARIABLE] = text


def _differences(by_hand: ByHand, system: Any) -> List[str]:
    """What a run would still change, however the inventory is written."""
    pid = int(by_hand.state.get("MainPID") or 0)
    running = system.environ(pid) if pid else None
    if running is None:
        return ["%s does not run; a run of site.yml starts it" % by_hand.unit]
    notes = []
    stale = sorted(name for name, value in by_hand.environment.items() if running.get(name) != value.text)
    if stale:
        notes.append(
            "the running process has other values than the unit for %s; a run of site.yml restarts it"
            % ", ".join(stale)
        )
    if by_hand.state.get("NeedDaemonReload") == "yes":
        notes.append("systemd has not read the unit's files since they changed; a run of site.yml reloads it")
    return notes


def _host(facts: Mapping[str, Any]) -> Dict[str, Any]:
    """What the role gpu_host would otherwise change."""
    found: Dict[str, Any] = {}
    if facts["count"] and facts["source"] != "nvml":
        found["gpu_host_pynvml"] = False
    if any(device.get("persistence_mode") is False for device in facts["devices"]):
        found["gpu_host_persistence"] = False
    return found


def private_below(root: str) -> Callable[[str], bool]:
    """Whether a file cannot be read by everybody, so that its content may be secret. The folders above it count."""
    base = os.path.realpath(root or "/")

    def is_private(path: str) -> bool:
        place = os.path.realpath(root + path)
        if not place.startswith(base.rstrip("/") + "/"):
            return True
        try:
            public = os.stat(place).st_mode & 0o004
            while public and place != base:
                place = os.path.dirname(place)
                public = place == base or os.stat(place).st_mode & 0o001
        except OSError:
            return True
        return not public

    return is_private
