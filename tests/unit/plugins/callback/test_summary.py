# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The callback: which results and plays of Ansible it collects, and that it prints once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.callback import summary

SERVICE = "gpufleet.inference.ollama_service"


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`.printed` are the lines; `.stats(host={…})` ends the run."""
    made = summary.CallbackModule()
    made.printed = []
    monkeypatch.setattr(made._display, "display", lambda line, color=None: made.printed.append(line))

    def stats(**counts: Dict[str, int]) -> List[str]:
        none = dict.fromkeys(("ok", "changed", "failures", "unreachable"), 0)
        made.v2_playbook_on_stats(SimpleNamespace(summarize=lambda host: {**none, **counts.get(host, {})}))
        return made.printed

    made.stats = stats
    return made


def play(*hosts: str, role: str = "gpufleet.inference.ollama", included: str = "", check: bool = False) -> Any:
    found = [SimpleNamespace(name=host) for host in hosts]
    inventory = SimpleNamespace(get_hosts=lambda pattern, ignore_restrictions: found)
    return SimpleNamespace(
        get_name=lambda: "Serve",
        check_mode=check,
        roles=[] if included else [SimpleNamespace(get_name=lambda: role)],
        tasks=[SimpleNamespace(block=[SimpleNamespace(args={"name": included}), SimpleNamespace(block=[])])],
        hosts="ollama",
        get_variable_manager=lambda: SimpleNamespace(_inventory=inventory),
    )


def result(host: str, action: str = SERVICE, task_vars: Any = (), **found: Any) -> Any:
    task = SimpleNamespace(resolved_action=action, action=action, name="Do it", vars=dict(task_vars))
    return SimpleNamespace(_host=SimpleNamespace(get_name=lambda: host), _task=task, _result=found)


@pytest.mark.parametrize("included", ["", "gpufleet.inference.vllm"])
def test_a_run_that_stops_after_the_first_batch(callback: Any, included: str) -> None:
    fleet = ("gpu1", "gpu2", "gpu3", "gpu4")
    callback.v2_playbook_on_play_start(play(*fleet, included=included))
    callback.v2_runner_on_ok(result("gpu1", msg="ok · 4× H200", changed=True))
    callback.v2_runner_on_failed(result("gpu2", msg="gpu_lost: GPU 1"))
    callback.v2_playbook_on_play_start(play(*fleet, included=included))
    stopped = {summary.NOT_TOUCHED: True}
    callback.v2_runner_on_failed(result("gpu3", "ansible.builtin.fail", stopped, msg="gpu2 failed in an earlier batch"))
    printed = callback.stats(gpu1={"changed": 1}, gpu2={"failures": 1}, gpu3={"failures": 1})
    assert printed[0].endswith("· 1 ok (1 changed) · 1 failed · 2 not touched")
    assert printed[1:] == [
        "  failed       gpu2      gpu_lost: GPU 1",
        "  not touched  gpu[3-4]  the run stopped before its turn",
        "  changed      gpu1      4× H200",
        "  Again for those that failed: --limit gpu2",
    ]


def test_a_failure_that_is_ignored_and_check_mode(callback: Any) -> None:
    callback.v2_playbook_on_play_start(play("gpu1", check=True))
    callback.v2_runner_on_failed(result("gpu1", msg="no"), ignore_errors=True)
    callback.v2_runner_on_ok(result("gpu1", msg="would change A", changed=True))
    assert callback.stats(gpu1={"changed": 1})[1:] == ["  would change gpu1  change A"]


def test_an_unreachable_host(callback: Any) -> None:
    callback.v2_playbook_on_play_start(play("gpu1"))
    callback.v2_runner_on_unreachable(result("gpu1", msg="No route to host"))
    assert callback.stats(gpu1={"unreachable": 1})[1] == "  unreachable  gpu1  No route to host"


def test_a_playbook_of_somebody_else_is_left_alone(callback: Any) -> None:
    callback.v2_playbook_on_play_start(play("web1", role="other.role"))
    callback.v2_playbook_on_play_start(play("web1", included="other.role"))
    callback.v2_runner_on_ok(result("web1", "ansible.builtin.command", changed=True))
    assert callback.stats(web1={"changed": 1}) == []
