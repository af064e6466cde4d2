# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options ``environment`` and ``secret_environment`` of a service. Pure."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Tuple

_SECRET_NAME = r"(?:\A|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEYS?|ACCESS_KEY(?:_ID)?|SECRET_KEY)\Z"
_LOGIN = "://[^/@]*:[^/@]*@"
_SWITCHES = ("", "0", "1", "true", "false", "yes", "no", "on", "off")
MAY_BE_SECRET = "may be a secret, and everyone could read it; use secret_environment"


def may_be_secret(name: str, value: Any) -> bool:
    """Whether a variable has the name of a secret, or holds a URL with a password. A switch is no secret."""
    named = re.search(_SECRET_NAME, str(name), re.IGNORECASE) and str(value).lower() not in _SWITCHES
    return bool(named or re.search(_LOGIN, str(value)))


def plain_variables(given: Mapping[str, Any], elsewhere: Mapping[str, str]) -> Tuple[Dict[str, str], List[str]]:
    """The variables of ``environment`` as text, and what is wrong with the others, each with the variable's name.

    :param elsewhere: what to do instead, by the name of a variable that does not belong here.
    """
    found: Dict[str, str] = {}
    problems = []
    for name, value in sorted(given.items()):
        where = "environment.%s: " % name
        if name in elsewhere:
            problems.append(where + elsewhere[name])
        elif may_be_secret(name, value):
            problems.append(where + MAY_BE_SECRET)
        elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
            problems.append(where + "%r is neither text nor a number; put quotes around it" % (value,))
        else:
            found[name] = str(value)
    return found, problems


def secret_variables(
    given: Mapping[str, Any], elsewhere: Mapping[str, str], plain: Mapping[str, Any]
) -> Tuple[Dict[str, str], List[str]]:
    """The same for ``secret_environment``. No value is in a problem.

    :param plain: the variables of ``environment``.
    """
    found: Dict[str, str] = {}
    problems = []
    for name, value in sorted(given.items()):
        where = "secret_environment.%s: " % name
        if name in elsewhere:
            problems.append(where + elsewhere[name])
        elif name in plain:
            problems.append(where + "is in environment, too; leave it out there")
        elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
            problems.append(where + "expected text; put quotes around it")
        else:
            found[name] = str(value)
    return found, problems
