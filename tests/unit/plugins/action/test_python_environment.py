# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin sends wheels to hosts that ask for them, and to no other."""

from __future__ import annotations

import os
import tarfile

import pytest
from ansible.errors import AnsibleActionFail

from ansible_collections.gpufleet.inference.plugins.action import python_environment


@pytest.fixture
def wheels(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("torch-2-py3-none-any.whl", "numpy-2-py3-none-any.whl", "notes.txt"):
        (folder / name).write_text(name)
    return str(folder)


@pytest.fixture
def act(sending, monkeypatch):
    """`act.sent` has the names in what was sent."""

    def kept(local, remote):
        with tarfile.open(local) as tar:
            return remote, tar.getnames()

    monkeypatch.setattr("ansible.constants.DEFAULT_LOCAL_TMP", None)
    act = sending(python_environment)
    act.kept = kept
    return act


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
    assert act({"wheels": wheels, "engine": "torch"}, [{"needs": [wheels]}, {"changed": True}])["changed"]
    assert act.sent == [("/tmp/a/wheels.tar", ["numpy-2-py3-none-any.whl", "torch-2-py3-none-any.whl"])]
    assert act.calls[1] == {"wheels": "/tmp/a/wheels.tar", "remote_src": True, "engine": "torch"}


def test_a_failure_is_not_followed_by_a_transfer(act, wheels):
    assert act({"wheels": wheels}, [{"failed": True, "needs": [wheels]}])["failed"]
    assert act.sent == []


def test_a_directory_without_wheels(act, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(AnsibleActionFail, match="is not a directory with wheels in it"):
            act({"wheels": str(path)}, [])


def test_in_the_background_nothing_can_be_sent(act, wheels):
    with pytest.raises(AnsibleActionFail, match="cannot be sent in the background"):
        act({"wheels": wheels}, [], background=60)
    assert act.asked == act.calls == []


def test_what_is_no_file_is_not_sent(act, wheels):
    os.mkfifo(wheels + "/evil-1-py3-none-any.whl")
    with pytest.raises(AnsibleActionFail, match="evil-1-py3-none-any.whl is not a file"):
        act({"wheels": wheels}, [{"needs": [wheels]}])


def test_a_link_is_sent_as_the_file_that_it_leads_to(act, wheels, tmp_path):
    (tmp_path / "true.whl").write_text("true")
    os.symlink(tmp_path / "true.whl", wheels + "/linked-1-py3-none-any.whl")
    seen = []

    def kept(local, remote):
        with tarfile.open(local) as tar:
            seen.extend((member.name, member.isfile(), member.uid, member.uname, member.mode) for member in tar)

    act.kept = kept
    act({"wheels": wheels}, [{"needs": [wheels]}, {}])
    assert ("linked-1-py3-none-any.whl", True, 0, "", 0o644) in seen
    assert {entry[1:] for entry in seen} == {(True, 0, "", 0o644)}


@pytest.mark.parametrize("needs", [["/etc"], ["{wheels}", "{wheels}/.."], [7], "/etc", {"a": 1}])
def test_a_host_does_not_choose_among_the_folders_of_the_controller(act, wheels, needs):
    if isinstance(needs, list):
        needs = [one.format(wheels=wheels) if isinstance(one, str) else one for one in needs]
    with pytest.raises(AnsibleActionFail, match="the host asks for .* nothing was sent"):
        act({"wheels": wheels}, [{"needs": needs}])
    assert act.sent == []
