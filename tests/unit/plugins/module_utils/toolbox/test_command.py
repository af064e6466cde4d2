# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A command ends in time, with everything it has started, and with the run that waits for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.command import status_of


def run(script: str, limit: float = 60) -> object:
    return status_of(["/bin/sh", "-c", script], limit, environment={"PATH": "/usr/bin:/bin"})


def ended(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_how_it_ends(tmp_path: Path) -> None:
    assert run("exit 3") == 3 and run("kill $$") == -signal.SIGTERM
    assert run("sleep 60", 0.2) is None
    with pytest.raises(FileNotFoundError):
        status_of(["/nosuch"], 1, environment={})


def test_what_it_gets_and_where_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of root")
    with open(tmp_path / "said", "w+b") as said:
        words = ["/bin/sh", "-c", "pwd; echo $A $SECRET; cat; echo wrong >&2"]
        assert status_of(words, 60, environment={"A": "b", "PATH": "/bin"}, folder="/tmp", output=said) == 0
        assert status_of(words[:2] + ["echo no; echo bad >&2"], 60, environment={}, errors=said) == 0
    assert (tmp_path / "said").read_text() == "/tmp\nb\nwrong\nbad\n"


@pytest.mark.parametrize("script, limit", [("sleep 600 & echo $! >%s", 60), ("sleep 600 & echo $! >%s; wait", 0.5)])
def test_what_it_has_started_ends_with_it(tmp_path: Path, script: str, limit: float) -> None:
    run(script % (tmp_path / "pid"), limit)
    pid = (tmp_path / "pid").read_text().strip()
    until(lambda: ended(pid))


def test_it_ends_with_a_run_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    runner = os.fork()
    if not runner:
        try:
            run("echo $$ >%s; exec sleep 600" % file)
        finally:
            os._exit(0)
    pid = until(lambda: file.exists() and file.read_text().strip())
    assert not ended(pid)
    os.kill(runner, signal.SIGKILL)
    os.waitpid(runner, 0)
    until(lambda: ended(pid))
