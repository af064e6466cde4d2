# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy's runtime API: what a running gateway knows, and changes of it that need no reload."""

from __future__ import annotations

import csv
import hashlib
import re
from typing import Dict, List, Mapping, Optional

from ..programs import gateway_state
from ..toolbox.errors import Failed

RUN = "/run/gpufleet-gateway"
SOCKET = RUN + "/admin.sock"
"""Of the worker that takes new requests."""
MASTER = RUN + "/master.sock"
"""Of the master process: knows the workers of before a reload, which finish their requests."""
STATE = "/var/lib/gpufleet-gateway/servers"
"""The state of all servers, which HAProxy reads whenever it starts or reloads."""
PIECE = 8 << 10
"""Bytes of one command; a command must fit into a buffer of HAProxy's."""


class RuntimeFault(Exception):
    """The gateway does not run, or does not answer."""


def slug(text: str, accepted: str = "A-Za-z0-9_.:-") -> str:
    """A name that HAProxy accepts for a backend or a server; different texts get different names."""
    found = re.sub("[^%s]" % accepted, "_", text)
    return found if found == text else "%s-%s" % (found, hashlib.sha256(text.encode()).hexdigest()[:6])


def host_name(host: str) -> str:
    """What the names of a host's servers begin with, up to their first colon."""
    return slug(host, "A-Za-z0-9_.-")


def server_name(host: str, unit: str) -> str:
    """How the name of a server begins in the backend of each model that it serves: HOST:UNIT; its port follows.

    From the saved state of a server of the same name, HAProxy would also take its previous port.

    :param unit: with or without ``.service``.
    """
    return "%s:%s" % (host_name(host), slug(unit[: -len(".service")] if unit.endswith(".service") else unit))


def ask(command: str, path: str = SOCKET) -> str:
    """The answer to one command.

    :raises RuntimeFault: there is no whole answer within 5 seconds.
    """
    try:
        return gateway_state.ask(command, path)
    except OSError as error:
        raise RuntimeFault("HAProxy does not answer at %s: %s" % (path, error.strerror or error)) from None


def info(path: str = SOCKET) -> Dict[str, str]:
    """What ``show info`` prints, by name."""
    lines = (line.partition(": ") for line in ask("show info", path).split("\n"))
    return {name: value for name, _colon, value in lines}


def failed_reloads(path: str = MASTER) -> int:
    """How many reloads have failed since the last successful one; the previous workers keep running."""
    try:
        found = re.search(r"\[failed: (\d+)\]", ask("show proc", path))
    except RuntimeFault:
        return 0
    return int(found[1]) if found else 0


def servers(path: str = SOCKET) -> List[Dict[str, str]]:
    """A row for each server of each backend, with the columns of ``show stat`` such as ``pxname`` and ``status``."""
    return rows(ask("show stat -1 4 -1", path))


def rows(text: str) -> List[Dict[str, str]]:
    """The rows of ``show stat``."""
    lines = text.lstrip("# ").split("\n")
    return list(csv.DictReader(line for line in lines if line))


def certificate_ends(file: str, path: str = SOCKET) -> Optional[int]:
    """When the certificate that HAProxy has read from a file ends, as Unix time; None where it says nothing."""
    import ssl  # only for a gateway with a certificate, whose proof needs it, too

    found = re.search(r"^notAfter: (.+ GMT)$", ask("show ssl cert %s" % file, path), re.MULTILINE)
    return None if found is None else ssl.cert_time_to_seconds(found[1])


def save_state(path: str = SOCKET, file: str = STATE) -> None:
    """Write down the state of all servers, so that a killed gateway restores it.

    :raises Failed: the gateway does not answer, or the file cannot be written.
    """
    try:
        gateway_state.save(path, file)
    except OSError as error:
        raise Failed("the state of the servers is not saved in %s: %s" % (file, error.strerror or error)) from None


# --- maps


def read_map(name: str, path: str = SOCKET) -> Optional[Dict[str, str]]:
    """What a running map holds; None where the gateway has no such map."""
    text = ask("show map %s" % name, path)
    if text.startswith("Unknown map"):
        return None
    entries = (line.split(" ", 2) for line in text.split("\n") if line)  # address, key, value
    return {entry[1]: entry[2] for entry in entries if len(entry) == 3}


def replace_map(name: str, wanted: Mapping[str, str], path: str = SOCKET) -> None:
    """Give a running map other content, all at once.

    :raises RuntimeFault: the gateway refuses; the map is as it was.
    """
    said = ask("prepare map %s" % name, path)
    version = re.search(r"New version created: (\d+)", said)
    if not version:
        raise RuntimeFault("HAProxy does not replace %s: %s" % (name, said))
    lines = ["%s %s" % entry for entry in wanted.items()]
    while lines:
        piece = [lines.pop(0)]
        while lines and sum(map(len, piece)) + len(lines[0]) < PIECE:
            piece.append(lines.pop(0))
        said = ask("add map @%s %s <<\n%s\n" % (version[1], name, "\n".join(piece)), path)
        if said:
            raise RuntimeFault("HAProxy does not take a line of %s: %s" % (name, said))
    said = ask("commit map @%s %s" % (version[1], name), path)
    if said:
        raise RuntimeFault("HAProxy does not replace %s: %s" % (name, said))
