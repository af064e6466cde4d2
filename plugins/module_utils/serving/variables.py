# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option ``environment`` of a service. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple


def variables(given: Mapping[str, Any], elsewhere: Mapping[str, str]) -> Tuple[Dict[str, str], List[str]]:
    """The variables as text, and what is wrong with the others, each with the variable's name.

    :param elsewhere: what to do instead, by the name of a variable that does not belong here.
    """
    found: Dict[str, str] = {}
    problems = []
    for name, value in sorted(given.items()):
        if name in elsewhere:
            problems.append("environment.%s: %s" % (name, elsewhere[name]))
        elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
            problems.append("environment.%s: %r is neither text nor a number; put quotes around it" % (name, value))
        else:
            found[name] = str(value)
    return found, problems
