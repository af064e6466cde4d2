# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Determines what a role would do on a host without running it: runs the checks that the role's tasks would run there.

It supports only the part of Ansible's language that the roles of this collection use. For anything else, and for a task
that would do more than check, it raises :class:`Undecided`, and the role itself is run.
"""

from __future__ import annotations

import re
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from ansible import constants
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLES = Path(__file__).resolve().parent.parent.parent / "roles"
#: What may stand in a task or block whose meaning is known here, next to the name of its module.
_KNOWN = {*("block", "become", "loop", "loop_control", "module_defaults", "name", "register", "tags", "vars", "when")}
#: Variables with another value here than in the play that runs the role, or with values that cannot be followed.
_ELSEWHERE = re.compile(r"ansible_play_\w+|play_hosts|hostvars|vars|varnames|role_names|ansible_role_names")
#: What answers of a host may bring, apart from what is registered.
_FACTS = {"ansible_facts", "gpu"}
_WORD = re.compile(r"[^\W\d]\w*")


#: Whether this Ansible has what a walk needs: since ansible-core 2.19.
POSSIBLE = hasattr(Templar, "evaluate_conditional")


class Undecided(Exception):
    """Whether the host is as declared shows only when the role runs; the text says why."""


class RoleTasks(NamedTuple):
    """The parts of a role that a walk needs."""

    name: str
    defaults: Mapping[str, Any]
    variables: Mapping[str, Any]
    tasks: Sequence[Mapping[str, Any]]

    @property
    def magic(self) -> Dict[str, str]:
        """The variables that Ansible sets in a role."""
        full = "gpufleet.inference." + self.name
        return {"ansible_role_name": full, "role_name": self.name, "role_path": str(ROLES / self.name)}


@lru_cache(maxsize=None)
def load(name: str, tasks: str = "main") -> RoleTasks:
    """A role of this collection, or some of its tasks. Read once, before Ansible forks."""

    def read(file: str) -> Any:
        path = ROLES / name / file
        return DataLoader().load_from_file(str(path), cache="none", trusted_as_template=True) if path.exists() else None

    if not re.fullmatch(r"\w+", name) or not (ROLES / name).is_dir():
        raise Undecided("there is no role %s" % name)
    defaults, variables = read("defaults/main.yml"), read("vars/main.yml")
    return RoleTasks(name, defaults or {}, variables or {}, read("tasks/%s.yml" % tasks))


class Asked(NamedTuple):
    """A question to the host: what one task, or one round of its loop, would ask it."""

    module: str
    arguments: Dict[str, Any]
    task: str
    """The name of the task."""
    register: Optional[str]
    item: Tuple[Any, ...]
    """The item of the loop, if there is one."""
    variables: Mapping[str, Any]
    """Those of the task, of its role and its loop among them."""


class _Scope(NamedTuple):
    """What a role, the blocks around a task, and the task itself say of it."""

    variables: Mapping[str, Any]
    when: Tuple[Any, ...] = ()
    module_defaults: Mapping[str, Mapping[str, Any]] = {}
    become: bool = False

    def within(self, task: Mapping[str, Any]) -> "_Scope":
        when = task.get("when", [])
        return _Scope(
            {**self.variables, **task.get("vars", {})},
            (*self.when, *(when if isinstance(when, list) else [when])),
            {**self.module_defaults, **task.get("module_defaults", {})},
            bool(task.get("become", self.become)),
        )


class Walk:
    """One host's way through roles.

    :param outside: the variables of the host, without those of roles.
    :param templar: Ansible's, of which a copy is used.
    :param modules: the modules that are questions.
    :param ask: asks the host; its results in the same order. It raises :class:`Undecided` unless all are converged.
    :ivar registered: what the roles would have registered.
    :ivar sources: by what is registered, the module that said it.
    :ivar facts: what they would have found of the host.
    """

    def __init__(
        self,
        outside: Mapping[str, Any],
        templar: Templar,
        modules: Collection[str],
        ask: Callable[[Sequence[Asked]], Sequence[Dict[str, Any]]],
    ) -> None:
        self.outside, self.modules, self.ask = outside, modules, ask
        self.templar = templar.copy_with_new_env()
        self.registered: Dict[str, Any] = {}
        self.sources: Dict[str, str] = {}
        self.facts: Dict[str, Any] = {}
        self._pending: List[Asked] = []
        self._then: List[Callable[[Iterator[Dict[str, Any]]], None]] = []  # in the order of the tasks
        self._unknown: Set[str] = set()

    def through(self, roles: Sequence[RoleTasks]) -> None:
        """Ask all questions of the roles, at once unless one depends on the answer to another.

        :raises Undecided: a role would do something else, or the host is not as declared.
        """
        for role in roles:
            self._refuse_overridden(role.variables)
            variables = {**role.defaults, **self.outside, **role.variables, **role.magic}
            self._tasks(role.tasks, _Scope(variables))
        self._flush()

    def _tasks(self, tasks: Sequence[Mapping[str, Any]], around: _Scope) -> None:
        for task in tasks:
            if "never" in task.get("tags", ()):
                continue
            self._refuse_overridden(task.get("vars", {}))
            scope = around.within(task)
            if "block" in task:
                self._refuse_unknown(task)
                self._tasks(task["block"], scope)
                continue
            if task.get("register") in self._unknown:
                self._flush()  # the later of two tasks counts
            if _module(task) in self.modules:
                self._question(task, scope)
            else:
                self._then.append(partial(self._look, task, scope))
            # until the next answers nobody knows what the task registers, nor the facts
            self._unknown |= _FACTS | ({task["register"]} if "register" in task else set())

    def _question(self, task: Mapping[str, Any], scope: _Scope) -> None:
        module = _module(task)
        self._refuse_unknown(task, module)
        if not scope.become:
            raise Undecided("%s runs without become" % task.get("name"))
        arguments = {**scope.module_defaults.get(module, {}), **(task[module] or {})}
        if self._used([arguments, task.get("loop"), *map(_Expression, scope.when)], scope) & self._unknown:
            self._flush()
        register = task.get("register")
        rounds = list(self._rounds(task, scope))
        self._then.append(partial(self._begin, register, bool(rounds), "loop" in task))
        for item, variables in rounds:
            given = self._arguments(arguments, variables)
            asked = Asked(module, given, str(task.get("name")), register, item, variables)
            self._pending.append(asked)
            self._then.append(partial(self._answered, asked))

    def _flush(self) -> None:
        """Ask what is to be asked; then go through the tasks up to here again, with what is known now."""
        pending, self._pending, then, self._then = self._pending, [], self._then, []
        results = iter(self.ask(pending) if pending else ())
        for step in then:
            step(results)
        self._unknown = set()

    def _begin(self, register: Optional[str], runs: bool, loops: bool, _results: Iterator[Dict[str, Any]]) -> None:
        if register:
            self.registered[register] = {"changed": False, **({} if runs else {"skipped": True})}
            if loops:
                self.registered[register]["results"] = []

    def _answered(self, asked: Asked, results: Iterator[Dict[str, Any]]) -> None:
        result = next(results)
        self.facts.update(result.get("ansible_facts", {}))
        if not asked.register:
            return
        self.sources[asked.register] = asked.module
        if asked.item:
            self.registered[asked.register]["results"].append({**result, "item": asked.item[0]})
        else:
            self.registered[asked.register] = result

    def _look(self, task: Mapping[str, Any], scope: _Scope, _results: Iterator[Dict[str, Any]]) -> None:
        """A task that is not a check must have nothing to do."""
        self._used([task.get("loop"), *map(_Expression, scope.when)], scope)
        if any(True for _round in self._rounds(task, scope)):
            raise Undecided("the task %s has something to do" % task.get("name"))
        if "register" in task:
            self.registered[task["register"]] = {"changed": False, "skipped": True}

    def _rounds(self, task: Mapping[str, Any], scope: _Scope) -> Iterator[Tuple[Tuple[Any, ...], Dict[str, Any]]]:
        """The rounds in which the task would run: the item, if it loops, and the variables."""
        variables = {**scope.variables, **self.registered}
        known = variables.get("ansible_facts", {})
        if constants.config.get_config_value("INJECT_FACTS_AS_VARS"):  # a variable of the play goes before a fact
            variables.update((name, self.facts[name]) for name in self.facts if variables.get(name) == known.get(name))
        variables["ansible_facts"] = {**known, **self.facts}
        rounds: List[Tuple[Any, ...]] = [()]
        if "loop" in task:
            items = self._resolved(task["loop"], variables)
            if not isinstance(items, list):
                raise Undecided("the loop of %s is not a list" % task.get("name"))
            rounds = [(item,) for item in items]
        name = task.get("loop_control", {}).get("loop_var", "item")
        for item in rounds:
            own = {**variables, name: item[0]} if item else variables
            self.templar.available_variables = own
            if all(self.templar.evaluate_conditional(one) for one in scope.when):
                yield item, own
            elif item and _module(task) in self.modules:
                raise Undecided("%s leaves out %s" % (task.get("name"), item[0]))

    def _arguments(self, arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        """The arguments of a task. Most name a variable that is no template: there is nothing to compile for those."""
        found, others = {}, {}
        for option, value in arguments.items():
            named = _NAMED.fullmatch(value) if isinstance(value, str) else None
            if named and named["name"] in variables and _is_plain(variables[named["name"]]):
                found[option] = variables[named["name"]]
            elif not named or named["name"] in variables or not named["omitted"]:
                others[option] = value
        return {**found, **self._resolved(others, variables)}

    def _resolved(self, value: Any, variables: Mapping[str, Any]) -> Any:
        self.templar.available_variables = dict(variables)
        return self.templar.template(value)

    @staticmethod
    def _used(values: Sequence[Any], scope: _Scope) -> Set[str]:
        """The names in expressions, and in the variables that these use."""
        found: Set[str] = set()
        waiting = list(values)
        while waiting:
            for word in _words(waiting.pop()):
                if word not in found:
                    found.add(word)
                    if _ELSEWHERE.fullmatch(word):
                        raise Undecided("%s is known only when the role runs" % word)
                    if word not in _FACTS and word not in ("groups", "item"):
                        waiting.append(scope.variables.get(word))
        return found

    def _refuse_overridden(self, names: Mapping[str, Any]) -> None:
        for name in names:
            if name in self.outside:
                raise Undecided("%s, a variable of the role, is set outside of it" % name)

    @staticmethod
    def _refuse_unknown(task: Mapping[str, Any], *more: str) -> None:
        odd = set(task) - _KNOWN - set(more)
        if odd:
            raise Undecided("%s has %s" % (task.get("name"), ", ".join(sorted(odd))))


#: An argument that is a variable, perhaps left out without it.
_NAMED = re.compile(r"\{\{ (?P<name>[^\W\d]\w*) (?P<omitted>\| default\(omit\) )?\}\}")


def _is_plain(value: Any) -> bool:
    """Whether Ansible would take the value as it is: no template, and nothing encrypted."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value and "{#" not in value
    if isinstance(value, Mapping):
        return all(_is_plain(one) for pair in value.items() for one in pair)
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float))


class _Expression(str):
    """A condition: an expression without braces."""


def _words(value: Any) -> Iterator[str]:
    """The names in the templates of a value; attributes and words in quotes are among them, which does no harm."""
    if isinstance(value, str):
        if isinstance(value, _Expression) or "{{" in value or "{%" in value:
            yield from _WORD.findall(value)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _words(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _words(one)


def _module(task: Mapping[str, Any]) -> str:
    """The full name of its module: the one key with dots."""
    return next((key for key in task if "." in key), "")
