# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin sends wheels to hosts that ask for them, and to no other."""

from __future__ import annotations

import tarfile
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.inference.plugins.action import python_environment
from ansible_collections.gpufleet.inference.plugins.plugin_utils.ask import Asking


@pytest.fixture
def wheels(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("torch-2-py3-none-any.whl", "numpy-2-py3-none-any.whl", "notes.txt"):
        (folder / name).write_text(name)
    return str(folder)


@pytest.fixture
def act(monkeypatch):
    """`act(arguments, answers)` runs the plugin; `act.calls` are the module's, `act.sent` the names in what was sent."""

    def run(arguments, answers, background=0):
        plugin = python_environment.ActionModule.__new__(python_environment.ActionModule)
        plugin._task = SimpleNamespace(args=arguments, async_val=background)
        shell = SimpleNamespace(tmpdir="/tmp/a", join_path=lambda *parts: "/".join(parts))
        plugin._connection = SimpleNamespace(_shell=shell)
        run.calls, run.sent = [], []
        answers = iter(answers)

        def execute(module_name, module_args, task_vars, wrap_async):
            assert module_name == "gpufleet.inference.python_environment"
            run.calls.append(dict(module_args))
            return next(answers)

        def transfer(local, remote):
            with tarfile.open(local) as tar:
                run.sent.append((remote, tar.getnames()))

        plugin._execute_module = execute
        plugin._find_needle = lambda folder, needle: needle
        plugin._make_tmp_path = lambda: "/tmp/a"
        plugin._transfer_file = transfer
        plugin._fixup_perms2 = lambda paths: None
        return plugin.run(task_vars={})

    run.answer, run.asked = None, []
    monkeypatch.setattr(Asking, "ask", lambda self, arguments, task_vars: run.asked.append(arguments) or run.answer)
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr("ansible.constants.DEFAULT_LOCAL_TMP", None)
    return run


@pytest.mark.parametrize("arguments", [{"engine": "torch"}, {"wheels": "/srv/wheels", "remote_src": True}], ids=str)
def test_without_wheels_on_the_controller_it_is_one_call(act, arguments):
    assert act(arguments, [{"changed": False}]) == {"changed": False}
    assert (act.calls, act.sent) == ([arguments], [])


def test_a_host_that_is_as_declared_is_sent_nothing(act, wheels):
    act.answer = {"changed": False, "msg": "ok"}
    assert act({"wheels": wheels}, []) == {"changed": False, "msg": "ok"}
    assert act.asked == [{"wheels": wheels}] and act.calls == act.sent == []


def test_a_host_that_has_the_environment_gets_nothing(act, wheels):
    act({"wheels": wheels}, [{"changed": False}])
    assert (act.calls, act.sent) == ([{"wheels": wheels}], [])


def test_a_host_that_asks_gets_them_and_is_called_again(act, wheels):
    assert act({"wheels": wheels, "engine": "torch"}, [{"wheels_needed": True}, {"changed": True}])["changed"]
    assert act.sent == [("/tmp/a/wheels.tar", ["numpy-2-py3-none-any.whl", "torch-2-py3-none-any.whl"])]
    assert act.calls[1] == {"wheels": "/tmp/a/wheels.tar", "remote_src": True, "engine": "torch"}


def test_a_failure_is_not_followed_by_a_transfer(act, wheels):
    assert act({"wheels": wheels}, [{"failed": True, "wheels_needed": True}])["failed"]
    assert act.sent == []


def test_a_directory_without_wheels(act, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(AnsibleActionFail, match="is no directory with wheels in it"):
            act({"wheels": str(path)}, [])


def test_in_the_background_nothing_can_be_sent(act, wheels):
    with pytest.raises(AnsibleActionFail, match="cannot be sent in the background"):
        act({"wheels": wheels}, [{"wheels_needed": True}], background=60)
