# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that offers models of a hub to others of the fleet, for the length of a run."""

from __future__ import annotations

import os
from typing import Any, Dict, Mapping

from ..model_source import hub
from ..model_source.place import Place
from ..toolbox.errors import Failed
from . import offer

_NOBODY = 65534  # the files are readable by all


def read(params: Mapping[str, Any], system: Any) -> offer.Offer:
    """What is offered of the models that model_source has downloaded.

    :raises Failed: one of them is not there, or not whole.
    """
    found = offer.Offer({}, {}, _NOBODY)
    for model in params["models"]:
        place = Place(model)
        found.models[place.key] = _told(place, found.blobs)
    return found


def _told(place: Place, blobs: Dict[str, str]) -> Dict[str, Any]:
    """What peers are passed about a model; its files are added to ``blobs``."""
    commit = place.commit()
    if not commit or not place.whole(commit):
        raise Failed("%s is not in %s" % (place.shown, place.folder))
    record, files = place.record(commit), []
    known = record.get("sha256", {})
    try:
        hub.check(commit, [hub.File(name, size, known.get(name)) for name, size in record["files"].items()])
    except Failed as error:
        raise Failed("%s in %s: %s" % (place.shown, place.folder, error)) from None
    for name, size in sorted(record["files"].items()):
        path = os.path.join(place.path(commit), name)
        sha256 = known.get(name) or _sha256(path)
        blobs["sha256:" + sha256] = path
        files.append({"path": name, "size": size, "sha256": sha256})
    return {"commit": commit, "files": files}


def _sha256(path: str) -> str:
    from ..toolbox.files import open_regular, sha256

    descriptor = open_regular(path)
    if descriptor is None:
        raise Failed("%s is gone" % path)
    with os.fdopen(descriptor, "rb") as file:
        return sha256(file)
