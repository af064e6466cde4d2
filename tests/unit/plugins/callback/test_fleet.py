# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run prints with the callback, by Ansible itself: in a pipe, and in a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

ROOT = Path(__file__).resolve().parents[4]
TOOL = str(Path(sys.executable).with_name("ansible-playbook"))
ROWS, COLUMNS = 20, 90
LAST = "gpu50"

Run = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Run:
    """`start(TASKS, WORD..., stdout=…)` runs tasks of the controller on fifty hosts."""

    def start_(tasks: List[Dict[str, Any]], *words: str, stdout: Any = subprocess.PIPE) -> Any:
        plays = [
            {
                "name": "Prepare",
                "hosts": "all",
                "gather_facts": False,
                "tasks": [{"ansible.builtin.set_fact": {"a": 1}}],
            },
            {"name": "Nobody", "hosts": "all:!all", "tasks": []},
            {"name": "Serve", "hosts": "all", "gather_facts": False, "serial": ["50%", 22, 3], "tasks": tasks},
        ]
        (tmp_path / "play.yml").write_text(json.dumps(plays))
        (tmp_path / "fleet.ini").write_text(
            "gpu[1:50] ansible_connection=local ansible_python_interpreter=%s\n" % sys.executable
        )
        own = {
            "ANSIBLE_CALLBACKS_ENABLED": "gpufleet.inference.summary",
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
            "ANSIBLE_STDOUT_CALLBACK": "gpufleet.inference.fleet",
            "ANSIBLE_FORKS": "5",
            "HOME": str(tmp_path),
            "TERM": "xterm",
        }
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "COLUMNS", "LINES"))
        }
        command = [TOOL, "-i", "fleet.ini", "play.yml", *words]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**kept, **own},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
        )

    return start_


def piped(process: Any) -> str:
    printed: str = process.communicate()[0].decode()
    return printed


QUIET = [{"name": "Configure", "ansible.builtin.set_fact": {"b": "{{ item }}"}, "loop": [1, 2]}]
FAILING = {"ansible.builtin.fail": {"msg": "gpu_lost: GPU 3 does not answer"}, "when": "inventory_hostname == 'gpu7'"}


def test_a_run_on_fifty_hosts_prints_a_few_lines_into_a_file(start: Run) -> None:
    process = start(QUIET)
    lines = [re.sub(r"^\d\d:\d\d:\d\d", "TIME", line) for line in piped(process).splitlines() if line]
    assert process.returncode == 0
    assert lines == ["TIME  Prepare", "TIME  Serve", "TIME  gpu[1-50]: ok=2 changed=0"]


def test_a_failure_is_printed_whole_and_an_ignored_one_is_not(start: Run) -> None:
    process = start(
        [{**FAILING, "ignore_errors": True}, {**FAILING, "name": "Look at the GPUs"}], "--limit", "gpu7,gpu8"
    )
    printed = piped(process)
    assert process.returncode == 2
    assert re.findall(r"TASK \[(.*)\]", printed) == ["Look at the GPUs"] and printed.count("fatal: ") == 1
    assert re.search(r"fatal: \[gpu7\]: FAILED! => .*gpu_lost: GPU 3 does not answer", printed, re.DOTALL)
    assert re.search(r"gpu7: ok=2 changed=0 failed=1$", printed, re.MULTILINE)


def test_messages_for_people_and_diffs_are_printed(start: Run, tmp_path: Path) -> None:
    target = tmp_path / "unit"
    target.write_text("before\n")
    only = {"run_once": True}
    tasks = [
        {"ansible.builtin.debug": {"msg": "for a person"}, **only},
        {"ansible.builtin.copy": {"content": "after\n", "dest": str(target)}, **only},
    ]
    printed = piped(start(tasks, "--check", "--diff", "--limit", "gpu1,gpu2"))
    assert "for a person" in printed
    assert "-before\n+after" in printed and "changed: [gpu1]" in printed
    assert target.read_text() == "before\n"
    assert "+after" not in piped(start(tasks, "--check", "--limit", "gpu1,gpu2"))


def test_verbose_is_the_default_callback(start: Run) -> None:
    printed = piped(start(QUIET, "-v", "--limit", LAST))
    assert "TASK [Configure]" in printed and "ok: [gpu50]" in printed and "PLAY RECAP" in printed
    assert "\033[1;" not in printed


def test_a_terminal_keeps_its_last_lines_for_the_hosts(start: Run) -> None:
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = start([*QUIET, FAILING], stdout=terminal)
    os.close(terminal)
    read: List[bytes] = []
    while True:
        try:
            read.append(os.read(master, 65536))
        except OSError:  # the last process of the run has closed the terminal
            break
    os.close(master)
    printed = b"".join(read).decode()
    assert process.wait() == 2
    top = ROWS - ROWS // 3
    assert printed.count("\033[1;%dr" % top) == 1, "one pair of margins for the whole run"
    rows = [int(row) for row in re.findall(r"\033\[(\d+);1H", printed)]
    assert rows and min(rows) == top + 1 and max(rows) <= ROWS
    drawn = re.findall(r"\033\[\d+;1H\033\[2K\033\[2m([^\033]*)", printed)
    assert all(len(line) < COLUMNS for line in drawn)
    assert any(re.match(r"Serve · .* · \d+ of \d+ hosts at work", line) for line in drawn)
    pictures = re.findall(r"\0337((?:\033\[\d+;1H[^\033]*\033\[2K.*?\033\[0m)+)\0338", printed)
    assert pictures and {picture.count(";1H") for picture in pictures} == {ROWS - top}, (
        "each replaces the last one whole"
    )
    end = printed.rpartition("\033[r")[2]
    assert "gpu7: ok=" in end and ";1H" not in end, "nothing is drawn once the margins are given back"
