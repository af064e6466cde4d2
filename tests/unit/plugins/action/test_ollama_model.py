# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin watches a pull, and stays out of the way when there is none."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, Dict

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.inference.plugins.action import ollama_model
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction

JOB = {"ansible_job_id": "j1", "results_file": "/root/.ansible_async/j1", "started": 1, "finished": 0}
ARGUMENTS = {"models": [{"name": "big"}]}


@pytest.fixture
def act(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`act(arguments, *answers)` runs the plugin; afterwards `.calls`, `.said`, `.limits` and `.removed` tell."""

    def run(
        arguments: Dict[str, Any], *answers: Any, background: int = 0, check: bool = False, no_log: bool = False
    ) -> Dict[str, Any]:
        plugin = ollama_model.ActionModule.__new__(ollama_model.ActionModule)
        plugin._task = SimpleNamespace(args=arguments, async_val=background, check_mode=check, no_log=no_log)
        shell = SimpleNamespace(join_path=lambda *parts: "/".join(parts), quote=lambda text: text)
        plugin._connection = SimpleNamespace(_shell=shell)
        run.calls, run.said, run.limits, run.removed, run.read = [], [], [], [], []
        left = iter(answers)

        def execute(module_name: str, module_args: Any, task_vars: Any, wrap_async: Any) -> Dict[str, Any]:
            run.calls.append((module_name.rpartition(".")[2], dict(module_args)))
            run.limits.append((wrap_async, plugin._task.async_val))
            if module_args.get("mode") == "cleanup":
                return {}
            answer = next(left)
            if isinstance(answer, Exception):
                raise answer
            return dict(answer)

        plugin._execute_module = execute
        plugin._make_tmp_path = lambda: "/tmp/a"
        plugin._remove_tmp_path = run.removed.append
        plugin._low_level_execute_command = lambda command, sudoable: (
            run.read.append(command) or {"stdout": run.progress}
        )
        return plugin.run(task_vars={"inventory_hostname": "gpu1"})

    run.progress = json.dumps(
        {"name": "big", "completed": 21 * 10**9, "total": 42 * 10**9, "rate": 10**8, "seconds_left": 210}
    )
    run.answer = None
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(CheckFirstAction, "checks_first", lambda self, arguments, variables: True)
    monkeypatch.setattr(CheckFirstAction, "check_on_host", lambda self, arguments, variables: run.answer)
    monkeypatch.setattr(ollama_model.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(ollama_model.display, "display", lambda line: run.said.append(line))
    return run


def test_a_host_that_is_as_declared_is_sent_no_module(act: Any) -> None:
    act.answer = {"changed": False, "msg": "1 unchanged"}
    assert act(ARGUMENTS) == {"changed": False, "msg": "1 unchanged"}
    assert act.calls == []


def test_without_a_pull_it_is_one_call(act: Any) -> None:
    assert act(ARGUMENTS, {"changed": False, "msg": "1 unchanged"})["msg"] == "1 unchanged"
    assert act.calls == [("ollama_model", dict(ARGUMENTS, defer_downloads=True))]
    assert act.said == []


@pytest.mark.parametrize("how", [{"check": True}, {"background": 60}])
def test_not_watched_in_check_mode_and_in_the_background(act: Any, how: Dict[str, Any]) -> None:
    act(ARGUMENTS, {"changed": True}, **how)
    assert act.calls == [("ollama_model", ARGUMENTS)]


def test_not_watched_when_not_wanted(act: Any) -> None:
    act(dict(ARGUMENTS, progress="no"), {"changed": True})
    assert act.calls == [("ollama_model", dict(ARGUMENTS, progress="no"))]


def test_not_watched_when_told_not_to_pull(act: Any) -> None:
    act(dict(ARGUMENTS, defer_downloads=True), {"needs": ["big"]})
    assert act.calls == [("ollama_model", dict(ARGUMENTS, defer_downloads=True))]


def test_a_name_alone_is_a_model(act: Any) -> None:
    act({"models": ["a", {"name": "b"}]}, {"changed": False})
    assert act.calls[0][1]["models"] == [{"name": "a"}, {"name": "b"}]
    act({"models": "llama3.3:70b"}, {"changed": False})
    assert act.calls[0][1]["models"] == [{"name": "llama3.3:70b"}]
    with pytest.raises(AnsibleActionFail, match="^models is missing"):
        act({}, {})


def test_a_pull_is_watched(act: Any) -> None:
    done = {
        "changed": True,
        "msg": "big pulled",
        "finished": 1,
        "ansible_job_id": "j1",
        "results_file": "x",
        "stdout": "",
    }
    result = act(ARGUMENTS, {"needs": ["big"]}, JOB, {"finished": 0}, {"finished": 0}, done)
    assert result == {"changed": True, "msg": "big pulled"}
    assert act.said == ["gpu1: big 50% of 42.0 GB · 100.0 MB/s · 3:30 left"] * 2
    assert act.calls[1] == ("ollama_model", dict(ARGUMENTS, progress_file="/tmp/a/progress.json"))
    asked = {"jid": "j1", "_async_dir": "/root/.ansible_async"}
    assert act.calls[2] == ("async_status", asked)
    assert act.calls[-1] == ("async_status", dict(asked, mode="cleanup"))
    assert act.limits[1] == (True, ollama_model.LONGEST)
    assert act.limits[2] == (False, 0), "the task's own limit is back"
    assert act.removed == ["/tmp/a"]


def test_nothing_is_shown_of_a_task_that_is_not_to_be_logged(act: Any) -> None:
    act(ARGUMENTS, {"needs": ["big"]}, JOB, {"finished": 0}, {"finished": 1}, no_log=True)
    assert (act.said, act.read) == ([], [])


@pytest.mark.parametrize(
    "told, said",
    [
        ({"name": "\x1b[2Ja\nb", "status": "\x1b]0;title\x07", "total": 0}, ["gpu1: a b ?]0;title?"]),
        ({"name": "a" * 999, "status": "x"}, ["gpu1: " + "a" * 300]),
        ({"name": "a", "total": "many"}, []),
        ({"name": "a", "total": 1, "completed": [1]}, []),
        ({"name": "a", "total": 1, "seconds_left": float("inf")}, []),
        ({"total": 1}, []),
        ([1], []),
        ("text", []),
    ],
)
def test_what_a_host_says_is_made_safe_for_the_terminal(act: Any, told: Any, said: Any) -> None:
    act.progress = json.dumps(told)
    act(ARGUMENTS, {"needs": ["big"]}, JOB, {"finished": 0}, {"finished": 1})
    assert act.said == said and act.read == ["head -c 65536 /tmp/a/progress.json"]


def test_a_progress_of_great_depth(act: Any) -> None:
    act.progress = "[" * 100000
    act(ARGUMENTS, {"needs": ["big"]}, JOB, {"finished": 0}, {"finished": 1})
    assert act.said == []


def test_what_fails_is_told(act: Any) -> None:
    assert act(ARGUMENTS, {"failed": True, "needs": ["big"]})["failed"]
    assert len(act.calls) == 1
    assert act(ARGUMENTS, {"needs": ["big"]}, {"failed": True, "msg": "no room"})["msg"] == "no room"
    failed = {"finished": 1, "failed": True, "msg": "big: no byte more"}
    assert act(ARGUMENTS, {"needs": ["big"]}, JOB, failed)["msg"] == "big: no byte more"


def test_it_is_tidied_up_when_the_host_is_lost(act: Any) -> None:
    with pytest.raises(RuntimeError, match="unreachable"):
        act(ARGUMENTS, {"needs": ["big"]}, JOB, RuntimeError("unreachable"))
    assert act.removed == ["/tmp/a"]


@pytest.mark.parametrize("content", ["", "{", "{}"])
def test_nothing_is_said_before_there_is_something(act: Any, content: str) -> None:
    act.progress = content
    act(ARGUMENTS, {"needs": ["big"]}, JOB, {"finished": 0}, {"finished": 1})
    assert act.said == []


@pytest.mark.parametrize(
    "progress, words",
    [
        ({"name": "a", "status": "waits for another run", "completed": 0, "total": 0}, "a waits for another run"),
        ({"name": "a", "completed": 0, "total": 5 * 10**8}, "a 0% of 0.5 GB"),
        (
            {"name": "a", "completed": 10**9, "total": 10**9, "rate": 5, "seconds_left": 0},
            "a 100% of 1.0 GB · 0.0 MB/s · 0:00 left",
        ),
    ],
)
def test_as_a_person_reads_it(progress: Dict[str, Any], words: str) -> None:
    assert ollama_model.sentence(progress) == words
