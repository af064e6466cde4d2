# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of models, ``[host/][namespace/]model[:tag]``, and where the store keeps them. Pure."""

from __future__ import annotations

import posixpath
import re

REGISTRY = "registry.ollama.ai"  # of names without a host
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")


def full(name: str) -> str:
    """A model's name with the parts that Ollama fills in: ``registry.ollama.ai/library/NAME:latest``.

    ``http://`` before it, which a pull from a registry without TLS needs, is not part of the name.

    :raises ValueError: it is not a valid name of a model.
    """
    name = re.sub(r"\Ahttps?://", "", name)
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # no tag; a colon before a slash belongs to a host's port
        path, tag = name, "latest"
    parts = path.split("/")
    if len(parts) > 3:
        raise ValueError("%r is not a model name; expected [host/][namespace/]model[:tag]" % name)
    host, namespace, model = ([REGISTRY, "library"][: 3 - len(parts)] + parts)[-3:]
    if not all(_PART.match(part) for part in (namespace, model, tag)) or not re.match(
        r"[A-Za-z0-9.:_-]{1,350}\Z", host
    ):
        raise ValueError("%r is not a model name; expected [host/][namespace/]model[:tag]" % name)
    return "%s/%s/%s:%s" % (host, namespace, model, tag)


def same(one: str, other: str) -> bool:
    """Whether two names mean one model; Ollama ignores case where it looks for a model that it has."""
    return full(one).lower() == full(other).lower()


def at(mirror: str, name: str) -> str:
    """The name by which a mirror of Ollama's own registry has a model; of another registry's model its own name.

    :param mirror: ``[http://]HOST[:PORT]``.
    """
    own = full(name)
    return mirror.rstrip("/") + own[len(REGISTRY) :] if own.startswith(REGISTRY + "/") else name


def manifest(models_dir: str, name: str) -> str:
    """The file whose presence makes a model known to the server."""
    path, _sep, tag = full(name).rpartition(":")
    return posixpath.join(models_dir, "manifests", path, tag)
