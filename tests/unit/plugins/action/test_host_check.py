# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole question to a host, by the real roles; only what the host answers is the test's."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, Callable, Dict, List

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.plugins.filter import AnsibleJinja2Filter
from ansible.plugins.loader import filter_loader, lookup_loader
from ansible.template import Templar

from ansible_collections.gpufleet.inference.plugins.action import host_check
from ansible_collections.gpufleet.inference.plugins.lookup import gateway_agent
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu.preparation import missing
from ansible_collections.gpufleet.inference.plugins.plugin_utils import role_walk
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import Answer

if not role_walk.POSSIBLE:
    pytest.skip("needs ansible-core 2.19", allow_module_level=True)

GPU = {
    "fault": None,
    "findings": [],
    "devices": [{"health": {"ok": True}, "persistence_mode": True}],
    "count": 1,
    "source": "nvml",
}
LOOK = {"changed": False, "reason": ""}
MSG = "ok · 4× H200 · CUDA_VISIBLE_DEVICES=0,1,2,3 spread"
MODELS = {"llama_server_models": [{"name": "Qwen/Qwen3-8B"}]}
RESULTS = {
    "self_check.run": LOOK,
    "gpu.facts": {"changed": False, "ansible_facts": {"gpu": GPU}},
    "model_source.source": {"changed": False, "msg": "unchanged", "path": "/var/lib/models/a"},
}


class Host:
    """Converged in all that it is asked; `answers` are other results, by the function's file."""

    def __init__(self) -> None:
        self.answers: Dict[str, Any] = {}
        self.asked: List[List[str]] = []

    def __call__(self, calls: Any) -> List[Answer]:
        self.asked.append([function.name for function, _params in calls])
        answers = [self._answer(name) for name in self.asked[-1]]
        states = [answer.state for answer in answers]
        return answers[: 1 + next((number for number, state in enumerate(states) if state != "converged"), len(states))]

    def _answer(self, name: str) -> Answer:
        answer = {**RESULTS, **self.answers}.get(name, {"changed": False, "msg": MSG})
        return answer if isinstance(answer, Answer) else Answer("converged", "", dict(answer))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(CheckFirstAction, "ask", lambda self, calls, variables: host(calls))
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(lookup_loader, "get", lambda name, **more: gateway_agent.LookupModule())
    found, ours = filter_loader.get, AnsibleJinja2Filter(missing)
    monkeypatch.setattr(filter_loader, "get", lambda name: ours if "gpufleet" in name else found(name))
    return host


@pytest.fixture
def check(host: Host) -> Callable[..., Dict[str, Any]]:
    """`check(arguments, **variables)` is the result of the task."""
    from ansible._internal._templating._utils import Omit

    def run(arguments: Dict[str, Any], **variables: Any) -> Dict[str, Any]:
        task = SimpleNamespace(args=arguments, async_val=0, delegate_to=None, check_mode=False, no_log=False)
        connection = SimpleNamespace(has_pipelining=True, become=None)
        own = {
            "omit": Omit,
            "groups": {},
            "hostvars": {},
            "ansible_check_mode": False,
            "inventory_hostname": "a",
            "group_names": [],
            **variables,
        }
        templar = Templar(loader=DataLoader(), variables=own)
        return host_check.ActionModule(task, connection, None, DataLoader(), templar).run(task_vars=own)

    return run


def test_a_host_that_is_as_declared(check: Any, host: Host) -> None:
    found = check({"roles": ["gpu_host", "llama_server"]}, **MODELS)
    assert [names[-3:] for names in host.asked] == [
        ["gpu.facts", "gateway.agent", "model_source.source"],
        ["self_check.run", "llama_server.service"],
    ], "which needs the path"
    assert (found["as_declared"], found["changed"], found["msg"]) == (True, False, "as declared")
    assert (found["roles"], found["shares"], found["lines"]) == (["gpu_host", "llama_server"], False, [MSG])
    assert found["ansible_facts"] == {"gpu": GPU}
    assert found["modules"]["llama_server_models_result"] == "gpufleet.inference.model_source"


def test_the_self_check_belongs_to_the_same_exchange(check: Any, host: Host) -> None:
    """Of two exchanges the last one counts, whose question is the whole one."""
    roles = {"roles": ["gpu_host", "llama_server"]}
    groups = {"group_names": ["llama_server"], "gpu_host_self_check": "5min"}
    assert check(roles, **groups)["as_declared"]
    assert host.asked == [["self_check.run", "gpu.facts", "gateway.agent"], ["self_check.run", "llama_server.service"]]
    host.answers["self_check.run"] = {"changed": False, "reason": "it is missing or incomplete"}
    found = check(roles, **groups, **MODELS)
    assert (
        found["msg"] == "the roles are run: the self check of the host is not as declared: it is missing or incomplete"
    )
    assert [asked[0] for asked in host.asked] == ["self_check.run"] * 4


@pytest.mark.parametrize("interval, reason, needed", [("", "", False), ("", "it is there", True), ("5min", "", True)])
def test_whether_a_host_that_differs_needs_the_task_of_the_self_check(
    check: Any, host: Host, interval: str, reason: str, needed: bool
) -> None:
    host.answers["gpu.facts"] = Answer("differs", "a GPU is missing")
    host.answers["self_check.run"] = {"changed": False, "reason": reason}
    groups = {"group_names": ["llama_server"], "gpu_host_self_check": interval}
    found = check({"roles": ["gpu_host", "llama_server"]}, **groups)
    assert (found["as_declared"], found["self_check"]) == (False, needed)


@pytest.mark.parametrize("silent", ["self_check.run", None])
def test_the_task_runs_where_the_host_has_not_said_that_it_has_no_self_check(
    check: Any, host: Host, silent: Any
) -> None:
    if silent:
        host.answers[silent] = Answer("silent")
    roles = ["gpu_host", "llama_server"] if silent else ["gpu_host"]
    host.answers["gpu.facts"] = Answer("differs", "a GPU is missing")
    assert check({"roles": roles}, group_names=["llama_server"])["self_check"]


def test_the_self_check_is_about_all_roles_of_a_host(check: Any, host: Host) -> None:
    """Asked about some of them, nobody knows what the host asks itself."""
    check({"roles": ["gpu_host", "llama_server"]}, group_names=["llama_server", "vllm"])
    assert host.asked == [["gpu.facts", "gateway.agent"], ["llama_server.service"]]


def test_a_host_that_may_have_to_share_its_models(check: Any) -> None:
    assert check({"roles": ["ollama"]}, ollama_seeding=True, ollama_models=["m"])["shares"]
    assert not check({"roles": ["ollama"]}, ollama_seeding=False, ollama_models=["m"])["shares"]


def test_an_entry_that_the_role_would_reject(check: Any) -> None:
    """The action plugin of a task knows its role and the item of its loop."""
    found = check({"roles": ["llama_server"]}, llama_server_models=[{"name": "a/b", "revison": "main"}])
    assert not found["as_declared"]
    assert "llama_server_models[a/b].revison is not an option; did you mean revision?" in found["msg"]


def test_messages_have_the_words_of_the_role(check: Any, host: Host) -> None:
    host.answers["llama_server.service"] = {"changed": False, "msg": "drain_timeout: 3 s"}
    assert check({"roles": ["llama_server"]})["lines"] == ["llama_server_drain_timeout: 3 s"]


def test_warnings_of_the_answers_are_shown(check: Any, host: Host) -> None:
    host.answers["llama_server.service"] = {"changed": False, "msg": MSG, "warnings": ["it ends soon", "again"]}
    host.answers["gateway.agent"] = {"changed": False, "msg": MSG, "warnings": ["again"]}
    assert check({"roles": ["gpu_host", "llama_server"]}, **MODELS)["warnings"] == ["again", "it ends soon"]


def test_a_second_check_that_finds_a_change(check: Any, host: Host) -> None:
    assert check({"roles": ["llama_server"]}, **MODELS)["as_declared"]
    host.answers["model_source.source"] = Answer("differs", "a file is missing")
    found = check({"roles": ["llama_server"]}, **MODELS)
    assert found == {
        "changed": False,
        "as_declared": False,
        "self_check": True,
        "msg": "the roles are run: the host's answer is: differs; a file is missing",
    }


def test_a_host_neither_draws_on_the_terminal_nor_speaks_for_another(check: Any, host: Host) -> None:
    host.answers["llama_server.service"] = {"changed": False, "msg": "ok\n\x1b[2Jgpu9: ok" + 2000 * "x"}
    (line,) = check({"roles": ["llama_server"]})["lines"]
    assert line.startswith("ok gpu9: okx") and len(line) == 1000


def test_a_variable_that_cannot_be_resolved(check: Any) -> None:
    """The roles run, and say so in their words."""
    from ansible.template import trust_as_template

    found = check({"roles": ["ollama"]}, ollama_seeding=trust_as_template("{{ nowhere }}"), ollama_models=[])
    assert not found["as_declared"] and "nowhere" in found["msg"]


@pytest.mark.parametrize(
    "arguments, wrong",
    [
        ({}, "roles is missing"),
        ({"role": ["ollama"]}, "role is not an option; did you mean roles?"),
        ({"roles": []}, "roles is empty; expected one or more of gateway, gpu_host,"),
        ({"roles": ["ollama", "../vllm"]}, "roles[1] is '../vllm'; expected one of gateway, gpu_host,"),
        ({"roles": {"ollama": 1}}, "roles is a dictionary; expected a list"),
        ({"roles": [["ollama"]]}, "roles[0] is a list; expected one of gateway,"),
    ],
)
def test_wrong_arguments(check: Any, host: Host, arguments: Dict[str, Any], wrong: str) -> None:
    with pytest.raises(AnsibleActionFail, match=re.escape(wrong)):
        check(arguments)
    assert host.asked == []


def test_one_role_may_be_a_text(check: Any) -> None:
    assert check({"roles": "llama_server"})["roles"] == ["llama_server"]


def test_filters_are_loaded_before_ansible_forks() -> None:
    """Ansible loads all filters of a collection for one of them: here, and not again for each host."""
    filters = {path.stem for path in (role_walk.ROLES.parent / "plugins/filter").glob("*.py")}
    assert filters <= {plugin.__name__.rpartition(".")[2] for plugin in host_check.LOADED}
