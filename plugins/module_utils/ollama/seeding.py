# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that offers models of its store to others of the fleet, for the length of a run."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import names, server
from ansible_collections.gpufleet.inference.plugins.module_utils.seeding import offer
from ansible_collections.gpufleet.inference.plugins.module_utils.seeding.offer import Unable, toward
from ansible_collections.gpufleet.inference.plugins.module_utils.service.systemd import ManagerError, System

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


__all__ = ["SeedError", "Unable", "bring", "toward"]


class SeedError(Exception):
    """The declaration is wrong."""


def bring(params: Mapping[str, Any], check_mode: bool, system: Optional[Any] = None) -> Dict[str, Any]:
    """Start or end to offer models.

    :returns: the module's result.
    :raises SeedError: nothing was touched.
    :raises Unable: nothing runs now.
    """
    system = system or System()
    try:
        if params["state"] == "stopped":
            return offer.end(params, check_mode, system)
        if not offer.is_token(params["token"]):
            raise SeedError("token: expected 32 hexadecimal digits in small letters, new for each run")
        if not params["models"]:
            raise SeedError("models: is empty; expected the names of models of the store")
        unit = params["name"] if params["name"].endswith(".service") else params["name"] + ".service"
        store, uid = _store(unit, params["host"], system)
        config = _offer(store, params["models"])
        told = offer.begin(config, uid, params, check_mode, system)
    except (ManagerError, server.ServerError) as error:
        raise Unable(str(error)) from None
    said = "%s offers %s" % (told["url"], ", ".join(params["models"]))
    return dict(told, models=config["digests"], msg=said)


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
    offered = {"type": _MANIFEST, "manifests": {}, "blobs": {}, "digests": {}}  # type: Dict[str, Any]
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
        offered["manifests"]["sha256:" + digest] = content.decode("utf-8")
        offered["blobs"].update(blobs)
        offered["digests"][name] = digest
    return offered
