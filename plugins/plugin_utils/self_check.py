# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The question to a host, as it is left there: what the host asks itself with a timer, and the code for it."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence

from ..module_utils.programs import kept_check, self_check, state_check
from ..module_utils.self_check.unit import ARGUMENTS
from ..module_utils.toolbox.source import source_of
from .check_first import CheckFirstAction
from .question import KEPT, ROOM, Call, Question, RemoteFunction, sources

PREPARED = RemoteFunction("gpu.preparation", "check", {})
LOOK = RemoteFunction("self_check.run", "look", ARGUMENTS)
"""Whether the self check is as declared, asked together with the rest, of which it may not be the whole."""
REPORT = ROOM + ".self_check.result"


class SelfCheckAction(CheckFirstAction):
    """Leaves the question on the host. A subclass, or who creates it, says what is asked."""

    MODULE = "gpufleet.inference.self_check"
    FUNCTION = RemoteFunction("self_check.run", "check", ARGUMENTS)

    calls: Sequence[Call] = ()
    """What the controller has asked the host, without the self check."""
    masked: Iterable[str] = ()
    """The texts that no output of the host may contain."""

    def prepare(self, arguments: Dict[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        given = {name: value for name, value in arguments.items() if name not in ("id", "question")}
        if not given.get("interval"):
            return given
        validated = self.FUNCTION.validator.validate(given)
        if validated.error_messages:
            return given
        return {**given, "id": Left.of(self.calls, self.masked, validated.validated_parameters).identity()}

    def send(self, arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        if not arguments.get("interval"):
            return super().send(arguments, variables)
        params = self.FUNCTION.validator.validate(dict(arguments)).validated_parameters
        files = Left.of(self.calls, self.masked, params).files()
        packed = base64.b64encode(zlib.compress(json.dumps(files).encode(), 6)).decode()
        return super().send({**arguments, "question": packed}, variables)


class Left(NamedTuple):
    """What is left on a host: what it asks itself, and by which code."""

    question: Question
    asked: Dict[str, Any]

    @classmethod
    def of(cls, calls: Sequence[Call], masked: Iterable[str], params: Mapping[str, Any]) -> "Left":
        """:param params: of the module ``self_check``, validated."""
        question = Question(of_a_host(calls, params))
        question.sources.update(sources(REPORT))
        asked = {
            "calls": question.calls,
            "kept": [KEPT, question.name, question.key()],
            "report": REPORT,
            "secrets": sorted(set(masked)),
            "textfile_folder": params["textfile_folder"],
        }
        return cls(question, asked)

    def identity(self) -> str:
        """A digest, another one wherever a host would ask itself something else; the key stands for the code."""
        parts = [self.asked, source_of(self_check), source_of(kept_check)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def files(self) -> Dict[str, str]:
        """The files by their names."""
        texts = {name: source.text for name, source in self.question.sources.items()}
        return {
            "self_check.py": source_of(self_check),
            "kept_check.py": source_of(kept_check),
            "code.json": json.dumps([source_of(state_check), texts]),
            "question.json": json.dumps({**self.asked, "id": self.identity()}, sort_keys=True),
        }


def of_a_host(calls: Sequence[Call], params: Mapping[str, Any]) -> List[Call]:
    """The calls without what belongs to a run, and with what the controller concludes from the facts of the GPUs."""
    found: List[Call] = []
    for function, given in calls:
        kept = dict(given)
        if kept.get("prove") == "now":
            kept["prove"] = "change"
        if "new_answers" in kept:
            kept["new_answers"] = False
        if "defer_downloads" in kept:
            kept["defer_downloads"] = True  # what is missing is named, and not looked for on the network
        if "token" in kept and not kept.get("update"):
            kept["token"] = None  # only a download needs it
        found.append((function, kept))
        if function.name == "gpu.facts":
            wanted = {name: params[name] for name in ("required", "pynvml", "persistence")}
            more = {"expected": given["expected_count"], "timeout": given["timeout"]}
            found.append((PREPARED, {**wanted, **more}))
    return found
