# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The question to a host, as a program for its Python, and the validation of its answers.

The program runs functions of ``module_utils`` in check mode (``module_utils/programs/state_check.py``). The host keeps
what it has compiled: the next time it is sent only a digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ..module_utils.programs import kept_check, state_check
from ..module_utils.toolbox.source import source_of
from ..module_utils.toolbox.text import printable

ROOM = "ansible_collections.gpufleet.inference.plugins.module_utils"
FOLDER = Path(__file__).resolve().parent.parent / "module_utils"
#: Stands before the answers, with a word that no start file of a shell can know: it may print something, too.
MARK = "gpufleet-answer-%s "
#: Characters of the answers, more than any host has to say.
LONGEST = 1 << 24
#: Characters of the reason that is shown.
REASON = 2000
WARNINGS = 100
#: Where a host keeps compiled code, in memory; only root can enter it.
KEPT = "/run/gpufleet-code"
STATES = ("converged", "differs", "refused", "failed", "lacks")

#: An import from there, wherever it stands: all of them are relative. To parse all sources takes 40 times as long, at
#: each start of Ansible.
_IMPORT = re.compile(r"^ *from (\.+)([\w.]*) import (\([^)]*\)|[^\n]+)", re.MULTILINE)

#: What a result of ours never has: Ansible itself acts on it.
_RESERVED_KEYS = {
    *("add_group", "add_host", "ansible_job_id", "attempts", "deprecations", "exception", "failed", "include"),
    *("results", "skipped", "unreachable"),
}


class RemoteFunction:
    """A function ``(params, check_mode, warn) -> result`` of ``module_utils``, with every source that it may import.

    Created when an action plugin is loaded, which Ansible does once and then forks: no task reads the files again.

    :param module: below ``module_utils``, such as ``ollama.service``.
    :param function: its name there.
    :param argument_spec: the module's; it is applied on the controller.
    :param facts: the facts that it may return; others are dropped, because Ansible makes variables of facts.
    """

    def __init__(
        self, module: str, function: str, argument_spec: Mapping[str, Any], facts: Collection[str] = ()
    ) -> None:
        self.name = module
        self.function = function
        self.argument_spec = dict(argument_spec)
        self.facts = facts
        self.validator = ArgumentSpecValidator(self.argument_spec)
        self.sources = sources("%s.%s" % (ROOM, module))


Call = Tuple[RemoteFunction, Mapping[str, Any]]


class Question:
    """Calls of functions with validated parameters. A host answers them in this order, up to the first that differs.

    :param writes: whether the host may keep what it compiles.
    """

    def __init__(self, calls: Sequence[Call], writes: bool = False) -> None:
        functions = {function.name: function for function, _params in calls}
        self.name = "+".join(sorted(functions))
        self.calls = [["%s.%s" % (ROOM, function.name), function.function, params] for function, params in calls]
        self.sources = {name: text for one in functions.values() for name, text in one.sources.items()}
        self.facts = [function.facts for function, _params in calls]
        self.writes = writes

    def ask(self, send: Callable[[bytes], Mapping[str, Any]]) -> List[Answer]:
        """At least one answer; only the last one may be another than ``converged``.

        :param send: runs a program in the host's Python and returns its ``stdout`` and ``stderr``.
        """
        answers = []
        for script in (self.short_script, self.script):
            mark = MARK % secrets.token_hex(8)
            answers = _answers(send(script(mark)), mark, self.facts)
            if answers[-1].state != "lacks":
                break
        return answers

    def short_script(self, mark: str = MARK) -> bytes:
        """The program, where the host has kept the sources."""
        call = (KEPT, self.name, self.key(), self.writes, json.dumps(self.calls), mark)
        return _program(source_of(kept_check), "main%r" % (call,))

    def script(self, mark: str = MARK) -> bytes:
        """The same, with the sources; it needs Python 3.8 and its standard library."""
        program = source_of(state_check)
        texts = {name: source.text for name, source in self.sources.items()}
        packed = base64.b64encode(zlib.compress(json.dumps([program, texts, self.calls]).encode(), 4)).decode()
        kept = (KEPT, self.name, self.key()) if self.writes else None
        return _program(program, "unpack%r" % ((kept, packed, mark),))

    def key(self) -> str:
        """A digest of all sources: under it the host keeps what it has compiled."""
        digest = hashlib.sha256(source_of(state_check).encode())
        for name in sorted(self.sources):
            digest.update(("%s %s\n" % (name, self.sources[name].digest)).encode())
        return digest.hexdigest()


def _program(source: str, call: str) -> bytes:
    """A program that ends at once after its answer: to tear down what was imported would take a tenth of its time."""
    return ("%s\n\n%s\nsys.stdout.flush()\n__import__('os')._exit(0)\n" % (source, call)).encode()


class Source(NamedTuple):
    """A module."""

    text: str
    digest: str
    imports: Sequence[str]
    """Names that it may import from here, those of modules among them."""


def sources(module: str) -> Dict[str, Source]:
    """A module below ``module_utils`` and all that it imports there, by full name."""
    found: Dict[str, Source] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = FOLDER.joinpath(*name[len(ROOM) + 1 :].split(".")).with_suffix(".py")
        if name in found or not path.is_file():  # a folder, or a name within a module
            continue
        found[name] = _read(name, path, path.stat().st_mtime_ns)
        waiting += found[name].imports
    return found


@lru_cache(maxsize=None)
def _read(name: str, path: Path, _changed: int) -> Source:
    text = path.read_text(encoding="utf-8")
    imports: List[str] = []
    for dots, below, names in _IMPORT.findall(text):
        place = ".".join([*name.split(".")[: -len(dots)], *below.split(".")]).rstrip(".")
        imports += [place, *("%s.%s" % (place, word) for word in re.findall(r"\w+", names))]
    return Source(text, hashlib.sha256(text.encode()).hexdigest(), imports)


class Answer(NamedTuple):
    """What a host says of itself."""

    state: str
    """``converged``, ``differs``, ``refused``, ``failed``, ``lacks`` (the sources), or ``silent``: no usable answer."""
    why: str = ""
    result: Optional[Dict[str, Any]] = None
    """The module's result, where the host is converged, and where it is known what would change."""


def _answers(said: Mapping[str, Any], mark: str, facts: Sequence[Collection[str]]) -> List[Answer]:
    """The host's answers, reduced to what a module's result may contain.

    :param facts: for each function that was asked, the facts that it may return.
    """
    for line in reversed((said.get("stdout") or "").splitlines()):
        if line.startswith(mark):
            if len(line) > LONGEST:
                return [Answer("silent", "its answer is too long")]
            try:
                return _believed_all(json.loads(line[len(mark) :]), facts)
            except (ValueError, RecursionError):
                return [Answer("silent", "its answer is not JSON")]
    return [Answer("silent", (said.get("stderr") or "").strip()[-REASON:])]


def _believed_all(answers: Any, facts: Sequence[Collection[str]]) -> List[Answer]:
    """As many answers as were asked for, all converged, or those up to the first that is not."""
    if not isinstance(answers, list) or not 0 < len(answers) <= len(facts):
        return [Answer("silent", "its answer has another form")]
    believed = [_believed(answer, found) for answer, found in zip(answers, facts)]
    for number, answer in enumerate(believed, 1):
        if answer.state != "converged":
            return believed[:number]
    return believed if len(believed) == len(facts) else [Answer("silent", "its answer is not complete")]


def _believed(answer: Any, facts: Collection[str]) -> Answer:
    """An answer of the right form, without what only the controller may say."""
    odd = Answer("silent", "its answer has another form")
    if not isinstance(answer, dict) or set(answer) != {"state", "why", "result"}:
        return odd
    state, why, result = answer["state"], answer["why"], answer["result"]
    if state not in STATES or not isinstance(why, str):
        return odd
    if result is None and state != "converged":
        return Answer(state, why[-REASON:])
    believed = _believed_result(result, facts)
    if believed is None or state != ("differs" if believed["changed"] else "converged"):
        return odd
    return Answer(state, why[-REASON:], believed)


def _believed_result(result: Any, facts: Collection[str]) -> Optional[Dict[str, Any]]:
    """A result without what only the controller may say, as Ansible does it with a module's; None for an odd one."""
    if not isinstance(result, dict) or not isinstance(result.get("changed"), bool):
        return None
    instances = result.get("instances", {})
    if not isinstance(result.get("msg", ""), str) or not isinstance(instances, dict):
        return None
    if not all(isinstance(one, dict) for one in instances.values()):
        return None
    found, warnings = result.pop("ansible_facts", {}), result.pop("warnings", [])
    if not isinstance(found, dict) or not isinstance(warnings, list) or _RESERVED_KEYS & set(result):
        return None
    for key in [key for key in result if key.startswith("_ansible_") or "discovered_interpreter_" in key]:
        del result[key]
    known = {name: found[name] for name in facts if name in found}
    if known:
        result["ansible_facts"] = known
    if warnings:
        result["warnings"] = [printable(text) for text in warnings[:WARNINGS] if isinstance(text, str)]
    return result
