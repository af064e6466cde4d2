# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An Ollama that was set up manually, as the inventory variables that reproduce it. Reads only.

A variable of the environment becomes a typed option where the option writes it byte for byte, else it goes to
``environment``; so a run with these variables finds nothing to change.
"""

from __future__ import annotations

import re
import shlex
from typing import Any, Dict, List, Mapping, Optional

from ..gpu import facts as gpu_facts
from ..serving.adopt import Adopted, read, result, variables
from ..serving.exposure import is_loopback
from ..systemd.manager import System
from ..systemd.unit import Unit
from ..toolbox.errors import Refused
from . import settings
from .options import OPTIONS

TYPES = {option.name: option.type for option in OPTIONS}


def adopt(params: Mapping[str, Any], check_mode: bool, warn: Any, system: Optional[Any] = None) -> Dict[str, Any]:
    """The result of the module ``ollama_adopt``.

    :raises Refused: the unit is not there.
    """
    system = system or System()
    by_hand = read(system, params["name"])
    facts = gpu_facts.gather_for(params["facts_timeout"])
    found = Adopted()
    if by_hand.unit != "ollama.service":
        found.options["name"] = by_hand.unit[: -len(".service")]
    if by_hand.state.get("UnitFileState") not in ("enabled", "enabled-runtime"):
        found.options["enabled"] = False
    if "OLLAMA_NO_CLOUD" not in by_hand.environment:
        found.options["no_cloud"] = False  # else it would be switched on
    _program(by_hand.merged, found)
    options = {entry.variable: entry.option for entry in settings.SETTINGS}

    def take(name: str, text: str) -> None:
        if not (name in options and _as_option(options[name], name, text, found)):
            found.environment.update(settings.declare({}, {name: text}).environment)

    def known(name: str) -> bool:
        return name in options or name in settings.LOGGED

    variables(by_hand, found, devices=facts["devices"], root=system.root, known=known, take=take)
    if not _is_loopback(found):
        found.options["allow_unauthenticated"] = True
        found.notes.append("other hosts can reach it, and the API has no authentication")
    return result(by_hand, found, "ollama_", facts, system)


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
