# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables of a role of this collection: misspelled names, types, and their names in messages.

A module's message names its options. Users of a role do not know these, so they are replaced by the role's variables.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Mapping, Optional, Tuple

import yaml

from .arguments import Label, nearest, wrong_type

OURS = "gpufleet.inference."
SHARED = ("gpufleet_prove", "gpufleet_new_answers")
"""Variables of all roles of engines."""
_NEAR = 0.85  # of 1, as difflib counts; visible_device and keepalive have 0.97 and 0.95

#: A default of a role as `make generate` writes it, and the kind of value that it stands for. A text can be anything.
_DEFAULT = re.compile(r"^(\w+): (?:(true|false)$|(-?[0-9]+(?:\.[0-9]+)?)$|(\[)|(\{))", re.MULTILINE)
_KINDS = ("bool", "float", "list", "dict")


#: Ten times as fast where libyaml is installed: a message is translated for each host.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Role:
    """The role of this collection to which a task belongs.

    :param name: its own name, such as ``ollama``.
    :param folder: where it is.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.prefix = name + "_"

    @classmethod
    def of(cls, task_vars: Mapping[str, Any]) -> Optional["Role"]:
        """The role of this collection that runs the task with these variables, or None if there is none."""
        name = str(task_vars.get("ansible_role_name") or "")
        return cls(name[len(OURS) :], Path(str(task_vars.get("role_path")))) if name.startswith(OURS) else None

    def misspelled(self, task_vars: Mapping[str, Any]) -> Iterator[str]:
        """A sentence for each variable that seems to be a misspelled one of the role; Ansible ignores it silently."""
        given = [variable for variable in task_vars if variable.startswith(self.prefix)]
        known = self.variables() if given else ()
        for variable in sorted(given):
            near = nearest(variable[len(self.prefix) :], known, _NEAR)
            if near and variable[len(self.prefix) :] not in known:
                yield "the role %s%s has no variable %s, so its value has no effect; did you mean %s%s?" % (
                    *(OURS, self.name, variable, self.prefix),
                    near,
                )

    def mistyped(self, task_vars: Mapping[str, Any], template: Callable[[Any], Any]) -> Iterator[str]:
        """A sentence for each variable that is of another kind than its default, which the role relies on.

        :param template: resolves the value of a variable.
        """
        for name, *shapes in _DEFAULT.findall(self._read("defaults/main.yml")):
            kind = _KINDS[[bool(shape) for shape in shapes].index(True)]
            value = task_vars.get(name)
            if isinstance(value, str):
                value = template(value)
            sentence = None if value is None else wrong_type(kind, value, name)
            if sentence:
                yield sentence

    def variables(self) -> Collection[str]:
        """What follows the prefix in the names of the variables; the file is not parsed, as each task reads it."""
        names = re.findall(r"^ +%s(\w+):" % re.escape(self.prefix), self._read("meta/argument_specs.yml"), re.MULTILINE)
        return set(names)

    def names(self, module: str, file: str = "") -> Dict[str, str]:
        """What the role's users call the options of a module: by option, the variable that a task passes to it.

        :param file: the path of the task file that counts more than the others.
        """
        known = {*SHARED, *(self.prefix + name for name in self.variables())}
        found: Dict[str, str] = {}
        for path in sorted(self.folder.glob("tasks/*.yml"), key=lambda path: (str(path) != file, path)):
            for arguments, task in _calls(yaml.load(path.read_text(encoding="utf-8"), _LOADER), module):
                for option, template in arguments.items():
                    name = _variable(str(template), known, _variable(str(task.get("loop")), known))
                    if name:
                        found.setdefault(option, name)
        return found

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except OSError:
            return ""


def labels(names: Mapping[str, str], arguments: Mapping[str, Any]) -> Label:
    """What a user calls an option: the variable, or the key of the instance that sets it.

    :param names: see :meth:`Role.names`; empty outside of a role.
    """
    instances = arguments.get("instances")
    listed = [one for one in instances if isinstance(one, dict)] if isinstance(instances, list) else []

    def label(option: str) -> str:
        setting = [one for one in listed if one.get(option) is not None]
        if "instances" in names and setting and option not in ("name", "instances"):
            which = setting[0].get("name", "") if len(setting) == 1 else ""
            return "%s[%s].%s" % (names["instances"], which, option)
        return names.get(option, option)

    return label


def translated(message: str, options: Collection[str], label: Label) -> str:
    """A message of a module with its options renamed to what the user sets.

    A name with an underscore is an option wherever it stands. One that is also a word of English is one where our
    messages name it: before a colon at their beginning, before a value, and in parentheses.
    """
    there = [option for option in options if option in message]  # mostly none; a pattern of all takes 5 ms to compile
    words = "|".join(sorted(map(re.escape, there), key=len, reverse=True))
    if not words:
        return message
    pattern = (
        r"(?<![\w./=\[-])(?P<any>(?=\w*_)(?:{0}))(?![\w/=-])"
        r"|(?P<before>^|; |\.service: )(?P<first>{0})(?=:|\.\w|\[| \(| is | requires )"
        r"|\b(?P<value>{0})(?=: (?:true|false)\b)"
        r"|(?<=\()(?P<only>{0})(?=\))"
    ).format(words)

    def called(found: "re.Match[str]") -> str:
        option = found["any"] or found["first"] or found["value"] or found["only"]
        return (found["before"] or "") + label(option)

    return re.sub(pattern, called, message)


def _calls(node: Any, module: str) -> Iterator[Tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each dictionary of options for a module in tasks or their defaults, with the task around it."""
    children: List[Any] = []
    if isinstance(node, dict):
        if isinstance(node.get(module), dict):
            yield node[module], node
        children = list(node.values())
    elif isinstance(node, list):
        children = node
    for child in children:
        yield from _calls(child, module)


def _variable(template: str, known: Collection[str], loop: str = "") -> str:
    """The first known variable of a template, or the key of an item of the variable over which its task loops."""
    item = re.match(r"\{\{\s*item\.(?:get\(')?(\w+)", template)
    if item and loop:
        return "%s[].%s" % (loop, item.group(1))
    return next((word for word in re.findall(r"\w+", template) if word in known), "")
