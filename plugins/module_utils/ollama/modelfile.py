# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Modelfile, and the body of ``POST /api/create`` that means the same: Ollama's server reads no Modelfile. Pure."""

from __future__ import annotations

import re
from typing import Any, Dict, List, NamedTuple, Tuple

from ..toolbox.errors import Refused

_TEXTS = {
    "SYSTEM": "system",
    "TEMPLATE": "template",
    "RENDERER": "renderer",
    "PARSER": "parser",
    "REQUIRES": "requires",
}
_ROLES = ("system", "user", "assistant")


class Modelfile(NamedTuple):
    source: str
    """What FROM names: the absolute path of a GGUF file, or a model of the store."""
    body: Dict[str, Any]
    """Of the request, without ``model``, ``from`` and ``files``."""

    @property
    def from_file(self) -> bool:
        return self.source.startswith("/")


def parse(text: str) -> Modelfile:
    """Read a Modelfile.

    :raises Refused: an instruction that is not known, or that cannot be carried out from here.
    """
    source = ""
    body = {}  # type: Dict[str, Any]
    for number, word, value in _instructions(text):
        if word == "FROM":
            if source:
                raise Refused("line %d: a second FROM; expected one" % number)
            source = value
        elif word == "PARAMETER":
            name, _space, written = value.partition(" ")
            if not written.strip():
                raise Refused("line %d: PARAMETER %s has no value" % (number, name))
            _add_parameter(body.setdefault("parameters", {}), name.lower(), _unquoted(written.strip()))
        elif word == "LICENSE":
            body.setdefault("license", []).append(value)
        elif word == "MESSAGE":
            role, _space, content = value.partition(" ")
            if role not in _ROLES:
                raise Refused("line %d: MESSAGE %s; expected one of %s" % (number, role, ", ".join(_ROLES)))
            message = {"role": role, "content": _unquoted(content.strip())}
            body.setdefault("messages", []).append(message)
        elif word in _TEXTS:
            body[_TEXTS[word]] = value
        else:
            raise Refused(
                "line %d: %s is not supported; expected FROM, PARAMETER, LICENSE, MESSAGE, %s"
                % (number, word, ", ".join(sorted(_TEXTS)))
            )
    if not source:
        raise Refused("there is no FROM; expected the absolute path of a GGUF file, or a model of the store")
    if source.startswith((".", "~")) or source.endswith(".gguf") and not source.startswith("/"):
        raise Refused("FROM %s: expected an absolute path on the host, or a model of the store" % source)
    return Modelfile(source, body)


def _instructions(text: str) -> List[Tuple[int, str, str]]:
    """(line, instruction in capitals, value) of each; a value in triple quotes may have many lines."""
    found = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at].strip()
        at += 1
        if not line or line.startswith("#"):
            continue
        word, _space, value = line.partition(" ")
        value = value.strip()
        opened = re.match(r'((?:system|user|assistant)\s+)?"""', value)
        if opened and '"""' not in value[opened.end() :]:
            collected = [value]
            while at < len(lines) and '"""' not in lines[at]:
                collected.append(lines[at])
                at += 1
            if at == len(lines):
                raise Refused('line %d: """ is not closed' % number)
            collected.append(lines[at].rstrip())
            at += 1
            value = "\n".join(collected)
        found.append((number, word.upper(), value if word.upper() == "MESSAGE" else _unquoted(value)))
    return found


def _unquoted(value: str) -> str:
    for quote in ('"""', '"'):
        if len(value) >= 2 * len(quote) and value.startswith(quote) and value.endswith(quote):
            return value[len(quote) : -len(quote)]
    return value


def _add_parameter(parameters: Dict[str, Any], name: str, written: str) -> None:
    """``stop`` may be there several times; numbers and truth values are sent as such."""
    if name == "stop":
        parameters.setdefault("stop", []).append(written)
    elif re.match(r"-?[0-9]+\Z", written):
        parameters[name] = int(written)
    elif re.match(r"-?[0-9]*\.[0-9]+\Z", written):
        parameters[name] = float(written)
    elif written.lower() in ("true", "false"):
        parameters[name] = written.lower() == "true"
    else:
        parameters[name] = written
