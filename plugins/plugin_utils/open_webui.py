# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where Open WebUI gets its models from, and where a gateway reaches it, by what the inventory declares. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from ..module_utils.toolbox.addresses import host_port, is_loopback
from .gateway_pools import EVERYWHERE, address_of, pools

_PORT, _PAGE = 8443, 8080


def connections(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], own: str = "", key: str = ""
) -> List[Dict[str, str]]:
    """The first gateway, or where there is none, each service that can be reached.

    :param own: the host that asks; it reaches what listens on its own loopback address.
    :param key: the API key for the gateway.
    """
    gateways = groups.get("gateway") or ()
    if gateways:
        return [_with_key({"url": _gateway(gateways[0], hostvars[gateways[0]], own), "api": "openai"}, key)]
    found: Dict[str, Dict[str, str]] = {}
    for rows in pools(hostvars, groups, own)[0].values():
        for row in rows:
            url = "%s://%s" % ("https" if row["tls"] else "http", host_port(str(row["address"]), row["port"]))
            api = "ollama" if row["engine"] == "ollama" else "openai"
            found[url] = _with_key({"url": url, "api": api}, row["key"])
    return list(found.values())


def servers(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], own: str = ""
) -> List[Dict[str, Any]]:
    """Each host with Open WebUI that a gateway reaches, and where.

    :param own: the host of the gateway.
    """
    found = []
    for host in groups.get("open_webui") or ():
        variables = hostvars[host]
        listens = str(variables.get("open_webui_host") or "127.0.0.1")
        if is_loopback(listens) and host != own:
            continue
        address = address_of(host, variables) if listens in EVERYWHERE else listens
        port = int(variables.get("open_webui_port") or _PAGE)
        found.append({"host": host, "address": "127.0.0.1" if host == own else address, "port": port})
    return found


def _gateway(host: str, variables: Mapping[str, Any], own: str) -> str:
    address = "127.0.0.1" if host == own else address_of(host, variables)
    scheme = "https" if variables.get("gateway_tls_certificate") else "http"
    return "%s://%s" % (scheme, host_port(address, int(variables.get("gateway_port") or _PORT)))


def _with_key(connection: Dict[str, str], key: str) -> Dict[str, str]:
    return dict(connection, key=key) if key else connection
