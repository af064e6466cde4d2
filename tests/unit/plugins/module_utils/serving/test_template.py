# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit template of an engine's instances."""

from __future__ import annotations

import os

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
