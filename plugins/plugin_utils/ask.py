# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a host whether it is as declared, by a bare script, before a module is sent there.

What a module costs a host that is already as declared is, for the most part, the import of Ansible's own module code.
The bare script runs the same function of ``module_utils`` in check mode, which reads and writes nothing. Only a host
that answers otherwise than "as declared" is sent the module, which then does the work and tells what is wrong.
"""

from __future__ import annotations

import ast
import base64
import json
import zlib
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from ansible import constants as C
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.gpufleet.inference.plugins.plugin_utils.spelling import misspelt

ROOM = "ansible_collections.gpufleet.inference.plugins.module_utils"
FOLDER = Path(__file__).resolve().parent.parent / "module_utils"
#: Stands before the answer, as a shell's start files may print something.
MARK = "gpufleet-answer "

SCRIPT = """\
import base64, json, sys, zlib
from importlib.machinery import ModuleSpec
sources, room, work, function, params = json.loads(zlib.decompress(base64.b64decode("%s")))
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
        self.function = function
        self.validator = ArgumentSpecValidator(dict(argument_spec))
        self.sources = sources(self.module)

    def script(self, params: Mapping[str, Any]) -> bytes:
        """The bare script for these parameters; it needs Python 3.8 and its standard library."""
        told = json.dumps([self.sources, ROOM, self.module, self.function, params]).encode()
        return (SCRIPT % (base64.b64encode(zlib.compress(told, 1)).decode(), MARK)).encode()


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
        for node in ast.walk(ast.parse(found[name])):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOM):
                waiting += [str(node.module), *("%s.%s" % (node.module, alias.name) for alias in node.names)]
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
            display.warning(sentence)
        # whether it may be piped is not asked: where sudo wants a terminal there is no answer, and the module is sent
        if task.async_val or task.delegate_to or not self._connection.has_pipelining or _of_the_host(arguments):
            return None
        validated = self.WORK.validator.validate(dict(arguments))
        if validated.error_messages:
            return None  # the module says it in the usual words
        params = validated.validated_parameters
        command = "%s %s -I -" % (self._compute_environment_string(), self._python(task_vars or {}))
        told = self._low_level_execute_command(command.strip(), in_data=self.WORK.script(params))
        answer = _answer(told)
        if answer is None or (answer.get("changed") and not task.check_mode):
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


def _answer(told: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    for line in reversed((told.get("stdout") or "").splitlines()):
        if line.startswith(MARK):
            return json.loads(line[len(MARK) :])
    display.vvv("no answer from the bare script, the module is sent: %s" % (told.get("stderr") or "").strip()[-2000:])
    return None
