# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import labels
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed


@pytest.fixture
def restorecon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`restorecon(on, script)` sets up a host; the file that it returns has the arguments of each call."""

    def host(on: bool = True, script: str = "") -> Path:
        program, kernel, calls = tmp_path / "restorecon", tmp_path / "enforce", tmp_path / "calls"
        program.write_text('#!/bin/sh\necho "$@" >>%s\n%s\n' % (calls, script))
        program.chmod(0o755)
        if on:
            kernel.write_text("1")
        monkeypatch.setattr(labels, "RESTORECON", str(program))
        monkeypatch.setattr(labels, "KERNEL", str(kernel))
        calls.touch()
        return calls

    return host


def test_the_labels_of_the_policy_are_set(restorecon: Any) -> None:
    calls = restorecon()
    labels.restore("/usr/local/lib/gpufleet/.x.part")
    assert calls.read_text() == "-R /usr/local/lib/gpufleet/.x.part\n"


def test_nothing_happens_where_selinux_is_off(restorecon: Any) -> None:
    calls = restorecon(on=False)
    labels.restore("/usr")
    assert calls.read_text() == ""


def test_nothing_happens_without_the_program(restorecon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    restorecon()
    monkeypatch.setattr(labels, "RESTORECON", "/nonexistent/restorecon")
    labels.restore("/usr")


def test_a_refusal_is_reported(restorecon: Any) -> None:
    restorecon(script="echo 'Could not set context: Operation not supported' >&2; exit 255")
    with pytest.raises(Failed, match="restorecon cannot label /usr: Could not set context: Operation not supported"):
        labels.restore("/usr")


def test_one_that_hangs_is_ended(restorecon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "LIMIT", 0.5)
    restorecon(script="sleep 60")
    with pytest.raises(Failed, match="restorecon cannot label /usr: it did not end within"):
        labels.restore("/usr")
