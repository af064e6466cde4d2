# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left on a host, and the program that uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils import self_check
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import ROOM, RemoteFunction

FACTS = RemoteFunction("gpu.facts", "report", {})
MODEL = RemoteFunction("model_source.source", "converge", {})
PARAMS = {"textfile_folder": "/m", "required": True, "pynvml": True, "persistence": False}
GPUS = (FACTS, {"timeout": 10.0, "venv": None, "required": False, "expected_count": 4})


def files(*calls: Any, masked: Any = (), **params: Any) -> Dict[str, str]:
    return self_check.Left.of(calls, masked, {**PARAMS, **params}).files()


def calls(*given: Any) -> Any:
    return json.loads(files(*given)["question.json"])["calls"]


def test_what_the_controller_concludes_is_a_check_of_its_own() -> None:
    found = calls(GPUS)
    assert [name.rpartition("module_utils.")[2] for name, _function, _params in found] == [
        "gpu.facts",
        "gpu.preparation",
    ]
    assert found[1][2] == {"required": True, "pynvml": True, "persistence": False, "expected": 4, "timeout": 10.0}


def test_what_belongs_to_a_run_is_left_out() -> None:
    """Otherwise a run with gpufleet_prove=now, or a check, would leave another question than the next one."""
    usual = (MODEL, {"prove": "change", "new_answers": False, "defer_downloads": True, "token": None, "update": False})
    of_a_run = (
        MODEL,
        {"prove": "now", "new_answers": True, "defer_downloads": False, "token": "hf_x", "update": False},
    )
    assert files(usual) == files(of_a_run)
    assert "hf_x" not in json.dumps(files(of_a_run))
    later = (MODEL, {"prove": "later", "token": "hf_x", "update": True})
    assert calls(later)[0][2] == {"prove": "later", "token": "hf_x", "update": True}


def test_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(found: Dict[str, str]) -> str:
        return str(json.loads(found["question.json"])["id"])

    usual = identity(files(GPUS))
    assert usual == identity(files(GPUS))
    assert usual != identity(files(GPUS, textfile_folder="/n"))
    assert usual != identity(files(GPUS, masked=["secret"]))
    assert usual != identity(files(GPUS, required=False))
    monkeypatch.setattr(self_check, "source_of", lambda program: "pass")
    assert usual != identity(files(GPUS))


def test_the_program(tmp_path: Path) -> None:
    """By a Python of its own: with all code from the folder, and again with what it has kept."""
    found = files((RemoteFunction("gpu.preparation", "check", {}), {}))
    question = json.loads(found["question.json"])
    _program, texts = json.loads(found["code.json"])
    own = {"%s.asked" % ROOM: "def ask(params, check_mode, warn):\n    return dict(params, changed=not check_mode)\n"}
    own["%s.said" % ROOM] = "def report(question, answers):\n    return repr([one['state'] for one in answers])\n"
    kept = [str(tmp_path / "kept"), "name", "key"]
    question.update(calls=[["%s.asked" % ROOM, "ask", {}], ["nowhere", "ask", {}]], report="%s.said" % ROOM, kept=kept)
    assert "%s.self_check.result" % ROOM in texts
    found.update({"question.json": json.dumps(question), "code.json": json.dumps([_program, own])})
    folder = tmp_path / "self-check"
    folder.mkdir()
    for name, text in found.items():
        (folder / name).write_text(text)
    command = [sys.executable, str(folder / "self_check.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "['converged', 'failed']\n"), done.stderr
