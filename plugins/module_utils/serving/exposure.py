# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may reach a service: an address that others reach needs a key, a list of clients, or must have been allowed."""

from __future__ import annotations

import ipaddress
import socket
from typing import Callable, Dict, List, Sequence

from ..converge.model import Fault
from ..toolbox.addresses import is_loopback, plain
from ..toolbox.errors import Refused
from .gate import Check, Proof
from .model import Listen

_STRANGER = "127.0.0.2"
"""An address of every host from which none of the declared clients connects."""
_WAIT = 0.2
"""Seconds after which a connection within the host counts as blocked; one that gets through is immediate."""


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
        "true, or name its clients (clients)" % (listen.shown or listen.address, open_to)
    )
    if listen.declared:
        raise Refused("host: " + said)
    warn("the address of the unit, which is not declared: " + said)


def settings(listen: Listen, clients: Sequence[str]) -> Dict[str, List[str]]:
    """Keys of ``[Service]`` with which the kernel passes packets between a service and these clients alone.

    :raises Refused: an address is invalid, or blocking could not be verified.
    """
    try:
        own = plain(listen.address)
    except ValueError:
        own = ""
    if not own or ":" in own or own == "0.0.0.0":
        raise Refused(
            "clients: the service listens on %s; expected one IPv4 address of this host in host, which the host itself "
            "needs to reach the service, and on which it can be verified that others do not"
            % (listen.shown or listen.address or "every address")
        )
    try:
        allowed = sorted(str(ipaddress.ip_network(client)) for client in clients)
    except ValueError as error:
        raise Refused("clients: %s; expected IP addresses or networks such as 192.0.2.0/28" % error) from None
    return {"IPAddressDeny": ["any"], "IPAddressAllow": [" ".join(["127.0.0.1", "::1", own, *allowed])]}


def closed(listen: Listen, clients: Sequence[str]) -> Check:
    """Others than the clients must not reach the service; verdict ``exposed``."""

    def check(proof: Proof) -> None:
        with socket.socket() as stranger:
            stranger.settimeout(_WAIT)
            try:
                stranger.bind((_STRANGER, 0))
                stranger.connect((listen.address, listen.port))
            except OSError:
                return
        raise Fault(
            "exposed",
            "only %s may connect to %s, but a connection from %s was let through: this kernel or container does not "
            "filter the packets of a unit (IPAddressDeny=). Set a key, or listen on 127.0.0.1"
            % (", ".join(clients), listen.address, _STRANGER),
        )

    return check
