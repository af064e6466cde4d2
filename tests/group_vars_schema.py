# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A JSON schema of the roles' variables, so that editors complete and check group_vars; `make generate` writes it."""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List, Mapping, Tuple

Schema = Dict[str, Any]
Describe = Callable[[Mapping[str, Any]], Tuple[str, str]]
"""A row of argument specs → its type as the README has it, and its description."""
TEMPLATE = {"type": "string", "pattern": r"\{[{%]"}
"""What Ansible computes may stand for any value."""
OF_HOSTS = {
    "gateway_address": {
        "description": "Where gateways and Prometheus reach this host, if not at its ansible_host.",
        "type": "string",
    }
}
"""What the gateway asks every host's variables for, and no role has."""
TYPES: Dict[str, List[Schema]] = {
    "bool": [{"type": "boolean"}],
    "int": [{"type": "integer"}],
    "float": [{"type": "number"}],
    "str": [{"type": "string"}, {"type": "number"}],
    "path": [{"type": "string"}],
    "dict": [{"type": "object"}],
    "list": [{"type": "array"}],
}


def text(roles: Mapping[str, Mapping[str, Any]], describe: Describe) -> str:
    """The schema.

    :param roles: role to its variables, as in its argument specs.
    """
    variables = {name: _value(row, describe) for role in sorted(roles) for name, row in sorted(roles[role].items())}
    prefixes = "|".join(sorted(roles))
    found = {
        "title": "Variables of the roles of gpufleet.inference",
        "type": "object",
        "properties": {**variables, **OF_HOSTS},
        "patternProperties": {"^(?!(%s)_)" % prefixes: True},
        "additionalProperties": False,
    }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _value(row: Mapping[str, Any], describe: Describe) -> Schema:
    kind, description = describe(row)
    found: Schema = {"description": description}
    if "default" in row:
        found["default"] = row["default"]
    options = row.get("options")
    if kind == "raw":
        return found
    if kind.startswith("`"):
        allowed: List[Schema] = [{"enum": [word.strip("` ") for word in kind.split(",")]}]
    elif kind.startswith("list of "):
        allowed = [{"type": "array", "items": _items(kind[len("list of ") :], options, describe)}]
    else:
        allowed = TYPES[kind]
    return dict(found, anyOf=[*allowed, TEMPLATE])


def _items(kind: str, options: Any, describe: Describe) -> Schema:
    if not options:
        return {"anyOf": [*TYPES[kind], TEMPLATE]}
    required = [name for name, row in options.items() if row.get("required")]
    rows = {
        "type": "object",
        "properties": {name: _value(row, describe) for name, row in options.items()},
        "required": required,
        "additionalProperties": False,
    }
    return {"anyOf": [rows, TEMPLATE]}
