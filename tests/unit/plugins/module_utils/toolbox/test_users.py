# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.users import (
    STRANGER,
    Ids,
    UserError,
    as_user,
    ids_of,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can work as somebody else")
USER = Ids(40404, 40405, [40406])


def test_it_has_the_ids_of_the_user_and_none_of_root() -> None:
    def ids() -> Any:
        return [*os.getresuid(), *os.getresgid(), *os.getgroups()]

    assert as_user(USER, ids) == [40404] * 3 + [40405] * 3 + [40406]
    assert os.geteuid() == 0


def test_it_can_do_what_the_user_can_and_no_more(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    with pytest.raises(PermissionError) as caught:
        as_user(USER, secret.read_text)
    assert caught.value.filename == str(secret)
    with pytest.raises(PermissionError):
        as_user(USER, lambda: os.setuid(0))


@pytest.mark.parametrize(
    "work, said",
    [
        (lambda: 1 / 0, "division by zero"),
        (lambda: os._exit(3), "ended without an answer"),
        (lambda: os.kill(os.getpid(), 9), "ended without an answer"),
        (lambda: object(), "not JSON serializable"),
    ],
    ids=["raises", "exits", "killed", "not data"],
)
def test_it_fails(work: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        as_user(USER, work)


def test_a_pipe_of_the_user_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    children, fork = [0], os.fork
    monkeypatch.setattr(os, "fork", lambda: children.append(fork()) or children[-1])
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be entered by root alone
        os.chown(folder, USER.uid, USER.gid)
        pipe = Path(folder) / "pipe"
        as_user(USER, lambda: os.mkfifo(pipe))
        with pytest.raises(UserError, match="longer than"):
            as_user(USER, pipe.read_text, limit=0.05)
    with pytest.raises(ChildProcessError):
        os.waitpid(children[-1], os.WNOHANG)  # it is gone; other tests may have children of theirs


def test_what_is_done_in_memory_is_lost() -> None:
    found: list = []
    as_user(USER, lambda: found.append(1))
    assert found == []


def test_root_by_name_and_nobody_by_none() -> None:
    assert ids_of("root") == ids_of("0") and ids_of("root").uid == 0  # type: ignore[union-attr]
    assert ids_of("no-such-user") is None and ids_of(str(STRANGER)) is None


def test_much_to_tell() -> None:
    assert len(as_user(USER, lambda: "x" * 3_000_000)) == 3_000_000
    started = time.monotonic()
    assert as_user(USER, lambda: None) is None
    assert time.monotonic() >= started
