# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that offers models of its store to others of the fleet, for the length of a run."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any, Dict, Mapping, Optional, Tuple

from ..seeding import offer
from ..systemd.unit import unit_name
from ..toolbox import users
from ..toolbox.errors import Failed
from ..toolbox.files import follow
from . import names, server

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_LARGEST = 16 << 20  # bytes of a manifest


def read(params: Mapping[str, Any], system: Any) -> offer.Offer:
    """What is offered of the store of a running server.

    :raises Failed: the server or a model is not there, or may not be read.
    """
    unit, wanted = unit_name(params["unit"]), [model["name"] for model in params["models"]]
    store, ids = _store(unit, params["host"], system)
    found = offer.Offer({}, {}, ids.uid, {}, _MANIFEST)
    # the store is its user's, who must not have root read other files
    told = users.as_user(ids, lambda: [_read(store, name) for name in wanted])
    for name, (content, blobs) in zip(wanted, told):
        digest = hashlib.sha256(content.encode("utf-8")).hexdigest()
        found.manifests["sha256:" + digest] = content
        found.blobs.update(blobs)
        found.models[name] = digest
    return found


def _read(store: str, name: str) -> Tuple[str, Dict[str, str]]:
    """The manifest of a model, and the paths of its blobs by digest.

    :raises Failed: the store does not have all of it, for the user who looks.
    """
    try:
        with follow(names.manifest(store, name)) as file:
            content = file.read(_LARGEST).decode("utf-8")
        document = json.loads(content)
        parts = [str(part["digest"]) for part in (document["config"], *document["layers"])]
        strange = [part for part in parts if not _DIGEST.match(part)]
        if strange:
            raise ValueError("%s is not a digest" % strange[0])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failed("%s: cannot be offered: %s" % (name, error)) from None
    blobs = {part: os.path.join(store, "blobs", part.replace(":", "-")) for part in parts}
    lacking = [blob for blob in blobs.values() if not (os.path.isfile(blob) and os.access(blob, os.R_OK))]
    if lacking:
        raise Failed("%s: cannot be offered: its store has no %s that may be read" % (name, lacking[0]))
    return content, blobs


def _store(unit: str, host: Optional[str], system: Any) -> Tuple[str, users.Ids]:
    """The store of the running server, and the ids of its process."""
    found = server.find(unit, host, system)
    if not found.store:
        raise Failed("%s does not report where its models are" % unit)
    try:
        return found.store, users.ids_of_process(int(system.show(unit).get("MainPID") or 0))
    except OSError:
        raise Failed("%s ended just now" % unit) from None
