# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that offers models of its store to others of the fleet, for the length of a run."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Dict, Mapping, Optional, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import names, server
from ansible_collections.gpufleet.inference.plugins.module_utils.seeding import offer
from ansible_collections.gpufleet.inference.plugins.module_utils.service.systemd import System

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def bring(params: Mapping[str, Any], check_mode: bool, system: Optional[Any] = None) -> Dict[str, Any]:
    """Start or end to offer models; see offer.bring."""
    system = system or System()
    return offer.bring(params, check_mode, system, lambda: _look(params, system))


def _look(params: Mapping[str, Any], system: Any) -> offer.Offer:
    unit = params["name"] if params["name"].endswith(".service") else params["name"] + ".service"
    store, uid = _store(unit, params["host"], system)
    found = offer.Offer({}, {}, uid, {}, _MANIFEST)
    for name in params["models"]:
        try:
            with open(names.manifest(store, name), "rb") as file:
                content = file.read()
            document = json.loads(content.decode("utf-8"))
            parts = [str(part["digest"]) for part in (document["config"], *document["layers"])]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise offer.Unable("%s: cannot be offered: %s" % (name, error)) from None
        blobs = {part: os.path.join(store, "blobs", part.replace(":", "-")) for part in parts}
        lacking = [blob for blob in blobs.values() if not os.path.isfile(blob)]
        if lacking:
            raise offer.Unable("%s: cannot be offered: its store has no %s" % (name, lacking[0]))
        digest = hashlib.sha256(content).hexdigest()
        found.manifests["sha256:" + digest] = content.decode("utf-8")
        found.blobs.update(blobs)
        found.models[name] = digest
    return found


def _store(unit: str, host: Optional[str], system: Any) -> Tuple[str, int]:
    """The store of the running server, and the number of its user."""
    try:
        found = server.find(unit, host, system)
    except server.ServerError as error:
        raise offer.Unable(str(error)) from None
    if not found.store:
        raise offer.Unable("%s does not tell where its models lie" % unit)
    pid = int(system.show(unit).get("MainPID") or 0)
    try:
        return found.store, os.stat("/proc/%d" % pid).st_uid
    except OSError:
        raise offer.Unable("%s ended just now" % unit) from None
