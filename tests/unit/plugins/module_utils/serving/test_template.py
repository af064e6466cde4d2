# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit template of an engine's instances."""

from __future__ import annotations

import os

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Outcome
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import template
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.template import TemplateStep, text

NAME = "vllm@.service"
TEXT = "[Service]\nExecStart=/bin/false\n"


def test_the_template_is_written_where_there_is_none_and_undone(tmp_path):
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    step = TemplateStep(NAME, TEXT, str(tmp_path))
    path = folder / "vllm@.service"
    assert step.needed() and not step.restarts
    assert step.diff() == {"before": "", "after": "# %s\n%s" % (path, TEXT)}
    before = os.umask(0o077)
    try:
        step.apply()
    finally:
        os.umask(before)
    assert os.listdir(folder) == ["vllm@.service"] and not TemplateStep(NAME, TEXT, str(tmp_path)).needed()
    assert path.read_text() == TEXT and path.stat().st_mode & 0o777 == 0o644
    TemplateStep(NAME, TEXT, str(tmp_path)).undo()
    assert path.exists(), "which that one has not written"
    step.undo()
    assert os.listdir(folder) == []
    step.undo()
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/system/vllm@.service").write_text("by another package")
    assert not TemplateStep(NAME, TEXT, str(tmp_path)).needed()


def test_the_text_of_a_template():
    lines = text("llama.cpp server", "LimitMEMLOCK=infinity").splitlines()
    assert lines[1:3] == ["[Unit]", "Description=llama.cpp server, instance %i"]
    begin = lines.index("[Service]")
    assert lines[begin + 1 : begin + 6] == [
        "ExecStart=/bin/false",
        "Restart=always",
        "RestartSec=5",
        "LimitMEMLOCK=infinity",
        "",
    ]
    assert lines[-1] == "WantedBy=multi-user.target" and max(map(len, lines)) <= 120


class OneUnit:
    """A host of which one unit is asked for."""

    def __init__(self, root, load_state):
        self.root, self.load_state = str(root), load_state

    def read(self, path):
        try:
            with open(self.root + path, "rb") as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def show(self, _name):
        assert self.load_state, "it need not be asked"
        return {"LoadState": self.load_state}

    def reload(self):
        pass


@pytest.fixture
def leave(tmp_path, monkeypatch):
    """`leave(load_state, check)` removes own.service; `leave.change` is what the convergence was given."""

    def converge(change, *, check_mode, system):
        run.change = change
        return Outcome()

    def run(load_state, check=False):
        system = OneUnit(tmp_path, load_state)
        return template.leave("own.service", TEXT, ["/etc/own.conf"], system, check, ["/var/lib/own"])

    monkeypatch.setattr(template.convergence, "converge", converge)
    return run


def test_a_unit_leaves_with_all_it_has(leave, tmp_path):
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "etc/systemd/system/own.service").write_text(TEXT)
    (tmp_path / "var/lib/own").mkdir(parents=True)
    (tmp_path / "var/lib/own/state").write_text("x")
    gone = ["remove /etc/systemd/system/own.service", "remove /var/lib/own"]
    checked = leave("loaded", check=True)
    assert checked["planned"] == gone and (tmp_path / "var/lib/own/state").exists()
    assert leave("loaded")["planned"] == gone
    assert (leave.change.state, leave.change.started, leave.change.enabled) == ("present", False, False)
    assert leave.change.files == {"/etc/own.conf": None}
    assert not (tmp_path / "var/lib/own").exists() and not list((tmp_path / "etc/systemd/system").iterdir())
    again = leave("")
    assert not again["changed"] and again["msg"] == "own.service: not there"


def test_what_a_killed_removal_has_left_goes_with_the_next_one(leave, tmp_path):
    (tmp_path / "var/lib/own").mkdir(parents=True)
    result = leave("not-found")
    assert result["changed"] and result["planned"] == ["remove /var/lib/own"] and leave.change.state == "absent"
    assert not (tmp_path / "var/lib/own").exists() and not leave("")["changed"]
