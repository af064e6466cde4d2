# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leaves the self check on a host, or removes it: the work of the module ``self_check``."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, Mapping, Optional

from ..toolbox.errors import Refused
from . import unit


def check(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The result in check mode."""
    return converge(params, True, warn)


def look(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The same, never as a difference: ``reason`` has it."""
    return dict(converge(params, True, warn), changed=False)


def converge(
    params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None], system: Optional[Any] = None
) -> Dict[str, Any]:
    """Leave the self check on the host, or remove it.

    :param params: the parameters of the module ``self_check``.
    :returns: the module's result.
    :raises Refused: an option is wrong; nothing was changed.
    :raises Failed: the check does not run; the previous state is restored.
    """
    root = system.root if system else ""
    interval = unit.seconds(params["interval"])
    if interval:
        folder = params["textfile_folder"]
        if not os.path.isabs(folder):
            raise Refused("textfile_folder is %r; expected an absolute path" % folder)
        wanted = unit.units(interval)
        why = unit.differs(root, wanted, interval, params["id"])
        said = "every %s, metrics in %s" % (params["interval"], folder)
    else:
        why = "it is there" if unit.there(root) else ""
        said = "none"
    result = {"changed": bool(why), "msg": "self check: %s" % said, "reason": why}
    if not why or check_mode:
        return result
    from . import install  # only before a change

    if interval:
        install.place(params, wanted, root, system)
    else:
        install.remove(root, system)
    return result
