# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service that was set up by hand, as the inventory variables that reproduce it. Reads only.

A variable of the environment becomes a typed option where the option writes it byte for byte, else it goes to
``environment``; so a run with these variables finds nothing to change. What may be a secret is never given, and what
Ollama would misread is told and left where it is: what is not declared stays as it is.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Any, Dict, List, Mapping, Optional

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.select import select, visible_devices
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import settings
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.options import OPTIONS
from ansible_collections.gpufleet.inference.plugins.module_utils.placement.choice import visible_list
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.exposure import is_loopback
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import Unit, Value, merge, unit_name
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

TYPES = {option.name: option.type for option in OPTIONS}
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

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"://[^/@]*@")


class Adopted:
    """What was found: variables for the inventory, and what they cannot say."""

    def __init__(self) -> None:
        self.options: Dict[str, Any] = {}
        self.environment: Dict[str, str] = {}
        self.notes: List[str] = []


def adopt(params: Mapping[str, Any], check_mode: bool, warn: Any, system: Optional[Any] = None) -> Dict[str, Any]:
    """The result of the module ``ollama_adopt``.

    :raises Refused: the unit is not there.
    """
    system = system or System()
    unit = unit_name(params["name"])
    state = system.show(unit)
    files = system.load([unit])
    if not any(content and not path.endswith(".conf") for path, content in files):
        raise Refused("there is no unit %s on this host that could be adopted; correct the name" % unit)
    merged = merge(files)
    inherited = system.inherited() if merged.in_force("Service", "PassEnvironment") else {}
    environment = merged.environment(system.specifiers(unit), system.environment_files, inherited)
    facts = gpu_facts.gather_for(params["facts_timeout"])
    found = Adopted()
    if unit != "ollama.service":
        found.options["name"] = unit[: -len(".service")]
    if state.get("UnitFileState") not in ("enabled", "enabled-runtime"):
        found.options["enabled"] = False
    if "OLLAMA_NO_CLOUD" not in environment:
        found.options["no_cloud"] = False  # else it would be switched on
    _program(merged, found)
    _variables(environment, facts["devices"], _is_private(system.root), found)
    if not _is_loopback(found):
        found.options["allow_unauthenticated"] = True
        found.notes.append("it listens where others reach it, and the API knows no authentication")
    _differences(unit, state, environment, system, found)
    variables = {"ollama_" + name: value for name, value in found.options.items()}
    if found.environment:
        variables["ollama_environment"] = found.environment
    variables.update(_host(facts))
    return {
        "changed": False,
        "msg": "%s: %d variables, %d notes" % (unit, len(variables), len(found.notes)),
        "variables": variables,
        "notes": found.notes,
        "files": [path for path, _content in files],
    }


def _variables(
    environment: Mapping[str, Value], devices: List[Dict[str, Any]], is_private: Any, found: Adopted
) -> None:
    """Each variable as an option, as a further variable, or as a note."""
    options = {entry.variable: entry.option for entry in settings.SETTINGS}
    for name, value in sorted(environment.items()):
        text = value.text or ""
        if name in OF_THE_SYSTEM:
            continue
        known = name in options or name in settings.LOGGED
        if _PASSWORD_IN_URL.search(text) or (not known and (_SECRET_NAME.search(name) or is_private(value.path))):
            found.notes.append("%s (%s) is not told, as it may be a secret; it stays where it is" % (name, value.place))
        elif name == "CUDA_VISIBLE_DEVICES":
            _gpus(text, value, devices, found)
        elif not (name in options and _as_option(options[name], name, text, found)):
            _as_variable(name, text, value, found)


def _as_option(option: str, variable: str, text: str, found: Adopted) -> bool:
    """Take a variable as a typed option, if that option writes exactly this text."""
    wanted: List[Any] = [text]
    if TYPES[option] == "bool":
        wanted = [True, False]
    elif TYPES[option] == "int":
        wanted = [int(text)] if text.isdigit() else []
    elif TYPES[option] == "list":
        wanted = [text.split(",")]
    elif option == "log_level":
        wanted = list(settings.LOG_LEVELS)
    for value in wanted:
        try:
            if settings.declare({option: value}, {}).environment == {variable: text}:
                found.options[option] = value
                return True
        except Refused:
            continue
    return False


def _as_variable(name: str, text: str, value: Value, found: Adopted) -> None:
    try:
        found.environment.update(settings.declare({}, {name: text}).environment)
    except Refused as error:
        found.notes.append("%s (%s) is not taken over: %s; it stays where it is" % (name, value.place, error))


def _gpus(text: str, value: Value, devices: List[Dict[str, Any]], found: Adopted) -> None:
    """CUDA_VISIBLE_DEVICES as the wish that gives this text, or as it is."""
    try:
        listed = visible_list(text)
        chosen = select(devices, listed)
    except Refused as error:
        found.notes.append(
            "CUDA_VISIBLE_DEVICES (%s) is not taken over: %s; it stays where it is" % (value.place, error)
        )
        return
    by_number = [int(item) if item.isdigit() else item for item in listed]
    for wish in ("all", by_number) if len(chosen) == len(devices) else (by_number,):
        try:
            if visible_devices(select(devices, wish), devices, wish) == text:
                found.options["visible_devices"] = wish
                return
        except Refused:
            continue
    found.environment["CUDA_VISIBLE_DEVICES"] = text


def _is_loopback(found: Adopted) -> bool:
    host = found.options.get("host") or found.environment.get("OLLAMA_HOST") or settings.DEFAULT_HOST
    return is_loopback(settings.listen_address(host)[0])


def _program(merged: Unit, found: Adopted) -> None:
    lines = merged.in_force("Service", "ExecStart")
    try:
        words = shlex.split(lines[-1].value.lstrip("@-:+!")) if lines else []
    except ValueError:
        words = []
    match = re.match(r"(/.*)/bin/ollama\Z", words[0] if words else "")
    if not match:
        place = "%s:%d" % (lines[-1].path, lines[-1].line) if lines else "no line"
        found.notes.append("ExecStart= (%s) does not run PREFIX/bin/ollama; it stays as it is" % place)
    elif match.group(1) != "/usr/local":
        found.options["prefix"] = match.group(1)


def _differences(
    unit: str, state: Mapping[str, str], environment: Mapping[str, Value], system: Any, found: Adopted
) -> None:
    """What a run would still change, however the inventory is written."""
    pid = int(state.get("MainPID") or 0)
    running = system.environ(pid) if pid else None
    if running is None:
        found.notes.append("%s does not run; a run of site.yml starts it" % unit)
        return
    stale = sorted(name for name, value in environment.items() if running.get(name) != value.text)
    if stale:
        found.notes.append(
            "the running process has other values than the unit for %s; a run of site.yml restarts it"
            % ", ".join(stale)
        )
    if state.get("NeedDaemonReload") == "yes":
        found.notes.append("systemd has not read the unit's files since they changed; a run of site.yml reloads it")


def _host(facts: Mapping[str, Any]) -> Dict[str, Any]:
    """What the role gpu_host would otherwise change."""
    found = {}  # type: Dict[str, Any]
    if facts["count"] and facts["source"] != "nvml":
        found["gpu_host_pynvml"] = False
    if any(device.get("persistence_mode") is False for device in facts["devices"]):
        found["gpu_host_persistence"] = False
    return found


def _is_private(root: str) -> Any:
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
