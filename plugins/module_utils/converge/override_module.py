# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The work of the module `systemd_override`: its options → a change of one unit."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping

from ..toolbox.errors import Refused
from .model import Change
from .run import converge as converge_unit


def converge(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """Converge the unit to its declared state.

    :param params: the module's parameters.
    :param check_mode: read and compare only.
    :param warn: called with each warning.
    :returns: the module's result.
    :raises Refused: an option is wrong; nothing was changed.
    :raises ServiceError: the previous state is restored.
    """
    outcome = converge_unit(
        Change(
            unit=params["unit"],
            state=params["state"],
            environment=variables("environment", params["environment"]),
            secret_environment=variables("secret_environment", params["secret_environment"]),
            credentials=variables("credentials", params["credentials"]),
            settings=settings(params["settings"]),
            enabled=params["enabled"],
            started=params["started"],
            timeout=params["timeout"],
            settle=params["settle"],
        ),
        check_mode=check_mode,
    )
    for warning in outcome.warnings:
        warn(warning)
    return outcome.as_result()


def variables(option: str, values: Dict[str, Any]) -> Dict[str, str]:
    """Values as text; Refused for one that is neither text nor a number."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            kind = "true or false" if isinstance(value, bool) else "a %s" % type(value).__name__
            raise Refused("%s: %s is %s; expected text: quote what the program expects" % (option, name, kind))
    return {str(name): str(value) for name, value in values.items()}


def settings(values: Dict[str, Any]) -> Dict[str, Dict[str, List[str]]]:
    """Section to key to lines; Refused for what is not a setting."""
    found: Dict[str, Dict[str, List[str]]] = {}
    for section, keys in values.items():
        if not isinstance(keys, dict):
            raise Refused("settings: %s is a %s; expected settings and their values" % (section, type(keys).__name__))
        for key, lines in keys.items():
            lines = lines if isinstance(lines, list) else [lines]
            for line in lines:
                if not isinstance(line, (str, int, float)):
                    raise Refused(
                        "settings: [%s] %s is a %s; expected text, a number, or a list of them"
                        % (section, key, type(line).__name__)
                    )
            words = [("yes" if line else "no") if isinstance(line, bool) else str(line) for line in lines]
            found.setdefault(section, {})[key] = words
    return found
