# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may use what: declared keys and pools → HAProxy's maps. Pure.

A key itself is in none of them, only its SHA-256; the maps change at runtime, without a reload.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from typing import Any, Dict, Iterable, List, Mapping, Sequence

from ..toolbox.errors import Refused
from .runtime import slug

ALL = "*"
SHORTEST = 20
"""Characters of a key: a hash protects only what cannot be guessed."""
NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}\Z")
DIGEST = re.compile(r"[0-9a-f]{64}\Z")
MODEL = re.compile(r"[A-Za-z0-9._/][A-Za-z0-9._/:@+=~-]{0,254}\Z")
PLACE = re.compile(r"[A-Za-z0-9_.:@%-]+\Z")
"""A host, an address or a unit."""
LONGEST = 16 << 10
"""Bytes of a line of a map: HAProxy cuts longer ones when it reads the file."""
ENGINES = ("ollama", "vllm", "llama_server")
APIS = {"openai": ("openai",), "ollama": ("ollama",), "both": ("openai", "ollama")}

Pools = Mapping[str, Sequence[Mapping[str, Any]]]
"""Model → its servers."""


def maps(keys: Sequence[Mapping[str, Any]], pools: Pools) -> Dict[str, Dict[str, str]]:
    """The maps that change at runtime.

    :returns: by name: ``keys`` (hash → ``NAME|EXPIRES|RATE|CONCURRENT``), ``grants`` (``NAME/API/BACKEND`` → ``whole``,
        or ``part`` where a body that is longer than the buffer is accepted, too), and what a key's holder sees of the
        models, ``openai`` and ``ollama`` (name → JSON).
    :raises Refused: a key cannot be as declared.
    """
    found: Dict[str, Dict[str, str]] = {"keys": {}, "grants": {}, "openai": {}, "ollama": {}}
    granted: Dict[str, List[str]] = {}
    for key in keys:
        name, digest = _name(key), _digest(key)
        if digest in found["keys"]:
            raise Refused("keys: %s is the same key as %s" % (name, found["keys"][digest].partition("|")[0]))
        limits = [_expires(key), _limit(key, "rate"), _limit(key, "concurrent")]
        found["keys"][digest] = "|".join([name, *map(str, limits)])
        models = _models(key, pools)
        if granted.setdefault(name, models) != models:
            raise Refused(
                "keys: two keys named %s have different pools; expected the same pools, or another name" % name
            )
    for name, models in granted.items():
        for model in models:
            kind = "part" if _cannot_leave(model, models, pools) else "whole"
            for api in apis(pools[model]):
                found["grants"]["%s/%s/%s" % (name, api, slug(model))] = kind
        found["openai"][name] = _list(name, _openai(models))
        found["ollama"][name] = _list(name, _ollama(model for model in models if "ollama" in apis(pools[model])))
    return found


def models_of(pools: Pools) -> Dict[str, str]:
    """What clients may call a model → its backend. Ollama's names mean ``:latest`` where they have no tag."""
    found = {model: slug(model) for model in pools}
    for model, rows in pools.items():
        if "ollama" in apis(rows):
            bare, colon, tag = model.rpartition(":")
            found.setdefault(model + ":latest" if not colon else bare if tag == "latest" else model, slug(model))
    return found


def engine_keys(pools: Pools, given: Mapping[str, str]) -> Dict[str, str]:
    """Backend → the key that its engines ask for.

    :param given: the same by ``HOST UNIT``.
    :raises Refused: they ask for several, as HAProxy sets a request's header before it chooses the server.
    """
    found = {}
    for model, rows in pools.items():
        wanted = {given.get("%s %s" % (row["host"], row["unit"]), "") for row in rows}
        if len(wanted) > 1:
            units = ", ".join("%s on %s" % (row["unit"], row["host"]) for row in rows)
            raise Refused(
                "the engines of %s (%s) have different api keys; expected one for all of a pool" % (model, units)
            )
        if wanted != {""}:
            found[slug(model)] = wanted.pop()
            if re.search(r"\s|[^\x21-\x7e]", found[slug(model)]):
                raise Refused("the API key of the engines of %s has characters that no header may contain" % model)
    return found


def apis(rows: Iterable[Mapping[str, Any]]) -> Sequence[str]:
    """The APIs that every server of a pool has."""
    return [api for api in ("openai", "ollama") if all(api in APIS[row["api"]] for row in rows)]


def check(pools: Mapping[str, Any], affinity: Iterable[str] = ()) -> None:
    """:raises Refused: a pool is malformed, or a model with affinity has no pool."""
    for model, rows in pools.items():
        if not isinstance(model, str) or not MODEL.match(model):
            raise Refused(
                "pools: %r is not a valid model name; expected letters, digits and any of ._/:@+=~-" % (model,)
            )
        if not isinstance(rows, list) or not rows:
            raise Refused("pools: %s has no list of servers" % model)
        for row in rows:
            wrong = wrong_server(row)
            if wrong:
                raise Refused("pools: a server of %s %s" % (model, wrong))
        if not apis(rows):
            raise Refused("pools: the servers of %s have no API in common" % model)
    unknown = sorted(set(affinity) - set(pools) - {ALL})
    if unknown:
        raise Refused(
            "affinity: no host serves %s; the models are %s" % (", ".join(unknown), ", ".join(sorted(pools)) or "none")
        )


def wrong_server(row: Any) -> str:
    """What is wrong with a server of a pool; empty if nothing is."""
    if not isinstance(row, Mapping):
        return "is %r; expected a dictionary" % (row,)
    for part in ("host", "address", "unit"):
        if not PLACE.match(str(row.get(part) or "")):
            return "has the %s %r; expected a name" % (part, row.get(part))
    for part, expected in (("engine", ENGINES), ("api", tuple(APIS))):
        if row.get(part) not in expected:
            return "has the %s %r; expected one of %s" % (part, row.get(part), ", ".join(expected))
    for part, least in (("port", 1), ("max_concurrent", 0)):
        number = row.get(part)
        if not re.match(r"[0-9]{1,5}\Z", str(0 if number is None else number)) or int(number or 0) < least:
            return "has the %s %r; expected a number of at least %d" % (part, number, least)
    return ""


# --- a key


def _name(key: Mapping[str, Any]) -> str:
    name = str(key["name"])
    if not NAME.match(name):
        raise Refused("keys: %r is not a name; expected at most 64 letters, digits and any of _.@-" % name)
    return name


def _digest(key: Mapping[str, Any]) -> str:
    secret, digest = key.get("key"), key.get("sha256")
    if bool(secret) == bool(digest):
        raise Refused(
            "keys: %s has %s; expected one of key and sha256" % (key["name"], "both" if secret else "neither")
        )
    if secret:
        if len(secret) < SHORTEST or not re.match(r"[\x21-\x7e]+\Z", secret):
            raise Refused(
                "keys: the key of %s has less than %d characters, or some outside visible ASCII; expected for example "
                "the output of openssl rand -hex 32" % (key["name"], SHORTEST)
            )
        return hashlib.sha256(secret.encode()).hexdigest()
    if not DIGEST.match(str(digest)):
        raise Refused("keys: sha256 of %s is not 64 lower-case hexadecimal digits" % key["name"])
    return str(digest)


def _expires(key: Mapping[str, Any]) -> int:
    """Seconds since 1970; 0 for never. A date is its first second in UTC."""
    given = key.get("expires")
    if not given:
        return 0
    for form in (
        "%Y-%m-%d",
        "%Y-%m-%dT%H:%M:%SZ",
        "%Y-%m-%d %H:%M:%S+00:00",
    ):  # the last is how YAML's reader prints it
        try:
            read = datetime.datetime.strptime(str(given), form)
        except ValueError:
            continue
        return int(read.replace(tzinfo=datetime.timezone.utc).timestamp())
    raise Refused(
        "keys: expires of %s is %r; expected a time such as 2027-01-31 or 2027-01-31T12:00:00Z" % (key["name"], given)
    )


def _limit(key: Mapping[str, Any], option: str) -> int:
    value = key.get(option) or 0
    if value < 0:
        raise Refused("keys: %s of %s is %d; expected 1 or more, or nothing" % (option, key["name"], value))
    return int(value)


def _models(key: Mapping[str, Any], pools: Pools) -> List[str]:
    wanted = key.get("pools") or []
    if ALL in wanted:
        return sorted(pools)
    unknown = sorted(set(wanted) - set(pools))
    if unknown:
        raise Refused(
            "keys: %s may use %s, which no host serves; the pools are %s"
            % (key["name"], ", ".join(unknown), ", ".join(sorted(pools)) or "none")
        )
    return sorted(set(wanted))


def _cannot_leave(model: str, models: Iterable[str], pools: Pools) -> bool:
    """Whether no server of a pool serves a model that the key may not use.

    Of a body that is longer than the buffer only the beginning is read; its end might name another model.
    """
    units = {(row["host"], row["unit"]) for row in pools[model]}
    others = set(pools) - set(models)
    return not any((row["host"], row["unit"]) in units for other in others for row in pools[other])


def _list(holder: str, found: Any) -> str:
    """What the holder of a key sees of the models, as JSON."""
    text = json.dumps(found, separators=(",", ":"))
    if len("%s %s\n" % (holder, text)) >= LONGEST:
        raise Refused(
            "keys: the list of the models of %s is %d bytes long, of which HAProxy would read %d; expected fewer pools"
            % (holder, len(text), LONGEST)
        )
    return text


def _openai(models: Iterable[str]) -> Dict[str, Any]:
    data = [{"id": model, "object": "model", "created": 0, "owned_by": "gpufleet"} for model in models]
    return {"object": "list", "data": data}


def _ollama(models: Iterable[str]) -> Dict[str, Any]:
    return {"models": [{"name": model, "model": model} for model in models]}
