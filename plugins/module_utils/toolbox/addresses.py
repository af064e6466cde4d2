# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses: those that servers listen on, and one spelling for each. Pure."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a server that listens on this address or name can be reached from its own host only.

    False for every interface (``""``, ``0.0.0.0``, ``::``), and for a name other than ``localhost``.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """The address at which a client on the same host reaches a server that listens there."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def host_port(host: str, port: int) -> str:
    """``HOST:PORT`` as a URL has it, with brackets around an IPv6 address."""
    return "%s:%d" % ("[%s]" % host if ":" in host else host, port)


def plain(address: str) -> str:
    """An address in one spelling, without a zone; an IPv4 address for one that is written as IPv6.

    :raises ValueError: it is not an address.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(found, "ipv4_mapped", None) or found)
