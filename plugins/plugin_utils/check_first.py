# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks on a host whether it is in its declared state, before a module is sent there.

Most of what a module costs a host that has nothing to do is the import of Ansible's own module code. Instead a program
(``module_utils/programs/state_check.py``) runs the same function of ``module_utils`` there in check mode, which reads
and writes nothing. It keeps the compiled code on the host for the next time; then only a digest is sent. Only a host
that does not answer "converged" is sent the module, which then does the work and reports what is wrong.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils.toolbox.text import one_line, printable
from .arguments import Label, problems
from .question import Answer, Call, Question, RemoteFunction
from .role import Role, labels, translated

OPT_OUT = "gpufleet_check_first"

_NO_SUDO = re.compile("^.*(?:not in the sudoers file|is not allowed to execute|may not run sudo).*$", re.MULTILINE)

display = Display()


class CheckFirstAction(ActionBase):
    """An action plugin that sends its module only where it has something to do.

    A subclass names the module and its function, and overrides the steps of :meth:`run` that differ.
    """

    TRANSFERS_FILES = False  # no folder is created on the host for an answer
    _supports_async = True

    MODULE = ""
    """Its full name."""
    FUNCTION: RemoteFunction

    files: Sequence[str] = ()
    """The files on the controller that the module may need on the host; set by :meth:`prepare`."""

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        given = dict(self._task.args)
        role = Role.of(variables)
        if role:
            for sentence in role.misspelled(variables):
                display.warning(one_line(sentence))
            refuse(list(role.mistyped(variables, self._templar.template)))

        def label(option: str) -> str:
            """What the user calls an option; only a message needs it, as it reads the role's tasks."""
            names = role.names(self.MODULE, str(self._task.get_path()).rpartition(":")[0]) if role else {}
            return labels(names, given)(option)

        try:
            found = self._found(given, variables, label)
        except WrongInput:
            raise
        except AnsibleActionFail as error:
            raise AnsibleActionFail(translated(str(error.message), self.FUNCTION.argument_spec, label)) from None
        if isinstance(found.get("msg"), str):
            said = _without_root(found) or translated(found["msg"], self.FUNCTION.argument_spec, label)
            if said != found["msg"]:
                found.pop("exception", None)  # since ansible-core 2.19 it is printed, and has the old message
            found["msg"] = said
        result.update(found)
        return result

    def _found(self, given: Dict[str, Any], variables: Mapping[str, Any], label: Label) -> Dict[str, Any]:
        """The result of the host, or of the module."""
        arguments = self.prepare(given, variables)
        if any(problems(self.FUNCTION.argument_spec, arguments)):
            refuse(list(problems(self.FUNCTION.argument_spec, arguments, label)))
        if self.files and self._task.async_val:
            raise AnsibleActionFail(
                "%s on the controller cannot be sent in the background: run the task without async, or copy it to the "
                "host first and set remote_src" % ", ".join(self.files)
            )
        found = self.check_on_host(arguments, variables) if self.checks_first(arguments, variables) else None
        if found is None:
            found = self.send(arguments, variables)
            needs = found.get("needs")
            if needs and self.files and not found.get("failed"):
                self._refuse_foreign(needs)
                found = self.send(dict(arguments, **self.provide(needs)), variables)
        return found

    def prepare(self, arguments: Dict[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        """The arguments of the module, made of those of the task."""
        return arguments

    def checks_first(self, arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> bool:
        """Whether the host can be checked without the module, and may be."""
        if self._task.async_val or self._task.delegate_to or not _accepts_input(self._connection):
            return False
        if _depends_on_host(arguments):
            return False
        return boolean(self._templar.template(variables.get(OPT_OUT, True)), strict=False)

    def check_on_host(self, arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
        """The module's result where the host is converged, and in check mode also where it is not.

        :returns: None when the module is to be sent.
        """
        validated = self.FUNCTION.validator.validate(dict(arguments))
        if validated.error_messages:
            return None  # the module reports it in the usual words
        answer = self.ask([(self.FUNCTION, validated.validated_parameters)], variables)[0]
        usable = answer.state == "converged" or (answer.state == "differs" and self._task.check_mode)
        if answer.result is None or not usable:
            said = "the module is sent, as the answer of the host is: %s" % self.reason(answer, self.secret(validated))
            display.vvv(said, host=variables.get("inventory_hostname"))
            return None
        return self.shown(validated, answer)

    def ask(self, calls: Sequence[Call], variables: Mapping[str, Any]) -> List[Answer]:
        """The host's answers, see :meth:`Question.ask`."""
        command = "%s %s -" % (self._compute_environment_string(), shlex.quote(self._python(variables)))
        question = Question(calls, writes=not self._task.check_mode)
        return question.ask(lambda program: self._low_level_execute_command(command.strip(), in_data=program))

    def shown(self, validated: Any, answer: Answer) -> Dict[str, Any]:
        """The module's result, without secrets."""
        result = dict(answer.result or {}, invocation={"module_args": validated.validated_parameters})
        return dict(remove_values(result, self.secret(validated)))

    def reason(self, answer: Answer, secret: Iterable[str]) -> str:
        """Why the module is needed, without secrets."""
        hidden = getattr(self._task, "no_log", False)
        return "%s; %s" % (answer.state, "" if hidden else printable(remove_values(answer.why, secret)))

    def secret(self, validated: Any) -> Set[str]:
        """The texts that no output may contain."""
        return {*validated._no_log_values, *self.secrets(validated.validated_parameters)}

    def secrets(self, arguments: Mapping[str, Any]) -> Iterable[str]:
        """The parts of arguments to mask in all output, where no whole argument is ``no_log``."""
        return ()

    def send(self, arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        """The result of the module itself."""
        return self._execute_module(
            module_name=self.MODULE, module_args=dict(arguments), task_vars=variables, wrap_async=self._task.async_val
        )

    def provide(self, needs: Sequence[str]) -> Dict[str, Any]:
        """Send the files that the module needs; the arguments that name them on the host."""
        raise AnsibleActionFail("%s asks for files, but its action plugin has none to send" % self.MODULE)

    def transfer(self, local: str, name: str) -> str:
        """Send one file to the task's folder on the host; its path there."""
        folder = self._connection._shell.tmpdir or self._make_tmp_path()
        remote = self._connection._shell.join_path(folder, name)
        self._transfer_file(local, remote)
        return remote

    def _refuse_foreign(self, needs: Any) -> None:
        """A host is sent files of the task and nothing else: it must not choose among those of the controller."""
        ours = {os.path.realpath(path) for path in self.files}
        for path in needs if isinstance(needs, list) else [needs]:
            if not isinstance(path, str) or (on_controller(path) and os.path.realpath(path) not in ours):
                raise AnsibleActionFail(
                    "the host asks for %s, which is not one of the files of this task (%s): nothing was sent; check "
                    "whether somebody else controls the host" % (one_line(str(path)), ", ".join(self.files))
                )

    def _python(self, variables: Mapping[str, Any]) -> str:
        """The host's Python: the one that is set, else the one that Ansible found, else the first on its path."""
        named = variables.get("ansible_python_interpreter") or C.config.get_config_value(
            "INTERPRETER_PYTHON", variables=dict(variables)
        )
        named = str(self._templar.template(named))
        if not named.startswith("auto"):
            return named
        return (variables.get("ansible_facts") or {}).get("discovered_interpreter_python") or "python3"


def _without_root(failed: Mapping[str, Any]) -> str:
    """Why no module ran, where sudo refused to run it; Ansible speaks of a result without JSON. Else empty."""
    said = _NO_SUDO.search(str(failed.get("module_stderr")))
    if not said:
        return ""
    return "%s Let this user become root by sudo, or set ansible_user to one that may." % one_line(said.group())


class WrongInput(AnsibleActionFail):
    """Its message has the names that the user knows."""


def refuse(wrong: Sequence[str]) -> None:
    """End the task with these sentences, if there are any."""
    if wrong:
        raise WrongInput(one_line("%s (nothing was changed)" % "; ".join(wrong), 1000))


def on_controller(path: str) -> bool:
    """Whether this is a path, and not a URL."""
    return "://" not in path


def _depends_on_host(arguments: Mapping[str, Any]) -> bool:
    """Whether a path may contain the host's own home or environment, which the controller cannot resolve."""
    text = json.dumps(arguments, default=str)
    return "$" in text or '"~' in text


def _accepts_input(connection: Any) -> bool:
    """Whether a program can be piped through the connection and its ``become``.

    ``machinectl`` would wait indefinitely for the end of its input. ``su`` works, although it does not declare it.
    Whether sudo wants a terminal is not known beforehand: then there is no answer, and the module is sent.
    """
    become = getattr(connection, "become", None)
    if become is None or not connection.has_pipelining:
        return bool(connection.has_pipelining)
    name = str(become.name).rpartition(".")[2]
    return name == "su" or bool(
        getattr(become, "pipelining", True) and not getattr(become, "require_tty", False) and name != "machinectl"
    )
