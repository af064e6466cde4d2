# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the model that is to prove a service will fit, from the files of the store and the service as declared."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, NamedTuple, Optional, Sequence

from ..gpu.processes import held_by_unit
from ..toolbox.errors import Refused
from ..toolbox.files import follow
from ..toolbox.http_stream import decode
from . import names, server
from .api import Api, number

if TYPE_CHECKING:
    from . import gguf

_MODEL = "application/vnd.ollama.image.model"
_PARAMETERS = "application/vnd.ollama.image.params"
_LARGEST = 4 << 20  # bytes of a manifest, or of parameters
_READING = 30  # seconds


class Stored(NamedTuple):
    header: "gguf.Header"
    context: int
    """Tokens that the model itself asks for; 0 when it does not."""


class Fit:
    """Called by the engine before it changes anything; afterwards ``estimate`` is as a module's result has it.

    :param stores: directories in which the model may be.
    :param environ: of the service as it will be.
    :param user: of the service.
    :param policy: ``refuse``, ``warn`` or ``ignore``.
    :param replaces: a unit that is stopped before.
    """

    def __init__(
        self,
        model: str,
        stores: Sequence[str],
        environ: Mapping[str, str],
        facts: Dict[str, Any],
        unit: str,
        user: str,
        policy: str,
        warn: Callable[[str], None],
        replaces: str = "",
    ) -> None:
        self.model, self.stores, self.facts, self.policy, self.warn = model, stores, facts, policy, warn
        self.user, self.replaces = user, replaces
        self.server = server.Server(Api("", 0), unit, environ)
        self.estimate: Optional[Dict[str, Any]] = None

    def __call__(self) -> Optional[str]:
        """Why the change must not be made; None when it may."""
        if self.policy == "ignore" or not self.facts["count"]:
            return None
        # only where something changes
        from . import sizing

        try:
            stored = read(self.stores, self.model, self.user)
            devices = self.server.devices(self.facts)
        except (Refused, ValueError) as error:
            self.warn("%s: its need of GPU memory cannot be estimated: %s" % (self.model, error))
            return None
        memory = [device["memory"] for device in devices]
        if any(each["free_bytes"] is None for each in memory):
            return None
        stopped = [held_by_unit(self.facts["devices"], unit) for unit in (self.server.unit, self.replaces)]
        free = [
            int(device["memory"]["free_bytes"]) + sum(held.get(device["uuid"], 0) for held in stopped)
            for device in devices
        ]
        found = sizing.estimate(
            stored.header,
            free,
            sizing.contexts(
                stored.context or self.server.context, stored.header, sum(each["total_bytes"] or 0 for each in memory)
            ),
            sizing.Serving(*self.server.serving),
        )
        self.estimate = sizing.describe(found, [device["index"] for device in devices])
        if found.fits:
            return None
        message = "%s %s. Free GPU memory, or declare more GPUs, a shorter context_length, fewer num_parallel or a " % (
            self.model,
            sizing.shortage(stored.header, found, free),
        )
        message += "smaller kv_cache_type; prove_fit: warn tries it all the same"
        if self.policy == "refuse":
            return message
        self.warn(message)
        return None

    def ratio(self, held: int) -> Optional[float]:
        """What NVML shows, divided by the estimate."""
        expected = (self.estimate or {}).get("held_bytes")
        return round(held / float(expected), 3) if expected and held else None


def read(stores: Sequence[str], model: str, user: str) -> Stored:
    """What a store has of a model, read with the rights of the service's user, to whom the store belongs.

    :raises StepError: there is no such model, that user cannot read its files, or they are not what they should be.
    """
    from ..serving.access import with_rights_of
    from . import gguf

    header, context = with_rights_of(user, lambda: _read(stores, model), _READING)
    return Stored(gguf.Header._make(tuple(part) if isinstance(part, list) else part for part in header), context)


def _read(stores: Sequence[str], model: str) -> Stored:
    from . import gguf

    manifest = next((path for path in (names.manifest(place, model) for place in stores) if os.path.isfile(path)), "")
    layers = {str(layer["mediaType"]): str(layer["digest"]) for layer in _document(manifest)["layers"]}
    store = manifest[: manifest.rindex("/manifests/")]

    def blob(kind: str) -> str:
        return os.path.join(store, "blobs", os.path.basename(layers[kind].replace(":", "-")))

    context = number(_document(blob(_PARAMETERS)).get("num_ctx")) if _PARAMETERS in layers else 0
    with follow(blob(_MODEL)) as file:
        return Stored(gguf.read(file), context)


def _document(path: str) -> Dict[str, Any]:
    with follow(path) as file:
        document = decode(file.read(_LARGEST))
    if not isinstance(document, dict):
        raise ValueError("%s is not a JSON object" % path)
    return document
