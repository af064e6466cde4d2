# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What others than root may put where a unit's files point to: every run ends, and shows nothing of theirs or root's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import run as convergence
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Change, ServiceError
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd import manager

SECRET = "the-real-secret-of-others"


def put(path: Path, what: Callable[[Path], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    what(path)


@pytest.fixture
def foreign(system: Any) -> Path:
    """An EnvironmentFile= that somebody's drop-in names, in a user's folder."""
    content = "[Service]\nEnvironmentFile=-/home/u/env\n"
    system.write("/etc/systemd/system/ollama.service.d/10-site.conf", content)
    system.reload()
    system.calls.clear()
    return Path(system.root + "/home/u/env")


ATTACKS: Dict[str, Callable[[Path], Any]] = {
    "a named pipe": lambda path: os.mkfifo(path),
    "endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path),
    "terabytes": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "a long line": lambda path: path.write_bytes(b"X=" + b"x" * (manager.LARGEST_ENVIRONMENT_FILE - 10)),
    "lines without end": lambda path: path.write_bytes(b"a=\n" * 80000),
    "bytes that are no text": lambda path: path.write_bytes(bytes(range(1, 256)) * 100),
    "NUL": lambda path: path.write_bytes(b"A=\0"),
}


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_run_ends_whatever_lies_there(
    system: Any, foreign: Path, attack: Callable[[Path], Any], check_mode: bool
) -> None:
    put(foreign, attack)
    system.forbidden = check_mode
    change = Change("ollama.service", environment={"A": "1"}, started=True, settle=0)
    outcome = convergence.converge(change, check_mode=check_mode, system=system)
    assert outcome.changed and not outcome.shadowed
    assert len(json.dumps(outcome.as_result())) < 10000


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_secret_that_it_leads_to_is_shown_nowhere(
    system: Any, foreign: Path, tmp_path: Path, check_mode: bool
) -> None:
    """systemd follows the link, so the value counts; that it does is all that is told."""
    root = tmp_path / "root-only"
    root.write_text("TOKEN=%s\nOTHER=%s\n" % (SECRET, SECRET))
    root.chmod(0o600)
    put(foreign, lambda path: path.symlink_to(root))
    change = Change("ollama.service", environment={"A": "1"}, secret_environment={"TOKEN": "mine"})
    try:
        outcome = convergence.converge(change, check_mode=check_mode, system=system)
        said = ""
    except ServiceError as error:
        outcome, said = error.outcome, error.message
    assert SECRET not in said + json.dumps(outcome.as_result()) + repr(outcome)
