# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A converged host gives the module's result without a module; any other one is sent the module."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.inference.plugins.action import gpu_facts as gpu_facts_action
from ansible_collections.gpufleet.inference.plugins.action import (
    ollama_model,
    ollama_service,
    systemd_override,
    torchrun_job,
    vllm_service,
)
from ansible_collections.gpufleet.inference.plugins.modules import gpu_facts
from ansible_collections.gpufleet.inference.plugins.plugin_utils import check_first, question

SPEC = {
    "word": {"type": "str", "default": "hello"},
    "count": {"type": "int"},
    "key": {"type": "str", "no_log": True},
    "folder": {"type": "path"},
}
LIBRARY = """
from . import other

def bring(params, check_mode, warn):
    return other.bring(params, check_mode, warn)
"""
OTHER = """
class Differs(Exception): pass
class Refused(Exception): pass

def bring(params, check_mode, warn):
    from .deeper import late
    if params["word"] == "fail":
        raise RuntimeError("as asked")
    if params["word"] == "differ":
        raise Differs("a file is missing")
    if params["word"] == "refuse":
        raise Refused("no such GPU, says " + str(params["key"]))
    if params["word"] == "exit":
        raise SystemExit(0)
    if params["word"] == "source":
        from ..programs import tool
        return {"changed": False, "msg": tool.__loader__.get_source(tool.__name__)}
    if params["word"] == "warn":
        warn("look out")
    return {"changed": params["word"] == "change", "msg": late.NAME, "params": dict(params), "check": check_mode}
"""


@pytest.fixture
def act(monkeypatch, tmp_path):
    """`act(arguments)` runs such an action, the program in a Python of its own; see `.commands`, `.sent`, `.shown`."""
    (tmp_path / "room/deeper").mkdir(parents=True)
    (tmp_path / "room/main.py").write_text(LIBRARY)
    (tmp_path / "room/other.py").write_text(OTHER)
    (tmp_path / "room/deeper/late.py").write_text("NAME = 'Größe'\n")
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs/tool.py").write_text("raise SystemExit('Größe')\n")
    monkeypatch.setattr(question, "FOLDER", tmp_path)
    monkeypatch.setattr(question, "KEPT", str(tmp_path / "kept"))  # below a folder of all users: not trusted

    class Action(check_first.CheckFirstAction):
        MODULE = "gpufleet.inference.example"
        FUNCTION = question.RemoteFunction("room.main", "bring", SPEC, facts=("gpu",))

    def template(value):
        return (
            value.replace("{{ here }}", sys.executable).replace("{{ no }}", "no") if isinstance(value, str) else value
        )

    def run(arguments, variables=None, check=False, background=0, delegate=None, pipelining=True, noise="",
            become=None, change=None, cwd=None, no_log=False):  # fmt: skip
        plugin = Action.__new__(Action)
        plugin._task = SimpleNamespace(
            get_path=lambda: "/play.yml:1",
            args=arguments,
            async_val=background,
            delegate_to=delegate,
            check_mode=check,
            no_log=no_log,
        )
        plugin._templar = SimpleNamespace(template=template)
        plugin._connection = SimpleNamespace(has_pipelining=pipelining, become=become)
        plugin._compute_environment_string = lambda: "LANG=C"
        run.commands, run.sent, run.shown, run.warned = [], [], [], []

        def execute(command, in_data):
            run.commands.append(command)
            done = subprocess.run(["sh", "-c", command], input=in_data, capture_output=True, check=False, cwd=cwd)
            said = noise + done.stdout.decode()
            return {"rc": done.returncode, "stdout": change(said) if change else said, "stderr": done.stderr.decode()}

        plugin._low_level_execute_command = execute
        plugin._execute_module = lambda **told: run.sent.append(told) or {"changed": True, "msg": "by the module"}
        return plugin.run(task_vars=variables or {"ansible_python_interpreter": "{{ here }}"})

    monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(check_first.display, "vvv", lambda text, host: run.shown.append(text))
    monkeypatch.setattr(check_first.display, "warning", lambda text: run.warned.append(text))
    return run


def saying(text):
    """A host that says this instead of its answer, after the mark that the program was given."""
    return lambda said: said[: said.index(" ") + 1] + text + "\n"


def answering(text):
    """A host whose only answer is this one."""
    return saying("[%s]" % text)


def converged(result):
    """The text of an answer with this result."""
    return '{"state": "converged", "why": "", "result": %s}' % result


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 1000000,
        '{"a":' * 100000,
        "9" * 5000,
        "[]",
        "[[]]",
        "{}",
        converged('{"changed": false}'),
        "[%s, %s]" % (converged('{"changed": false}'), converged('{"changed": false}')),
    ],
)
def test_an_odd_text_is_no_answer(act, text):
    assert act({}, change=saying(text))["msg"] == "by the module"
    assert act.shown[0].startswith("the module is sent, as the answer of the host is: silent; its answer")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        '"text"',
        "{}",
        '{"changed": false}',
        '{"state": "converged", "result": {"changed": false}}',
        '{"state": "converged", "why": "", "result": {"changed": false}, "more": 1}',
        '{"state": "converged", "why": 1, "result": {"changed": false}}',
        '{"state": "silent", "why": "", "result": {"changed": false}}',
        '{"state": ["converged"], "why": "", "result": {"changed": false}}',
        '{"state": null, "why": "", "result": {"changed": false}}',
        '{"state": "failed", "why": "", "result": {"changed": false}}',
        converged('{"changed": true}'),
        converged("null"),
        converged("[]"),
        converged('"text"'),
        converged("{}"),
        converged('{"changed": "no"}'),
        converged('{"changed": null}'),
        converged('{"changed": false, "ansible_facts": []}'),
        converged('{"changed": false, "warnings": "w"}'),
        converged('{"changed": false, "failed": true}'),
        converged('{"changed": false, "unreachable": true}'),
        converged('{"changed": false, "results": []}'),
        converged('{"changed": false, "add_host": {"host_name": "x"}}'),
        converged('{"changed": false, "deprecations": [1]}'),
        converged('{"changed": false, "exception": "x"}'),
        converged('{"changed": false, "ansible_job_id": "../x"}'),
        converged('{"changed": false, "msg": "%s"}' % ("x" * question.LONGEST)),
    ],
)
def test_an_odd_answer_is_none(act, text):
    assert act({}, change=answering(text))["msg"] == "by the module"
    assert act.shown[0].startswith("the module is sent, as the answer of the host is: silent; its answer")


def test_the_right_form_is_an_answer():
    """By which each of the odd ones is odd for its own reason."""
    one = converged('{"changed": false, "msg": "x"}')
    answers = question._answers({"stdout": "mark [%s, %s]" % (one, one)}, "mark ", [(), ()])
    assert answers == 2 * [("converged", "", {"changed": False, "msg": "x"})]


def test_every_call_is_answered_unless_an_earlier_one_is_not_converged():
    one, other = converged('{"changed": false}'), '{"state": "refused", "why": "no", "result": null}'
    assert question._answers({"stdout": "mark [%s]" % one}, "mark ", [(), ()])[0].state == "silent"
    assert question._answers({"stdout": "mark [%s, %s]" % (one, other)}, "mark ", [(), (), ()]) == [
        ("converged", "", {"changed": False}),
        ("refused", "no", None),
    ]


def test_a_host_says_nothing_that_is_the_controllers(act):
    said = (
        '{"changed": false, "invocation": "x", "_ansible_no_log": false, "warnings": ["\\u001b[2Jlook\\u009b2J", 1, {}],'
        ' "discovered_interpreter_python": "/evil", "ansible_facts": {"gpu": 1, "gateway_address": "/evil",'
        ' "discovered_interpreter_python": "/evil", "ansible_discovered_interpreter_python": "/evil"}}'
    )
    result = act({}, change=answering(converged(said)))
    assert result.pop("invocation")["module_args"]["word"] == "hello"
    assert result == {"changed": False, "warnings": ["look"], "ansible_facts": {"gpu": 1}}


def test_a_function_that_finds_no_facts_has_none_believed():
    said = converged('{"changed": false, "ansible_facts": {"gpu": 1, "gateway_address": "192.0.2.1"}}')
    assert question._answers({"stdout": "mark [%s]" % said}, "mark ", [()]) == [("converged", "", {"changed": False})]


@pytest.mark.parametrize(
    "odd", ['"msg": 1', '"msg": null', '"instances": []', '"instances": {"a": "ok"}', '"instances": {"a": [1]}']
)
def test_an_answer_of_another_form_counts_as_none(odd):
    said = converged('{"changed": false, %s}' % odd)
    assert question._answers({"stdout": "mark [%s]" % said}, "mark ", [()]) == [
        ("silent", "its answer has another form", None)
    ]


def test_no_start_file_can_answer(act):
    """It does not know the word behind the mark, which is another one each time."""
    answer = "[%s]" % converged('{"changed": false, "msg": "forged"}')
    forged = "gpufleet-answer %s\ngpufleet-answer-%%s %s\n" % (answer, answer)
    marks = set()

    def change(said):
        marks.add(said.splitlines()[-1].split()[0])
        return forged + said + forged

    for _time in range(2):
        assert act({}, change=change)["msg"] == "Größe"
    assert len(marks) == 4, "the short question and the long one, twice"


@pytest.mark.parametrize(
    "module",
    ["__future__", "base64", "encodings", "importlib", "json", "pynvml", "sitecustomize", "sys", "typing", "zlib"],
)
def test_nothing_is_imported_from_where_the_connection_starts(act, tmp_path, module):
    home = tmp_path / "home"
    home.mkdir()
    (home / (module + ".py")).write_text("import os; open('%s', 'w'); os._exit(1)" % (home / "owned"))
    assert act({}, cwd=home)["msg"] == "Größe"
    assert not (home / "owned").exists()


def test_the_same_packages_as_the_module_sees(act, monkeypatch, tmp_path):
    """pip install --user, and what the task sets in its environment."""
    version = "python%d.%d" % sys.version_info[:2]
    own = tmp_path / "lib" / version / "site-packages"
    own.mkdir(parents=True)
    (own / "of_the_user.py").write_text("")
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path))
    monkeypatch.delenv("PYTHONNOUSERSITE", raising=False)
    (tmp_path / "room/other.py").write_text(
        "def bring(params, check_mode, warn):\n    import of_the_user\n    return dict(changed=False, msg='found')"
    )
    monkeypatch.setattr(question, "FOLDER", tmp_path)
    asked = question.Question([(question.RemoteFunction("room.main", "bring", SPEC), {})])
    done = subprocess.run(
        [sys.base_prefix + "/bin/python3", "-"], input=asked.script(), capture_output=True, check=False
    )
    assert b'"msg": "found"' in done.stdout, done.stderr


def become(name, **more):
    return SimpleNamespace(**{"name": name, "pipelining": True, **more})


@pytest.mark.parametrize(
    "plugin, asked",
    [
        (None, True),
        (become("sudo"), True),
        (become("ansible.builtin.sudo"), True),
        (become("su", pipelining=False), True),
        (become("community.general.doas"), True),
        (become("community.general.machinectl", pipelining=False, require_tty=True), False),
        (become("community.general.machinectl"), False),
        (become("some.other.one", pipelining=False), False),
        (become("some.other.one", require_tty=True), False),
    ],
)
def test_what_cannot_be_piped_through_is_not_asked(act, plugin, asked):
    assert act({}, become=plugin)["msg"] == ("Größe" if asked else "by the module")
    assert len(act.commands) == 2 * asked


def test_an_interpreter_with_a_blank_in_its_path(act, tmp_path):
    (tmp_path / "my python").symlink_to(sys.executable)
    assert act({}, {"ansible_python_interpreter": str(tmp_path / "my python")})["msg"] == "Größe"
    assert act({}, {"ansible_python_interpreter": "python3; echo owned >&2"})["msg"] == "by the module"


def test_why_there_is_no_answer_is_safe_for_the_terminal_and_not_shown_of_a_secret_task(act):
    python = "/no\x1b[2J/such"
    act({}, {"ansible_python_interpreter": python})
    assert "silent; " in act.shown[0] and "such" in act.shown[0] and "\x1b" not in act.shown[0]
    act({}, {"ansible_python_interpreter": python}, no_log=True)
    assert act.shown == ["the module is sent, as the answer of the host is: silent; "]


@pytest.mark.parametrize(
    "word, shown",
    [
        ("change", "differs; Größe"),
        ("differ", "differs; a file is missing"),
        ("refuse", "refused; no such GPU, says "),
        ("fail", "failed; Traceback (most recent call last)"),
        ("exit", "silent; "),
    ],
)
def test_why_the_module_is_sent(act, word, shown):
    assert act({"word": word, "key": "sesame"})["msg"] == "by the module"
    assert act.shown[0].startswith("the module is sent, as the answer of the host is: " + shown)
    assert "sesame" not in act.shown[0] and (word != "fail" or "RuntimeError: as asked" in act.shown[0])
    act({"word": word}, no_log=True)
    assert act.shown == ["the module is sent, as the answer of the host is: %s; " % shown.partition(";")[0]]


def test_in_check_mode_the_module_says_what_the_check_did_not_work_out(act):
    assert act({"word": "differ"}, check=True)["msg"] == "by the module"


@pytest.mark.parametrize("value, asked", [(False, 0), ("false", 0), ("{{ no }}", 0), (True, 1), ("yes", 1)])
def test_the_check_can_be_left_out(act, value, asked):
    variables = {"ansible_python_interpreter": "{{ here }}", check_first.OPT_OUT: value}
    assert act({}, variables)["msg"] == ("Größe" if asked else "by the module")
    assert len(act.commands) == 2 * asked


def test_a_variable_that_is_nearly_a_roles_is_warned_of_without_a_check(act):
    root = Path(__file__).resolve().parents[4]
    variables = {"ansible_role_name": "gpufleet.inference.ollama", "role_path": str(root / "roles/ollama")}
    act({}, {**variables, "ollama_keepalive": "5m", check_first.OPT_OUT: False})
    assert len(act.warned) == 1 and "did you mean ollama_keep_alive?" in act.warned[0]


def test_as_declared_is_told_without_a_module(act):
    result = act({"count": "3"}, noise="Welcome\n")
    params = {"word": "hello", "count": 3, "key": None, "folder": None}
    assert result == {
        "changed": False,
        "msg": "Größe",
        "params": params,
        "check": True,
        "invocation": {"module_args": params},
    }
    assert act.sent == []
    assert act.commands == 2 * ["LANG=C %s -" % sys.executable], "the host had kept nothing"


def test_a_change_is_the_modules_work(act):
    assert act({"word": "change"})["msg"] == "by the module"
    assert act.sent == [
        {
            "module_name": "gpufleet.inference.example",
            "module_args": {"word": "change"},
            "task_vars": {"ansible_python_interpreter": "{{ here }}"},
            "wrap_async": 0,
        }
    ]


def test_in_check_mode_a_change_is_told_as_well(act):
    assert act({"word": "change"}, check=True)["changed"]
    assert act.sent == []


def test_warnings_are_told(act):
    assert act({"word": "warn"})["warnings"] == ["look out"]


def test_a_program_is_read_and_not_run(act):
    assert act({"word": "source"})["msg"] == "raise SystemExit('Größe')\n"


@pytest.mark.parametrize("arguments", [{"state": "joined"}, {"state": "finished"}, {"restart": True}])
def test_what_takes_its_time_is_not_asked(arguments):
    plugin = torchrun_job.ActionModule.__new__(torchrun_job.ActionModule)  # it could not ask
    assert plugin.checks_first({"name": "train", **arguments}, {}) is False


@pytest.mark.parametrize(
    "stderr, said",
    [
        (
            "\nbob is not in the sudoers file.\nSorry.\n",
            "bob is not in the sudoers file. Let this user become root by sudo",
        ),
        (
            "Sorry, user bob is not allowed to execute '/bin/sh' as root on a.",
            "Sorry, user bob is not allowed to execute",
        ),
        ("Traceback ...", "by the module"),
        (None, "by the module"),
    ],
)
def test_a_user_who_may_not_become_root(act, monkeypatch, stderr, said):
    failed = {"failed": True, "module_stderr": stderr, "msg": "by the module"}
    monkeypatch.setattr(check_first.CheckFirstAction, "send", lambda self, arguments, variables: dict(failed))
    assert act({"word": "fail"})["msg"].startswith(said)


@pytest.mark.parametrize("failed", [True, False])
def test_messages_name_the_variables_of_the_role(act, monkeypatch, tmp_path, failed):
    role = tmp_path / "example"
    for name, text in (
        ("meta/argument_specs.yml", "      example_the_word:\n        type: str\n"),
        ("tasks/main.yml", "- gpufleet.inference.example:\n    word: '{{ example_the_word | default(omit) }}'\n"),
    ):
        (role / name).parent.mkdir(parents=True)
        (role / name).write_text(text)
    said = {"failed": failed, "msg": "word: is odd", "exception": "of the old message"}
    monkeypatch.setattr(check_first.CheckFirstAction, "_found", lambda self, *words: dict(said))
    variables = {"ansible_role_name": "gpufleet.inference.example", "role_path": str(role)}
    assert act({}, variables=variables) == {"failed": failed, "msg": "example_the_word: is odd"}
    assert act({})["msg"] == "word: is odd", "a task of somebody else"


def test_secrets_are_masked(act):
    result = act({"key": "sesame"})
    assert "sesame" not in str(result) and result["params"]["key"] == "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
    assert "sesame" not in "".join(act.commands)


@pytest.mark.parametrize(
    "arguments, how, asked",
    [({"word": "fail"}, {}, 2), ({}, {"variables": {"ansible_python_interpreter": "/no/such/python"}}, 1)],
)
def test_what_goes_wrong_is_told_by_the_module(act, arguments, how, asked):
    assert act(arguments, **how)["msg"] == "by the module"
    assert len(act.commands) == asked


def test_a_host_that_lacks_the_sources_twice_is_sent_the_module(act):
    lacks = '{"state": "lacks", "why": "", "result": null}'
    assert act({}, change=answering(lacks))["msg"] == "by the module"
    assert len(act.commands) == 2


def test_in_check_mode_a_host_keeps_nothing(act, tmp_path):
    act({}, check=True)
    assert not (tmp_path / "kept").exists()
    act({})
    assert (tmp_path / "kept").exists() is (os.geteuid() == 0)


@pytest.mark.parametrize(
    "arguments, how",
    [
        ({"folder": "~/models"}, {}),
        ({"folder": "$HOME/models"}, {}),
        ({}, {"background": 60}),
        ({}, {"delegate": "other"}),
        ({}, {"pipelining": False}),
    ],
)
def test_nothing_is_asked_where_only_the_module_can_tell(act, arguments, how):
    assert act(arguments, **how)["msg"] == "by the module"
    assert act.commands == []


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"count": "many"}, "count is 'many'; expected a whole number"),
        ({"word": "a", "wrod": 1}, "wrod is not an option; did you mean word?"),
    ],
)
def test_wrong_input_ends_on_the_controller(act, arguments, sentence):
    with pytest.raises(AnsibleActionFail) as error:
        act(arguments)
    assert str(error.value) == sentence + " (nothing was changed)"
    assert act.commands == []


@pytest.mark.parametrize(
    "variables, python",
    [
        ({"ansible_python_interpreter": "/opt/python"}, "/opt/python"),
        ({"ansible_python_interpreter": "auto_silent"}, "python3"),
        (
            {"ansible_python_interpreter": "auto", "ansible_facts": {"discovered_interpreter_python": "/found"}},
            "/found",
        ),
    ],
)
def test_the_hosts_python(act, variables, python):
    act({}, variables)
    assert act.commands[0] == "LANG=C %s -" % python


@pytest.mark.parametrize("action", [gpu_facts_action, ollama_model, ollama_service, systemd_override, vllm_service])
def test_every_program_has_all_that_it_imports(action):
    """In a Python that has nothing of ours: every source is imported, and the function is there."""
    program, _call, packed = (
        question.Question([(action.ActionModule.FUNCTION, {})]).script().decode().rpartition("unpack")
    )
    program += """
import base64, json, zlib
_program, texts, [[module, function, _params]] = json.loads(zlib.decompress(base64.b64decode(%s[1])))
sys.meta_path.insert(0, Sources(texts))
for name in texts: __import__(name)
print(callable(getattr(sys.modules[module], function)))
""" % packed.strip().splitlines()[0]
    done = subprocess.run([sys.executable, "-I", "-S", "-"], input=program, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


@pytest.mark.parametrize("action", [gpu_facts_action, ollama_model, ollama_service, systemd_override, vllm_service])
def test_the_sources_are_those_that_a_parser_finds(action):
    """Imports within functions among them, which no import of the sources themselves would miss."""
    found = action.ActionModule.FUNCTION.sources
    for name, source in found.items():
        for node in ast.walk(ast.parse(source.text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                place = resolve_name("." * node.level + (node.module or ""), name.rpartition(".")[0])
                wanted = [place, *("%s.%s" % (place, alias.name) for alias in node.names)]
                there = [
                    one
                    for one in wanted
                    if question.FOLDER.joinpath(*one[len(question.ROOM) + 1 :].split(".")).with_suffix(".py").is_file()
                ]
                assert there and set(there) <= set(found), (name, wanted)


def test_a_script_carries_no_other_room(act):
    rooms = {name[len(question.ROOM) + 1 :].split(".")[0] for name in gpu_facts_action.ActionModule.FUNCTION.sources}
    assert rooms == {"gpu", "toolbox"}
    assert set(gpu_facts.argument_spec()) == {"expected_count", "timeout", "required", "venv"}
