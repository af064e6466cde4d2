# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles would ask a host, found without running them: the same as if each task were run after the other."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.inference.plugins.plugin_utils import role_walk
from ansible_collections.gpufleet.inference.plugins.plugin_utils.role_walk import Asked, RoleTasks, Undecided, Walk

if not role_walk.POSSIBLE:
    pytest.skip("needs ansible-core 2.19", allow_module_level=True)

MODULES = ("x.y.facts", "x.y.service", "x.y.model")


def trusted(value: Any) -> Any:
    """As Ansible reads it from a file: each text may be a template."""
    from ansible.template import trust_as_template

    if isinstance(value, dict):
        return {key: trusted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [trusted(one) for one in value]
    return trust_as_template(value) if isinstance(value, str) else value


def role(tasks: str, variables: Any = None) -> RoleTasks:
    return RoleTasks("ollama", {"given": 1}, trusted(variables or {}), trusted(yaml.safe_load(tasks)))


class Host:
    """Answers what is asked; keeps it by exchange."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.exchanges = answers, []  # type: ignore[var-annotated]

    def __call__(self, asked: Sequence[Asked]) -> List[Dict[str, Any]]:
        self.exchanges.append([(one.module.rpartition(".")[2], one.arguments) for one in asked])
        return [
            {
                "changed": False,
                "msg": str(sorted(one.arguments.items(), key=str)),
                **self.answers.get(one.module.rpartition(".")[2], {}),
            }
            for one in asked
        ]


def walk(roles: Sequence[RoleTasks], host: Host, walker: Any = Walk, **outside: Any) -> Walk:
    from ansible._internal._templating._utils import Omit

    templar = Templar(loader=DataLoader())
    found = walker(
        {"omit": Omit, "ansible_facts": {"gpu": "of an old run"}, **trusted(outside)}, templar, MODULES, host
    )
    found.through(roles)
    return found


FACTS = """
- name: Facts
  x.y.facts: {timeout: "{{ given }}"}
  become: true
- name: Decide
  include_tasks.is.foreign: preflight.yml
  when: ansible_facts.gpu != 'fine'
"""
SERVICE = """
- name: Service
  x.y.service: {name: "{{ name_given | default(omit) }}", port: 1}
  become: true
  register: service_result
"""


def test_all_is_asked_at_once_and_conditions_are_looked_at_afterwards() -> None:
    host = Host(facts={"ansible_facts": {"gpu": "fine"}}, service={"msg": "ok"})
    found = walk([role(FACTS), role(SERVICE)], host, name_given="n")
    assert host.exchanges == [[("facts", {"timeout": 1}), ("service", {"name": "n", "port": 1})]]
    assert found.registered == {"service_result": {"changed": False, "msg": "ok"}}
    assert found.facts == {"gpu": "fine"}


def test_what_is_omitted_is_not_asked() -> None:
    host = Host()
    walk([role(SERVICE)], host)
    assert host.exchanges == [[("service", {"port": 1})]]


def test_a_task_with_something_to_do_decides_for_the_role() -> None:
    with pytest.raises(Undecided, match="the task Decide has something to do"):
        walk([role(FACTS), role(SERVICE)], Host(facts={"ansible_facts": {"gpu": "broken"}}))


@pytest.mark.parametrize(
    "indirect", ["{{ ansible_facts.gpu }}", "{{ own }}", "{{ of_the_role }}", "{{ given_port | int }}"]
)
def test_what_depends_on_an_answer_is_asked_after_it(indirect: str) -> None:
    host = Host(facts={"ansible_facts": {"gpu": "fine"}})
    later = SERVICE.replace("port: 1", 'port: "%s"' % indirect)
    outside = {"own": "{{ ansible_facts.gpu }}", "given_port": "{{ 7 if own == 'fine' else 8 }}"}
    walk([role(FACTS), role(later, {"of_the_role": "{{ own }}"})], host, **outside)
    assert [[name for name, _arguments in one] for one in host.exchanges] == [["facts"], ["service"]]
    assert host.exchanges[1][0][1]["port"] in ("fine", 7)


def test_a_default_does_not_stand_in_for_an_answer_that_is_still_to_come() -> None:
    tasks = (
        SERVICE
        + """
- name: Model
  x.y.model: {path: "{{ service_result.path | default('none') }}"}
  become: true
  when: service_result.path is defined
"""
    )
    host = Host(service={"path": "/there"})
    walk([role(tasks)], host)
    assert host.exchanges[1] == [("model", {"path": "/there"})]


def test_loops_blocks_and_defaults_of_modules() -> None:
    tasks = """
- name: Models
  x.y.model: {name: "{{ item.name }}", key: "{{ keys[item.name] | default(omit) }}"}
  vars: {keys: {a: 1}}
  become: true
  loop: "{{ models }}"
  loop_control: {label: "{{ item.name }}"}
  register: models_result
- name: Around
  when: given > 0
  become: true
  module_defaults:
    x.y.service: {port: "{{ given }}", paths: "{{ models_result.results | map(attribute='path') | list }}"}
  block:
    - name: Service
      x.y.service: {name: s}
    - name: Nothing
      x.y.model: {name: none}
      when: given > 1
      register: skipped_result
"""
    host = Host(model={"path": "/p"})
    found = walk([role(tasks)], host, models=[{"name": "a"}, {"name": "b"}])
    assert host.exchanges == [
        [("model", {"name": "a", "key": 1}), ("model", {"name": "b"})],
        [("service", {"port": 1, "paths": ["/p", "/p"], "name": "s"})],
    ]
    assert [one["item"]["name"] for one in found.registered["models_result"]["results"]] == ["a", "b"]
    assert found.registered["skipped_result"]["skipped"]


@pytest.mark.parametrize(
    "tasks, outside, why",
    [
        (SERVICE, {"name_given": "{{ hostvars['b'].x }}"}, "hostvars is known only when the role runs"),
        (SERVICE, {"name_given": "{{ ansible_play_hosts | first }}"}, "ansible_play_hosts is known only"),
        (SERVICE, {"name_given": "{{ lookup('vars', 'x') }}"}, "vars is known only"),
        (SERVICE.replace("become: true", "become: false"), {}, "Service runs without become"),
        (SERVICE + "  become_user: alice\n", {}, "Service has become_user"),
        (SERVICE + "  delegate_to: b\n", {}, "Service has delegate_to"),
        (SERVICE + "  vars: {name_given: mine}\n", {"name_given": "yours"}, "name_given, a variable of the role"),
        ("- name: X\n  a.b.command: ls\n", {}, "the task X has something to do"),
        ("- name: X\n  a.b.command: ls\n  when: given == 1\n", {}, "the task X has something to do"),
        ("- name: X\n  a.b.command: ls\n  loop: [1, 2]\n  when: item == 2\n", {}, "the task X has something to do"),
        ("- name: X\n  block: []\n  rescue: []\n", {}, "X has rescue"),
        ("- name: X\n  x.y.model: {}\n  loop: [1, 2]\n  when: item == 2\n  become: true\n", {}, "X leaves out 1"),
    ],
)
def test_what_cannot_be_known_is_left_to_the_role(tasks: str, outside: Dict[str, Any], why: str) -> None:
    with pytest.raises(Undecided, match=why):
        walk([role(tasks)], Host(), **outside)


def test_a_variable_of_the_role_that_is_set_elsewhere() -> None:
    with pytest.raises(Undecided, match="inner, a variable of the role"):
        walk([role(SERVICE, {"inner": "1"})], Host(), inner="2")


def test_what_never_runs_is_left_out() -> None:
    walk([role("- name: X\n  a.b.command: ls\n  tags: [never, x]\n")], Host())


@pytest.mark.parametrize(
    "injected, outside, sent",
    [
        (True, {}, "fine"),
        (True, {"gpu": "of an old run"}, "fine"),
        (True, {"gpu": "of the play"}, "of the play"),
        (False, {"gpu": "of the play"}, "of the play"),
    ],
)
def test_facts_as_variables(monkeypatch: pytest.MonkeyPatch, injected: bool, outside: Any, sent: str) -> None:
    monkeypatch.setattr(role_walk.constants.config, "get_config_value", {"INJECT_FACTS_AS_VARS": injected}.get)
    host = Host(facts={"ansible_facts": {"gpu": "fine"}})
    if not outside:
        outside = {"ansible_facts": {}}
    walk([role(FACTS), role(SERVICE.replace("port: 1", 'port: "{{ gpu }}"'))], host, **outside)
    assert host.exchanges[1] == [("service", {"port": sent})]


def test_the_names_of_a_role_are_those_that_ansible_sets() -> None:
    magic = role_walk.load("ollama").magic
    assert (magic["role_name"], magic["ansible_role_name"]) == ("ollama", "gpufleet.inference.ollama")


@pytest.mark.parametrize("name", ["nope", "../ollama", "ollama/tasks"])
def test_roles_of_others(name: str) -> None:
    with pytest.raises(Undecided):
        role_walk.load(name)


# --- the same as one task after the other


class Slow(Walk):
    """Each question is asked, and each condition looked at, before the next task; all arguments are templates."""

    _arguments = Walk._resolved

    def _tasks(self, tasks: Any, around: Any) -> None:
        for task in tasks:
            super()._tasks([task], around)
            if "block" not in task:
                self._flush()


NAMES = ("one", "two", "three")
VALUE = st.sampled_from(
    [
        "plain",
        "{{ ansible_facts.gpu | default('no facts') }}",
        *("{{ %s.msg | default('unknown') }}" % name for name in NAMES),
        *("{{ %s.skipped | default('ran') }}" % name for name in NAMES),
        "{{ inner }}",
        "{{ outer | default(omit) }}",
        "{{ outer }}",
        "{{ items_given }}",
        "{{ encrypted | default(omit) }}",
    ]
)
WHEN = st.sampled_from(
    [
        "given == 1",
        "given == 2",
        "ansible_facts.gpu == 'fine'",
        "ansible_facts.gpu != 'fine'",
        *("%s is defined" % name for name in NAMES),
        *("%s.skipped is defined" % name for name in NAMES),
        "inner == 'x'",
    ]
)


@st.composite
def a_task(draw: Any, depth: int = 1) -> Dict[str, Any]:
    task: Dict[str, Any] = {"name": "t"}
    if draw(st.booleans()):
        task["when"] = draw(st.lists(WHEN, max_size=2))
    if depth and draw(st.integers(0, 4)) == 0:
        return {**task, "become": True, "block": draw(st.lists(a_task(depth=0), min_size=1, max_size=2))}
    if draw(st.integers(0, 3)) == 0:
        task["a.b.command"] = "ls"
        task.setdefault("when", []).append(
            draw(st.sampled_from(["given == 2", *task["when"], "ansible_facts.gpu == 0"]))
        )
    else:
        task[draw(st.sampled_from(MODULES))] = {"a": draw(VALUE), "b": draw(VALUE)}
        task["become"] = True
        if draw(st.integers(0, 4)) == 0:
            task["loop"] = draw(st.sampled_from(["{{ items_given }}", [1, 2], []]))
            task.pop("when", None)
    if draw(st.booleans()):
        task["register"] = draw(st.sampled_from(NAMES))
    return task


def test_the_same_as_one_task_after_the_other() -> None:
    """Also which templates cannot be resolved, and whether a task has something to do."""

    def outcome(walker: Any, roles: Any, gpu: str, outside: Any) -> Any:
        host = Host(facts={"ansible_facts": {"gpu": gpu}})
        try:
            found = walk(roles, host, walker, **outside)
        except (AnsibleError, Undecided):
            return "undecided"
        asked = [question for exchange in host.exchanges for question in exchange]
        return asked, found.registered, found.facts

    decided: List[bool] = []

    @given(
        tasks=st.lists(st.lists(a_task(), max_size=5), min_size=1, max_size=2),
        inner=st.sampled_from(["x", "{{ one.msg | default('x') }}", "{{ ansible_facts.gpu }}"]),
        outside=st.fixed_dictionaries(
            {"items_given": st.sampled_from([[], ["i"], ["{{ given }}", {"a": "b"}]])},
            optional={
                "outer": st.sampled_from(["o", "{{ two.msg | default('none yet') }}"]),
                "given": st.integers(1, 2),
            },
        ),
        gpu=st.sampled_from(["fine", "broken"]),
    )
    @settings(max_examples=400, deadline=None)
    def agree(tasks: Any, inner: str, outside: Any, gpu: str) -> None:
        roles = [RoleTasks("ollama", {"given": 1}, trusted({"inner": inner}), trusted(one)) for one in tasks]
        fast, slow = (outcome(walker, roles, gpu, outside) for walker in (Walk, Slow))
        assert fast == slow or fast == "undecided"
        decided.append(fast != "undecided")

    agree()
    assert sum(decided) > len(decided) / 2, "else it proves little"
