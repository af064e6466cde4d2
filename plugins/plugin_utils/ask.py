# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a host whether it is as declared, by a bare script, before a module is sent there.

What a module costs a host that is already as declared is, for the most part, the import of Ansible's own module code.
The bare script runs the same function of ``module_utils`` in check mode, which reads and writes nothing. Only a host
that answers otherwise than "as declared" is sent the module, which then does the work and tells what is wrong.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import shlex
import zlib
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from ansible import constants as C
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import one_line, printable
from ansible_collections.gpufleet.inference.plugins.plugin_utils.spelling import misspelt

ROOM = "ansible_collections.gpufleet.inference.plugins.module_utils"
FOLDER = Path(__file__).resolve().parent.parent / "module_utils"
#: Stands before the answer, with a word that no start file of a shell can know: it may print something, too.
MARK = "gpufleet-answer-%s "
#: Characters of an answer, more than any host has to say.
LONGEST = 1 << 24
WARNINGS = 100

# The first line is what Ansible's own wrapper of modules does, so that both see the same packages (a pynvml of root's
# own included, which -I would hide), and none that lies where the connection happens to start.
SCRIPT = """\
import sys; sys.path[:] = [path for path in sys.path if path not in ("", ".")]
import base64, json, zlib
from importlib.machinery import ModuleSpec
sources, room, work, function = json.loads(zlib.decompress(base64.b64decode("%s")))
params = json.loads(base64.b64decode("%s"))
class Sources:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in sources:
            return ModuleSpec(name, Sources, origin=name)
        if (room + ".").startswith(name + ".") or any(known.startswith(name + ".") for known in sources):
            return ModuleSpec(name, Sources, origin=name, is_package=True)
    @staticmethod
    def create_module(spec):
        return None
    @staticmethod
    def get_source(name):
        return sources[name]
    @staticmethod
    def exec_module(module):
        if module.__name__ in sources:
            exec(compile(sources[module.__name__], module.__name__, "exec"), module.__dict__)
sys.meta_path.insert(0, Sources)
__import__(work)
warnings = []
answer = getattr(sys.modules[work], function)(params, True, warnings.append)
if warnings:
    answer["warnings"] = warnings
print("%s" + json.dumps(answer))
"""

#: An import from there, wherever it stands. To parse all sources takes 40 times as long, at each start of Ansible.
_IMPORT = re.compile(r"^ *from (%s[\w.]*) import (\([^)]*\)|[^\n]+)" % re.escape(ROOM), re.MULTILINE)

#: What a result of ours never has: Ansible itself does something with it.
_OF_ANSIBLE = {
    *(
        "add_host",
        "add_group",
        "ansible_job_id",
        "attempts",
        "deprecations",
        "exception",
        "failed",
        "include",
        "results",
    ),
    *("skipped", "unreachable"),
}

display = Display()


class Work:
    """A function ``(params, check_mode, warn) -> result`` of ``module_utils``, with every source that it may import.

    Made when an action plugin is loaded, which Ansible does once and then forks: no host's task reads the files again.

    :param module: below ``module_utils``, such as ``ollama.service``.
    :param function: its name there.
    :param argument_spec: the module's; it is applied on the controller.
    """

    def __init__(self, module: str, function: str, argument_spec: Mapping[str, Any]) -> None:
        self.module = "%s.%s" % (ROOM, module)
        self.validator = ArgumentSpecValidator(dict(argument_spec))
        self.sources = sources(self.module)
        told = json.dumps([self.sources, ROOM, self.module, function]).encode()
        self._packed = base64.b64encode(zlib.compress(told, 4)).decode()

    def script(self, params: Mapping[str, Any], mark: str = MARK) -> bytes:
        """The bare script for these parameters; it needs Python 3.8 and its standard library."""
        return (SCRIPT % (self._packed, base64.b64encode(json.dumps(params).encode()).decode(), mark)).encode()


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
        for place, names in _IMPORT.findall(found[name]):
            waiting += [place, *("%s.%s" % (place, word) for word in re.findall(r"\w+", names))]
    return found


class Asking(ActionBase):
    """An action plugin that asks first. A subclass names the module and its work."""

    TRANSFERS_FILES = False  # no folder is made on the host for an answer
    _supports_async = True

    MODULE = ""
    """Its full name."""
    WORK: Work

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = super().run(tmp, task_vars)
        result.update(self.ask(self._task.args, task_vars) or self.send(self._task.args, task_vars))
        return result

    def send(self, arguments: Mapping[str, Any], task_vars: Optional[Dict[str, Any]]) -> Dict[str, Any]:
        """The result of the module itself."""
        return self._execute_module(
            module_name=self.MODULE, module_args=dict(arguments), task_vars=task_vars, wrap_async=self._task.async_val
        )

    def ask(self, arguments: Mapping[str, Any], task_vars: Optional[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
        """What the host answers when it is as declared, and in check mode also when it is not.

        :returns: a result as the module gives it; None when the module is to be sent.
        """
        task = self._task
        for sentence in misspelt(task_vars or {}):
            display.warning(one_line(sentence))
        if task.async_val or task.delegate_to or not _takes_a_script(self._connection) or _of_the_host(arguments):
            return None
        validated = self.WORK.validator.validate(dict(arguments))
        if validated.error_messages:
            return None  # the module says it in the usual words
        params = validated.validated_parameters
        mark = MARK % secrets.token_hex(8)
        command = "%s %s -" % (self._compute_environment_string(), shlex.quote(self._python(task_vars or {})))
        told = self._low_level_execute_command(command.strip(), in_data=self.WORK.script(params, mark))
        answer = _answer(told, mark)
        if answer is None:
            said = "" if getattr(task, "no_log", False) else printable((told.get("stderr") or "").strip()[-2000:])
            display.vvv("no answer from the bare script, the module is sent: %s" % said)
            return None
        if answer["changed"] and not task.check_mode:
            return None
        answer["invocation"] = {"module_args": params}
        return remove_values(answer, validated._no_log_values)

    def _python(self, task_vars: Mapping[str, Any]) -> str:
        """The host's Python: the one that is set, else the one that Ansible found, else the first on its path."""
        named = task_vars.get("ansible_python_interpreter") or C.config.get_config_value(
            "INTERPRETER_PYTHON", variables=dict(task_vars)
        )
        named = str(self._templar.template(named))
        if not named.startswith("auto"):
            return named
        return (task_vars.get("ansible_facts") or {}).get("discovered_interpreter_python") or "python3"


def _of_the_host(arguments: Mapping[str, Any]) -> bool:
    """Whether a path in there may mean the host's own home or environment, which the controller cannot resolve."""
    text = json.dumps(arguments, default=str)
    return "$" in text or '"~' in text


def _takes_a_script(connection: Any) -> bool:
    """Whether a program can be piped through the connection and its ``become``.

    ``machinectl`` would wait indefinitely for the end of its input. ``su`` works, although it does not declare it.
    Whether sudo wants a terminal is not asked: then there is no answer, and the module is sent.
    """
    become = getattr(connection, "become", None)
    if become is None or not connection.has_pipelining:
        return bool(connection.has_pipelining)
    name = str(become.name).rpartition(".")[2]
    return name == "su" or bool(
        become.pipelining and not getattr(become, "require_tty", False) and name != "machinectl"
    )


def _answer(told: Mapping[str, Any], mark: str) -> Optional[Dict[str, Any]]:
    """What the host says, as far as a module might say it; None when it says nothing of the kind."""
    for line in reversed((told.get("stdout") or "").splitlines()):
        if line.startswith(mark):
            try:
                return _believed(json.loads(line[len(mark) :])) if len(line) <= LONGEST else None
            except (ValueError, RecursionError):
                return None
    return None


def _believed(answer: Any) -> Optional[Dict[str, Any]]:
    """An answer without what only the controller may say, as Ansible does it with a module's result."""
    if not isinstance(answer, dict) or not isinstance(answer.get("changed"), bool):
        return None
    facts, warnings = answer.get("ansible_facts", {}), answer.pop("warnings", [])
    if not isinstance(facts, dict) or not isinstance(warnings, list) or _OF_ANSIBLE & set(answer):
        return None
    for of_result in (answer, facts):
        for key in [key for key in of_result if key.startswith("_ansible_") or "discovered_interpreter_" in key]:
            del of_result[key]
    if warnings:
        answer["warnings"] = [printable(text) for text in warnings[:WARNINGS] if isinstance(text, str)]
    return answer
