# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that offers files to others of the fleet for the length of a run, by a transient unit in a sandbox."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple

from ..programs import seed_server
from ..systemd.manager import System
from ..toolbox import lock
from ..toolbox.errors import Failed, Refused
from ..toolbox.source import source_of

_STARTS = 10.0  # seconds until it listens
_STOPS = 30
_SANDBOX = {
    "CapabilityBoundingSet": "",
    "LimitNOFILE": "65536",
    "NoNewPrivileges": "yes",
    "PrivateDevices": "yes",
    "PrivateTmp": "yes",
    "ProtectHome": "read-only",
    "ProtectKernelTunables": "yes",
    "ProtectSystem": "strict",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "SystemCallFilter": "@system-service",
}


class Offer(NamedTuple):
    """What the program is to serve: see seed_server.serve."""

    blobs: Dict[str, str]
    models: Dict[str, Any]
    """What peers are passed, by the names of the models."""
    uid: int
    """Of the user who may read the files."""
    manifests: Dict[str, str] = {}
    type: str = ""


Readers = Mapping[str, Callable[[Mapping[str, Any], Any], Offer]]
"""By the source of models ``(params, system) -> Offer``: what is offered of them."""


def converge(
    params: Mapping[str, Any],
    check_mode: bool,
    warn: Callable[[str], None],
    readers: Readers,
    system: Optional[Any] = None,
) -> Dict[str, Any]:
    """Start or stop offering models at a port.

    A host that cannot seed is not a failure: its peers then use the registry or the hub.

    :param warn: called where this host cannot seed.
    :returns: the module's result.
    :raises Refused: the declaration is wrong.
    """
    try:
        return _converge(params, check_mode, readers, system or System())
    except (Failed, OSError) as error:
        message = "does not seed: %s" % error
        warn(message)
        return {"changed": False, "models": {}, "unit": "", "msg": message}


def _converge(params: Mapping[str, Any], check_mode: bool, readers: Readers, system: Any) -> Dict[str, Any]:
    own = "gpufleet-seed-%d.service" % params["port"]
    runs = system.show(own).get("ActiveState") in ("active", "activating", "deactivating")
    if params["state"] == "stopped":
        if runs and not check_mode:
            system.stop(own, _STOPS)
        return {"changed": runs, "unit": own, "models": {}, "msg": "%s ended" % own if runs else "no %s" % own}
    if not re.match(r"[0-9a-f]{32}\Z", params["token"] or ""):
        raise Refused("token: expected 32 hexadecimal digits in small letters, new for each run")
    if not params["models"]:
        raise Refused("models: is empty; expected what is to be offered")
    read = {readers[model["source"]] for model in params["models"]}
    if len(read) > 1:
        raise Refused("models: those of Ollama and those of a hub need a call, and a port, each")
    offered = read.pop()(params, system)
    address = params["address"] or local_address_towards(params["peers"] or ())
    if not check_mode:
        if runs:
            system.stop(own, _STOPS)  # of a run that was killed
        config = {"address": address, "port": params["port"], "idle": params["idle_timeout"]}
        config.update(prefix="gpufleet-" + params["token"], blobs=offered.blobs)
        config.update(manifests=offered.manifests, type=offered.type)
        _start(own, offered.uid, config, system)
    url = "http://%s:%d" % (address, params["port"])
    said = "%s offers %s" % (url, ", ".join(offered.models))
    return {"changed": True, "unit": own, "url": url, "models": offered.models, "msg": said}


def local_address_towards(peers: Any) -> str:
    """The IPv4 address of this host by which it reaches the first of its peers that can be reached.

    :raises Failed: there is none that another host could reach.
    """
    for peer in peers:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((peer, 9))  # sends nothing: the kernel looks for the way
            except OSError:
                continue
            address = probe.getsockname()[0]
        if not address.startswith("127."):
            return address
    raise Failed(
        "finds no address by which its peers (%s) could reach it; declare address" % (", ".join(peers) or "none given")
    )


def _start(own: str, uid: int, config: Dict[str, Any], system: Any) -> None:
    """Have systemd run the program; its text, with the token in it, is read by systemd and then gone."""
    address = (config["address"], config["port"])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise Failed("cannot listen at %s:%d: %s" % (address + (error.strerror,))) from None
    path = "%s/%s.py" % (lock.FOLDER, own)
    os.makedirs(lock.FOLDER, mode=0o700, exist_ok=True)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write("%s\n\nserve(%r)\n" % (source_of(seed_server), config))
        properties = dict(_SANDBOX, User=str(uid), StandardInput="file:" + path, SyslogIdentifier="gpufleet-seed")
        system.run_transient(own, "Seeds models to other hosts of the fleet", [sys.executable, "-I", "-"], properties)
        until = time.monotonic() + _STARTS
        while not _listens(address):
            ended = system.show(own).get("ActiveState") not in ("active", "activating")
            if ended or time.monotonic() > until:
                system.stop(own, _STOPS)
                raise Failed("%s %s; see journalctl -u %s" % (own, "ended" if ended else "does not listen", own))
            # nothing reports when the port is open
            time.sleep(0.05)
    finally:
        try:
            os.unlink(path)
        except OSError:
            pass


def _listens(address: Tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=2).close()
        return True
    except OSError:
        return False
