# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that offers models of its store to others of the fleet, for the length of a run."""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import re
import socket
import sys
import time
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import names, seed_program, server
from ansible_collections.gpufleet.inference.plugins.module_utils.service.systemd import ManagerError, System

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_FOLDER = "/run/gpufleet"
_STARTS = 10.0  # seconds until it listens
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


class SeedError(Exception):
    """The declaration is wrong."""


class Unable(Exception):
    """This host cannot seed; others have to do without it."""


def bring(params: Mapping[str, Any], check_mode: bool, system: Optional[Any] = None) -> Dict[str, Any]:
    """Start or end to offer models.

    :returns: the module's result.
    :raises SeedError: nothing was touched.
    :raises Unable: nothing runs now.
    """
    system = system or System()
    own = "gpufleet-seed-%d.service" % params["port"]
    try:
        runs = system.show(own).get("ActiveState") in ("active", "activating", "deactivating")
        if params["state"] == "stopped":
            if runs and not check_mode:
                system.stop(own, 30)
            return {"changed": runs, "unit": own, "models": {}, "msg": "%s ended" % own if runs else "no %s" % own}
        if not re.match(r"[0-9a-f]{32}\Z", params["token"] or ""):
            raise SeedError("token: expected 32 hexadecimal digits in small letters, new for each run")
        if not params["models"]:
            raise SeedError("models: is empty; expected the names of models of the store")
        unit = params["name"] if params["name"].endswith(".service") else params["name"] + ".service"
        store, uid = _store(unit, params["host"], system)
        config = _offer(store, params["models"])
        config["address"] = params["address"] or toward(params["peers"] or ())
        config.update(port=params["port"], idle=params["idle_timeout"], prefix="gpufleet-" + params["token"])
        if not check_mode:
            if runs:
                system.stop(own, 30)  # of a run that was killed
            _start(own, uid, config, system)
    except (ManagerError, server.ServerError) as error:
        raise Unable(str(error)) from None
    url = "http://%s:%d" % (config["address"], config["port"])
    return {
        "changed": True,
        "unit": own,
        "url": url,
        "models": config["digests"],
        "msg": "%s offers %s" % (url, ", ".join(params["models"])),
    }


def toward(peers: Any) -> str:
    """The IPv4 address of this host by which it reaches the first of its peers that can be reached.

    :raises Unable: there is none that another host could reach.
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
    raise Unable(
        "finds no address by which its peers (%s) could reach it; declare address" % (", ".join(peers) or "none given")
    )


def _store(unit: str, host: Optional[str], system: Any) -> Tuple[str, int]:
    """The store of the running server, and the number of its user."""
    found = server.find(unit, host, system)
    if not found.store:
        raise Unable("%s does not tell where its models lie" % unit)
    pid = int(system.show(unit).get("MainPID") or 0)
    try:
        return found.store, os.stat("/proc/%d" % pid).st_uid
    except OSError:
        raise Unable("%s ended just now" % unit) from None


def _offer(store: str, models: List[str]) -> Dict[str, Any]:
    """Manifests and files of the models, and their digests by name."""
    offer = {"type": _MANIFEST, "manifests": {}, "blobs": {}, "digests": {}}  # type: Dict[str, Any]
    for name in models:
        try:
            path = names.manifest(store, name)
            with open(path, "rb") as file:
                content = file.read()
            document = json.loads(content.decode("utf-8"))
            parts = [document["config"], *document["layers"]]
            blobs = {
                str(part["digest"]): os.path.join(store, "blobs", str(part["digest"]).replace(":", "-"))
                for part in parts
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unable("%s: cannot be offered: %s" % (name, error)) from None
        lacking = [blob for blob in blobs.values() if not os.path.isfile(blob)]
        if lacking:
            raise Unable("%s: cannot be offered: its store has no %s" % (name, lacking[0]))
        digest = hashlib.sha256(content).hexdigest()
        offer["manifests"]["sha256:" + digest] = content.decode("utf-8")
        offer["blobs"].update(blobs)
        offer["digests"][name] = digest
    return offer


def _start(own: str, uid: int, config: Dict[str, Any], system: Any) -> None:
    """Have systemd run the program; its text, with the token in it, is read by systemd and then gone."""
    address = (config["address"], config["port"])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise Unable("cannot listen at %s:%d: %s" % (address + (error.strerror,))) from None
    text = (pkgutil.get_data(__package__ or seed_program.__package__, "seed_program.py") or b"").decode("utf-8")
    path = "%s/%s.py" % (_FOLDER, own)
    os.makedirs(_FOLDER, mode=0o755, exist_ok=True)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write("%s\n\nserve(%r)\n" % (text, config))
        properties = dict(_SANDBOX, User=str(uid), StandardInput="file:" + path, SyslogIdentifier="gpufleet-seed")
        system.run_transient(own, "Seeds models to other hosts of the fleet", [sys.executable, "-I", "-"], properties)
        until = time.monotonic() + _STARTS
        while not _listens(address):
            ended = system.show(own).get("ActiveState") not in ("active", "activating")
            if ended or time.monotonic() > until:
                system.stop(own, 30)
                raise Unable("%s %s; see journalctl -u %s" % (own, "ended" if ended else "does not listen", own))
            # nothing tells when the port is open
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
