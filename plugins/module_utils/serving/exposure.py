# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may reach a service: an address that others reach needs a key, or must have been allowed."""

from __future__ import annotations

from typing import Callable

from ..toolbox.addresses import is_loopback
from ..toolbox.errors import Refused
from .model import Listen


def check(listen: Listen, open_to: str, allowed: bool, warn: Callable[[str], None]) -> None:
    """:raises Refused: anybody who reaches the address could use the service.

    :param open_to: what they could do, such as ``use, pull and delete models``.
    :param allowed: the inventory has allowed it.
    """
    if allowed or listen.authenticated or is_loopback(listen.address):
        return
    said = (
        "%s is reachable from other hosts, and the service asks for no key: anyone there could %s. Listen on 127.0.0.1 "
        "behind an authenticating proxy, set a key where the engine has one (api_key), or set allow_unauthenticated: "
        "true" % (listen.shown or listen.address, open_to)
    )
    if listen.declared:
        raise Refused("host: " + said)
    warn("the address of the unit, which is not declared: " + said)
