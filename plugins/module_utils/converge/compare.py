# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares the three states of a setting: declared, on disk, running. Pure."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from ..systemd.unit import EMPTY_IGNORED, LIST_KEYS, Unit, Value, process_settings
from ..toolbox.fields import dataclass

Hide = Callable[[str, Optional[str]], Optional[str]]
"""Returns a variable's value as it may be shown, from its name and the value."""


@dataclass
class View:
    """A unit's merged files, and the environment that they set."""

    unit: Unit
    environment: Dict[str, Value]

    def text(self, name: str) -> Optional[str]:
        return self.environment[name].text if name in self.environment else None


def changed_variables(now: View, planned: View) -> List[str]:
    """The variables whose value in force will change."""
    names = sorted({*now.environment, *planned.environment})
    return [name for name in names if now.text(name) != planned.text(name)]


def changed_settings(now: View, planned: View) -> List[str]:
    """The settings of the process whose value in force will change, as ``[Section] Key``."""
    before, after = process_settings(now.unit), process_settings(planned.unit)
    return ["[%s] %s" % key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]


def stale(names: Sequence[str], planned: View, running: Mapping[str, str]) -> List[str]:
    """Those of the variables whose value in the running process differs from the one that will be in force."""
    return [name for name in names if running.get(name) != planned.text(name)]


def drift(
    names: Sequence[str], declared: Mapping[str, str], now: View, running: Optional[Mapping[str, str]], hide: Hide
) -> Dict[str, Dict[str, Optional[str]]]:
    """The variables for which declared, on disk and running differ; of a unit that does not run, the first two.

    ``file`` is the place of the value on disk, None where there is none.
    """
    found = {}
    for name in names:
        three = [declared.get(name), now.text(name)] + ([running.get(name)] if running is not None else [])
        if len(set(three)) > 1:
            shown = [hide(name, text) for text in three] + [None]
            winner = now.environment.get(name)
            place = winner.place if winner else None
            found[name] = dict(zip(("declared", "on_disk", "running"), shown), file=place)
    return found


def shadows(
    declared: Mapping[str, str],
    settings: Mapping[str, Mapping[str, List[str]]],
    planned: View,
    unset: Mapping[str, Value],
    drop_in: str,
    hide: Hide,
) -> List[Dict[str, Any]]:
    """What is declared but would not be in force: ``name``, ``declared``, ``effective``, ``file``, ``line``."""
    found = []
    for name, text in sorted(declared.items()):
        if planned.text(name) != text:
            winner = planned.environment.get(name) or unset.get(name) or Value(None, drop_in)
            found.append(_shadow(name, hide(name, text), hide(name, planned.text(name)), winner))
    for section, keys in settings.items():
        for key, values in keys.items():
            later = _overriding(planned.unit, section, key, values, drop_in)
            if later:
                found.append(_shadow("[%s] %s" % (section, key), " ".join(values), later.text or None, later))
    return found


def _shadow(name: str, declared: Optional[str], effective: Optional[str], winner: Value) -> Dict[str, Any]:
    return {"name": name, "declared": declared, "effective": effective, "file": winner.path, "line": winner.line}


def say(shadow: Mapping[str, Any]) -> str:
    """A shadow as a sentence."""
    place = Value(None, shadow["file"], shadow["line"]).place
    now = "removes it" if shadow["effective"] is None else "sets %r" % shadow["effective"]
    return "%s is declared %r, but %s %s" % (shadow["name"], shadow["declared"], place, now)


def _overriding(unit: Unit, section: str, key: str, values: Sequence[str], drop_in: str) -> Optional[Value]:
    """The later line that overrides what we declare for a key; its text is empty where it only clears a list."""
    lines = [line for line in unit.assignments if (line.section, line.key) == (section, key)]
    ours = [number for number, line in enumerate(lines) if line.path == drop_in]
    later = lines[ours[-1] + 1 :] if ours else []
    if key in EMPTY_IGNORED:
        later = [line for line in later if line.value]
    if key in LIST_KEYS:
        later = [line for line in later if not line.value]
    elif later and later[-1].value == values[-1]:
        later = []
    return Value(later[-1].value, later[-1].path, later[-1].line) if later else None
