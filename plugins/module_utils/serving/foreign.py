# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a unit has without our override. Where the inventory declares nothing, this stays in force."""

from __future__ import annotations

import os
from typing import Any, Dict, List, NamedTuple

from ..converge.override import DROP_IN
from ..systemd.unit import expanded_words, merge


class Foreign(NamedTuple):
    """What files that are not ours say about a service."""

    user: str
    """Empty where there is no unit; a unit without ``User=`` runs as root."""
    environment: Dict[str, str]
    """Variables in force, those of environment files included."""
    command: List[str]
    """The words of ``ExecStart=``, without systemd's prefixes; empty where there is none."""


def foreign(system: Any, unit: str, ours: bool = False) -> Foreign:
    """Read the files of a unit, without our override.

    :param ours: with it, as the unit is in force.
    """
    files = [file for file in system.load([unit]) if ours or os.path.basename(file[0]) != DROP_IN]
    if not any(content and not path.endswith(".conf") for path, content in files):  # a masked one is empty
        return Foreign("", {}, [])
    merged, specifiers = merge(files), system.specifiers(unit)
    users, starts = (merged.in_force("Service", key) for key in ("User", "ExecStart"))
    values = merged.environment(specifiers, system.environment_files)
    words = list(expanded_words(starts[-1].value.lstrip("@-:+!"), specifiers)) if starts else []
    return Foreign(
        users[-1].value if users else "root",
        {name: value.text for name, value in values.items() if value.text},
        [] if words[:1] == ["/bin/false"] else words,  # that of a template, which an instance replaces
    )
