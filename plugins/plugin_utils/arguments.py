# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments that their specification does not allow, each in one sentence. Pure.

Ansible's own sentences name no variable, list all options of a module, and print the whole specification of a role.
"""

from __future__ import annotations

import difflib
from typing import Any, Callable, Collection, Dict, Iterator, Mapping, Optional

from ansible.module_utils.common.validation import check_type_dict
from ansible.module_utils.parsing.convert_bool import BOOLEANS_FALSE, BOOLEANS_TRUE, boolean

EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "list": "a list",
    "dict": "a dictionary",
    "str": "a text",
    "path": "a path",
}
_LONGEST = 60
Spec = Mapping[str, Mapping[str, Any]]
Label = Callable[[str], str]


def problems(spec: Spec, given: Mapping[str, Any], label: Label = str, place: str = "") -> Iterator[str]:
    """A sentence for each argument that is not allowed.

    :param spec: as ``AnsibleModule`` takes it.
    :param label: what the user calls an option of the module.
    :param place: where these arguments stand, for suboptions; with it, ``label`` is not asked.
    """

    def named(option: str) -> str:
        return "%s.%s" % (place, option) if place else label(option)

    for option in given:
        if option not in spec and not option.startswith("_"):
            yield "%s is not an option; %s" % (named(option), meant(option, spec))
    for option, row in spec.items():
        value = given.get(option)
        if value is not None:
            yield from _wrong(row, value, named(option))
        elif row.get("required"):
            yield "%s is missing" % named(option)


def wrong_type(kind: str, value: Any, name: str, secret: bool = False) -> Optional[str]:
    """A sentence where a value is not of a kind, such as ``bool``; a text that can be read as one is."""
    secret = secret or kind == "dict"  # of variables, whose values may be secrets
    return None if _is(kind, value) else "%s is %s; expected %s" % (name, found(value, secret), EXPECTED[kind])


def meant(name: str, known: Collection[str]) -> str:
    """A hint for an unknown name: the most similar known one, or else the list of them."""
    near = nearest(name, known, 0.7)
    return "did you mean %s?" % near if near else "known are %s" % ", ".join(sorted(known))


def nearest(name: str, known: Collection[str], cutoff: float) -> str:
    """The known name that is nearly this one, or of which it is an abbreviation (``env``); empty without one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    longer = [one for one in known if len(name) > 2 and one.startswith(name) and "_" not in one[len(name) :]]
    return (near or longer or [""])[0]


def found(value: Any, secret: bool = False) -> str:
    """A value in a message: a short one as it is, a large one or a secret as its kind."""
    if isinstance(value, bool):
        return "true" if value else "false"
    for kind, words in ((dict, "a dictionary"), ((list, tuple), "a list"), (str, "a text")):
        if isinstance(value, kind) and (secret or kind is not str or len(value) > _LONGEST):
            return words
    return "a number" if secret else repr(value)


def _wrong(row: Mapping[str, Any], value: Any, name: str) -> Iterator[str]:
    kind, secret = row.get("type", "str"), bool(row.get("no_log"))
    elements, choices = row.get("elements"), row.get("choices")
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if kind == "list" and elements == "dict" and not isinstance(value, (list, tuple)):
        yield "%s is %s; expected a list of dictionaries" % (name, found(value, secret))
    elif choices and kind != "list":
        if not (_is(kind, value) and _is_choice(value, choices)):
            yield "%s is %s; expected one of %s" % (name, found(value, secret), ", ".join(map(str, choices)))
    elif not _is(kind, value):
        yield wrong_type(kind, value, name, secret) or ""
    elif kind == "list":
        for number, item in enumerate(items):
            place = "%s[%s]" % (name, _called(item) or number)
            yield from _wrong({**row, "type": elements or "raw", "elements": None}, item, place)
    elif kind == "dict" and row.get("options") and isinstance(value, dict):
        yield from problems(row["options"], value, place=name)


def _called(item: Any) -> str:
    name = item.get("name") if isinstance(item, dict) else None
    return name if isinstance(name, str) and len(name) <= _LONGEST else ""


def _is(kind: str, value: Any) -> bool:
    return _READS[kind](value) if kind in _READS else True


def _reads(convert: Callable[[Any], Any]) -> Callable[[Any], bool]:
    def reads(value: Any) -> bool:
        try:
            convert(value)
        except (TypeError, ValueError):
            return False
        return True

    return reads


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _is_choice(value: Any, choices: Collection[Any]) -> bool:
    """YAML reads a plain ``on`` as true: the choice that means the same is the one."""
    if isinstance(value, bool):
        return any(choice in (BOOLEANS_TRUE if value else BOOLEANS_FALSE) for choice in choices)
    return str(value) in map(str, choices)


_READS: Dict[str, Callable[[Any], bool]] = {
    "bool": _reads(boolean),
    "int": _reads(_whole),
    "float": _reads(_number),
    "list": lambda value: not isinstance(value, dict),
    "dict": _reads(check_type_dict),
    "str": lambda value: not isinstance(value, (dict, list, tuple)),
    "path": lambda value: isinstance(value, str),
}
