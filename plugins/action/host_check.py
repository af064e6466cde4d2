# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in one exchange all checks that roles would run on a host one by one."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ansible.errors import AnsibleError
from ansible.module_utils.common.validation import check_type_list
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import test_loader
from ansible.utils.display import Display

from ansible_collections.gpufleet.inference.plugins.action import (
    gateway_agent,
    gateway_service,
    gpu_facts,
    llama_server_service,
    model_source,
    monitoring_service,
    ollama_model,
    ollama_service,
    open_webui_service,
    python_environment,
    vllm_service,
)
from ansible_collections.gpufleet.inference.plugins.filter import (
    differing_answers,
    gpu_preparation,
    model_seeding,
    still_to_do,
    torchrun_verdict,
    vllm_instances,
)
from ansible_collections.gpufleet.inference.plugins.lookup import gateway_agent as gateway_agent_lookup
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import one_line
from ansible_collections.gpufleet.inference.plugins.plugin_utils import role_walk
from ansible_collections.gpufleet.inference.plugins.plugin_utils.arguments import problems
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction, refuse
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import Answer, Call
from ansible_collections.gpufleet.inference.plugins.plugin_utils.role import Role, labels, translated
from ansible_collections.gpufleet.inference.plugins.plugin_utils.role_walk import Asked, Undecided, Walk
from ansible_collections.gpufleet.inference.plugins.plugin_utils.run_summary import LONGEST
from ansible_collections.gpufleet.inference.plugins.plugin_utils.self_check import LOOK, SelfCheckAction

#: Full name of a module to its action plugin.
QUESTIONS = {
    plugin.ActionModule.MODULE: plugin.ActionModule
    for plugin in (
        *(gateway_agent, gateway_service, gpu_facts, llama_server_service, model_source, monitoring_service),
        *(ollama_model, ollama_service, open_webui_service, python_environment, vllm_service),
    )
}
KNOWN_ROLES = ("gateway", "gpu_host", "llama_server", "monitoring", "ollama", "open_webui", "vllm")
ARGUMENT_SPEC = {"roles": {"type": "list", "elements": "str", "choices": list(KNOWN_ROLES), "required": True}}
#: What the roles use on every host. Ansible forks a process for each host after this file is loaded, and that process
#: would compile them again, which takes a third of its CPU time.
LOADED = (
    *(differing_answers, gpu_preparation, model_seeding, still_to_do, torchrun_verdict, vllm_instances),
    gateway_agent_lookup,
)
if role_walk.POSSIBLE:
    for _name in KNOWN_ROLES:
        role_walk.load(_name)  # before Ansible forks, too
    role_walk.load("gpu_host", "self_check")
    test_loader.get("ansible.builtin.defined")

display = Display()


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.host_check"

    self_check_needed = True
    """False once the host has answered that it has no self check, where none is declared."""

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = dict(ActionBase.run(self, tmp, task_vars), changed=False)
        self.variables = task_vars or {}
        refuse(list(problems(ARGUMENT_SPEC, self._task.args)))
        roles = check_type_list(self._task.args["roles"])
        refuse([] if roles else ["roles is empty; expected one or more of %s" % ", ".join(KNOWN_ROLES)])
        try:
            walk = self._walked(roles, with_self_check=True)
            shares = any(self._value("%s_seeding" % name) and self._value("%s_models" % name) for name in roles)
        except (AnsibleError, Undecided) as error:
            # also of a host that does not answer: the roles report it, in their words
            why = "the roles are run: " + one_line(str(error))
            display.vvv(why, host=self.variables.get("inventory_hostname"))
            return dict(result, as_declared=False, self_check=self.self_check_needed, msg=why)
        return dict(
            result,
            as_declared=True,
            roles=roles,
            shares=shares,
            msg="as declared",
            lines=lines(walk.registered),
            registered=walk.registered,
            warnings=self.warnings,
            modules=walk.sources,
            ansible_facts=walk.facts,
            _ansible_verbose_override=True,  # `-v` does not print the facts
        )

    def asked_of(self, roles: Sequence[str], variables: Mapping[str, Any]) -> Tuple[List[Call], Set[str]]:
        """What the host is asked by these roles, and the texts that no output may contain.

        :raises Undecided: the host is not as declared, or that is not known.
        """
        self.variables = dict(variables)
        self._walked(roles)
        return self.calls, self.masked

    def _declared_self_check(self, names: Sequence[str]) -> Optional[Dict[str, Any]]:
        """The arguments of the task of the self check, if these are all roles of the host."""
        complete = set(KNOWN_ROLES).intersection(self.variables.get("group_names", ())) <= set(names)
        if not complete or "gpu_host" not in names:
            return None
        if not self.variables.get("gpu_host_self_check"):
            return {}  # as the default of the role has it; a walk takes 30 ms
        found: List[Asked] = []

        def note(asked: Sequence[Asked]) -> List[Dict[str, Any]]:
            found.extend(asked)
            return [{"changed": False}]

        walk = Walk(self.variables, self._templar, [SelfCheckAction.MODULE], note)
        walk.through([role_walk.load("gpu_host", "self_check")])
        return found[0].arguments

    def _walked(self, names: Sequence[str], with_self_check: bool = False) -> Walk:
        """The walk through the roles on a host that is as declared.

        :param with_self_check: whether it must also check itself as declared.
        :raises Undecided: it is not, or that is not known.
        """
        if not role_walk.POSSIBLE:
            raise Undecided("this needs ansible-core 2.19")
        if not self.checks_first({}, self.variables):
            raise Undecided("this host cannot be checked without modules, or gpufleet_check_first is false")
        self.calls: List[Call] = []
        self.masked: Set[str] = set()
        self.warnings: List[str] = []
        self.differs = ""  # why the self check is not as declared, by the last answers
        self.self_check = self._declared_self_check(names) if with_self_check else None
        walk = Walk(self.variables, self._templar, QUESTIONS, self._asked)
        walk.through([role_walk.load(name) for name in names])
        if self.differs:
            raise Undecided("the self check of the host is not as declared: %s" % self.differs)
        for name in names:
            role = Role(name, role_walk.ROLES / name)
            wrong = list(role.mistyped(self.variables, self._templar.template))
            if wrong:
                raise Undecided(wrong[0])
            for sentence in role.misspelled(self.variables):
                display.warning(one_line(sentence))
        return walk

    def _asked(self, asked: Sequence[Asked]) -> List[Dict[str, Any]]:
        questions, begun = [], len(self.calls)
        own = (self._task, self._connection, self._play_context, self._loader, self._templar, self._shared_loader_obj)
        for one in asked:
            plugin = QUESTIONS[one.module](*own)
            arguments = plugin.prepare(one.arguments, one.variables)
            validated = plugin.FUNCTION.validator.validate(arguments)
            wrong = [*problems(plugin.FUNCTION.argument_spec, arguments), *validated.error_messages]
            if wrong or not plugin.checks_first(arguments, self.variables):
                raise Undecided("%s cannot be asked without its module" % one.task)
            questions.append((plugin, validated))
            self.calls.append((plugin.FUNCTION, validated.validated_parameters))
            self.masked |= plugin.secret(validated)
        look = [] if self.self_check is None else [self._look(self.self_check)]
        answers = self.ask([*look, *self.calls[begun:]], self.variables)
        if look:
            self._note_self_check(answers[0])
        if answers[-1].state != "converged":
            raise Undecided("the host's answer is: %s" % self.reason(answers[-1], self.masked))
        results = [
            in_words_of_the_role(one, plugin, plugin.shown(validated, answer))
            for one, (plugin, validated), answer in zip(asked, questions, answers[len(look) :])
        ]
        # Ansible prints those of a task's own result alone
        said = [text for result in results for text in result.get("warnings", ())]
        self.warnings += [text for text in dict.fromkeys(said) if text not in self.warnings]
        return results

    def _note_self_check(self, answer: Answer) -> None:
        """Its answer comes first, so that it is also known of a host that differs in something else."""
        if answer.state == "converged":
            self.differs = one_line(str((answer.result or {}).get("reason")))
            self.self_check_needed = bool((self.self_check or {}).get("interval") or self.differs)

    def _look(self, arguments: Dict[str, Any]) -> Call:
        """Whether the host asks itself what it has been asked so far. What counts is the answer to the last one."""
        own = (self._task, self._connection, self._play_context, self._loader, self._templar, self._shared_loader_obj)
        plugin = SelfCheckAction(*own)
        plugin.calls, plugin.masked = self.calls, self.masked
        arguments = plugin.prepare(arguments, self.variables)
        wrong = list(problems(plugin.FUNCTION.argument_spec, arguments))
        if wrong:
            raise Undecided(wrong[0])
        return LOOK, plugin.FUNCTION.validator.validate(arguments).validated_parameters

    def _value(self, name: str) -> Any:
        return self._templar.template(self.variables.get(name))


def in_words_of_the_role(asked: Asked, plugin: CheckFirstAction, result: Dict[str, Any]) -> Dict[str, Any]:
    """A result whose message calls options what the user of the role calls them, as the role's own task has it."""

    def label(option: str) -> str:
        role = Role.of(asked.variables)
        return labels(role.names(asked.module) if role else {}, asked.arguments)(option)

    if isinstance(result.get("msg"), str):
        result["msg"] = translated(result["msg"], plugin.FUNCTION.argument_spec, label)
    return result


def lines(registered: Dict[str, Any]) -> List[str]:
    """What the services say of themselves, and of their models."""
    said: List[str] = []
    for name, result in registered.items():
        if "msg" in result and not result.get("skipped") and not name.startswith("gpu_host_"):
            line = one_line(result["msg"], LONGEST)
            if name.endswith("_models_result") and said:
                said[-1] += " · models: " + line
            else:
                said.append(line)
    return said
