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

import base64
import hashlib
import json
import os
import re
import secrets
import shlex
import zlib
from pathlib import Path
from typing import Any, Dict, Iterable, Mapping, NamedTuple, Optional, Sequence

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils.programs import kept_check, state_check
from ..module_utils.toolbox.source import source_of
from ..module_utils.toolbox.text import one_line, printable
from .arguments import Label, problems
from .role import Role, labels, translated

ROOM = "ansible_collections.gpufleet.inference.plugins.module_utils"
FOLDER = Path(__file__).resolve().parent.parent / "module_utils"
#: Stands before the answer, with a word that no start file of a shell can know: it may print something, too.
MARK = "gpufleet-answer-%s "
#: Characters of an answer, more than any host has to say.
LONGEST = 1 << 24
#: Characters of the reason that is shown.
REASON = 2000
WARNINGS = 100
OPT_OUT = "gpufleet_check_first"
#: Where a host keeps compiled code, in memory; only root can enter it.
KEPT = "/run/gpufleet-code"

#: An import from there, wherever it stands: all of them are relative. To parse all sources takes 40 times as long, at
#: each start of Ansible.
_IMPORT = re.compile(r"^ *from (\.+)([\w.]*) import (\([^)]*\)|[^\n]+)", re.MULTILINE)

_NO_SUDO = re.compile("^.*(?:not in the sudoers file|is not allowed to execute|may not run sudo).*$", re.MULTILINE)

#: What a result of ours never has: Ansible itself acts on it.
_RESERVED_KEYS = {
    *("add_group", "add_host", "ansible_job_id", "attempts", "deprecations", "exception", "failed", "include"),
    *("results", "skipped", "unreachable"),
}

display = Display()


class RemoteFunction:
    """A function ``(params, check_mode, warn) -> result`` of ``module_utils``, with every source that it may import.

    Created when an action plugin is loaded, which Ansible does once and then forks: no task reads the files again.

    :param module: below ``module_utils``, such as ``ollama.service``.
    :param function: its name there.
    :param argument_spec: the module's; it is applied on the controller.
    """

    def __init__(self, module: str, function: str, argument_spec: Mapping[str, Any]) -> None:
        self.name = module
        self.call = ["%s.%s" % (ROOM, module), function]
        self.argument_spec = dict(argument_spec)
        self.validator = ArgumentSpecValidator(self.argument_spec)
        self.sources = sources(self.call[0])
        text = json.dumps([source_of(state_check), self.sources])
        self.key = hashlib.sha256(text.encode()).hexdigest()

    def short_script(self, params: Mapping[str, Any], writes: bool, mark: str = MARK) -> bytes:
        """The program that calls it with these parameters, where a host has kept the sources.

        :param writes: whether the host may keep what it compiles.
        """
        call = (KEPT, self.name, self.key, writes, json.dumps([*self.call, params]), mark)
        return ("%s\n\nmain%r\n" % (source_of(kept_check), call)).encode()

    def script(self, params: Mapping[str, Any], writes: bool = False, mark: str = MARK) -> bytes:
        """The same, with the sources; it needs Python 3.8 and its standard library."""
        program = source_of(state_check)
        packed = zlib.compress(json.dumps([program, self.sources, *self.call, params]).encode(), 4)
        kept = (KEPT, self.name, self.key) if writes else None
        return ("%s\n\nunpack%r\n" % (program, (kept, base64.b64encode(packed).decode(), mark))).encode()


def sources(module: str) -> Dict[str, str]:
    """The sources of a module below ``module_utils`` and of all that it imports there, by full name."""
    found: Dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = FOLDER.joinpath(*name[len(ROOM) + 1 :].split(".")).with_suffix(".py")
        if name in found or not path.is_file():  # a folder, or a name within a module
            continue
        found[name] = path.read_text(encoding="utf-8")
        for dots, below, names in _IMPORT.findall(found[name]):
            place = ".".join([*name.split(".")[: -len(dots)], *below.split(".")]).rstrip(".")
            waiting += [place, *("%s.%s" % (place, word) for word in re.findall(r"\w+", names))]
    return found


class Answer(NamedTuple):
    """What a host says of itself."""

    state: str
    """``converged``, ``differs``, ``refused``, ``failed``, ``lacks`` (the sources), or ``silent``: no usable answer."""
    why: str = ""
    result: Optional[Dict[str, Any]] = None
    """The module's result, where the host is converged, and where it is known what would change."""


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
        if found.get("failed") and isinstance(found.get("msg"), str):
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
        params = validated.validated_parameters
        answer = self._ask(params, variables)
        secret = {*validated._no_log_values, *self.secrets(params)}
        usable = answer.state == "converged" or (answer.state == "differs" and self._task.check_mode)
        if answer.result is None or not usable:
            why = "" if getattr(self._task, "no_log", False) else printable(remove_values(answer.why, secret))
            said = "the module is sent, as the answer of the host is: %s; %s" % (answer.state, why)
            display.vvv(said, host=variables.get("inventory_hostname"))
            return None
        return remove_values(dict(answer.result, invocation={"module_args": params}), secret)

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

    def _ask(self, params: Mapping[str, Any], variables: Mapping[str, Any]) -> Answer:
        command = "%s %s -" % (self._compute_environment_string(), shlex.quote(self._python(variables)))
        writes = not self._task.check_mode
        for script in (self.FUNCTION.short_script, self.FUNCTION.script):
            mark = MARK % secrets.token_hex(8)
            said = self._low_level_execute_command(command.strip(), in_data=script(params, writes, mark))
            answer = _answer(said, mark)
            if answer.state != "lacks":
                break
        return answer

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


def _answer(said: Mapping[str, Any], mark: str) -> Answer:
    """What the host says of itself, as far as a module might say it."""
    for line in reversed((said.get("stdout") or "").splitlines()):
        if line.startswith(mark):
            if len(line) > LONGEST:
                return Answer("silent", "its answer is too long")
            try:
                return _believed(json.loads(line[len(mark) :]))
            except (ValueError, RecursionError):
                return Answer("silent", "its answer is not JSON")
    return Answer("silent", (said.get("stderr") or "").strip()[-REASON:])


def _believed(answer: Any) -> Answer:
    """An answer of the right form, without what only the controller may say."""
    odd = Answer("silent", "its answer has another form")
    if not isinstance(answer, dict) or set(answer) != {"state", "why", "result"}:
        return odd
    state, why, result = answer["state"], answer["why"], answer["result"]
    if state not in ("converged", "differs", "refused", "failed", "lacks") or not isinstance(why, str):
        return odd
    if result is None and state != "converged":
        return Answer(state, why[-REASON:])
    believed = _believed_result(result)
    if believed is None or state != ("differs" if believed["changed"] else "converged"):
        return odd
    return Answer(state, why[-REASON:], believed)


def _believed_result(result: Any) -> Optional[Dict[str, Any]]:
    """A result without what only the controller may say, as Ansible does it with a module's; None for an odd one."""
    if not isinstance(result, dict) or not isinstance(result.get("changed"), bool):
        return None
    facts, warnings = result.get("ansible_facts", {}), result.pop("warnings", [])
    if not isinstance(facts, dict) or not isinstance(warnings, list) or _RESERVED_KEYS & set(result):
        return None
    for keys in (result, facts):
        for key in [key for key in keys if key.startswith("_ansible_") or "discovered_interpreter_" in key]:
            del keys[key]
    if warnings:
        result["warnings"] = [printable(text) for text in warnings[:WARNINGS] if isinstance(text, str)]
    return result
