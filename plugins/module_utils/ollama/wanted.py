# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The declared models, checked before the server is asked for anything. Pure."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Sequence

from ..toolbox.errors import Refused
from . import modelfile, names, settings


def read(items: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """The declarations without unset options, each with its ``full`` name, and its ``recipe`` where it is created.

    :raises Refused: a declaration contradicts itself, or Ollama would not understand it.
    """
    declared = [_checked(item) for item in items]
    _one_each(declared)
    return declared


def check_mirror(mirror: str, insecure: bool) -> None:
    """:raises Refused: it is not the address of a registry, or has no TLS though TLS is required."""
    if not re.match(r"(http://)?[A-Za-z0-9_.-]+(:[0-9]+)?\Z", mirror):
        raise Refused("registry_mirror: %s; expected [http://]HOST[:PORT]" % mirror)
    if mirror.startswith("http://") and not insecure:
        raise Refused("registry_mirror: %s has no TLS; expected insecure: true with it" % mirror)


def key(name: str) -> str:
    """The same for all names of one model; the server ignores case."""
    return names.full(name).lower()


def _checked(item: Mapping[str, Any]) -> Dict[str, Any]:
    """One declaration."""
    found = {key: value for key, value in item.items() if value is not None}
    name = found["name"]
    try:
        found["full"] = names.full(name)
        if "copy_of" in found:
            names.full(found["copy_of"])
    except ValueError as error:
        raise Refused("models: %s" % error) from None
    sources = [key for key in ("from_file", "modelfile", "copy_of") if key in found]
    if len(sources) > 1:
        raise Refused("%s: %s are given; expected one of them at most" % (name, " and ".join(sources)))
    if found["state"] in ("absent", "unloaded") and (sources or "digest" in found):
        raise Refused("%s: %s has no meaning with state %s" % (name, (sources + ["digest"])[0], found["state"]))
    if found["state"] != "loaded" and ("keep_alive" in found or "options" in found):
        raise Refused("%s: keep_alive and options are for state loaded only" % name)
    if "digest" in found:
        found["digest"] = found["digest"].lower().replace("sha256:", "", 1)
        if not re.match(r"[0-9a-f]{12,64}\Z", found["digest"]):
            raise Refused(
                "%s: digest %s; expected 12 to 64 hexadecimal digits, as `ollama list` shows them"
                % (name, found["digest"])
            )
    if "keep_alive" in found:
        try:
            settings.keep_alive(found["keep_alive"])
        except ValueError as error:
            raise Refused("%s: keep_alive: %s" % (name, error)) from None
    if "from_file" in found:
        found["recipe"] = modelfile.Modelfile(found["from_file"], {})
        if not found["recipe"].from_file:
            raise Refused("%s: from_file %s; expected an absolute path on the host" % (name, found["from_file"]))
    elif "modelfile" in found:
        try:
            found["recipe"] = modelfile.parse(found["modelfile"])
        except Refused as error:
            raise Refused("%s: modelfile: %s" % (name, error)) from None
    return found


def _one_each(declared: List[Dict[str, Any]]) -> None:
    seen = set()
    for item in declared:
        if item["full"].lower() in seen:
            raise Refused("%s: is declared twice; declare each model once" % item["name"])
        seen.add(item["full"].lower())
