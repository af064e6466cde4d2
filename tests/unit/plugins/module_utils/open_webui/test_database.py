# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which databases are rejected before a change, with pretended programs of PostgreSQL."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Callable, Optional

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.open_webui import database

URL = "postgresql://webui:p%40ss@db.example/chats"
Programs = Callable[..., None]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """`programs(psql=…)`: the shell commands of PostgreSQL's client; psql sees whether users are asked for in $users."""
    monkeypatch.setattr(database, "PATH", str(tmp_path))

    def write(**commands: str) -> None:
        for name, command in {"pg_restore": "", "pg_dump": "", "psql": "", **commands}.items():
            text = '#!/bin/sh\n[ "$PGPASSWORD" = p@ss ] || exit 9\ncase "$*" in *\'"user"\'*) users=1 ;; esac\n'
            (tmp_path / name).write_text(text + command)
            (tmp_path / name).chmod(0o755)

    return write


@pytest.mark.parametrize(
    ("psql", "pg_dump", "users", "words"),
    [
        ("", "", False, None),
        ('[ "$users" ] && echo 1', "", True, None),
        ("", "", True, "admin_email: the database has no user yet"),
        ('[ -z "$users" ] || exit 1', "", True, "admin_email: the database has no user yet"),
        (
            '[ "$users" ] || echo "schema public belongs to postgres, not to webui"',
            "",
            False,
            "could not be put back: ",
        ),
        ("echo FATAL: no such database >&2; exit 2", "", False, "database_url: psql says FATAL: no such database"),
        ("", "echo server version mismatch >&2; exit 1", False, "pg_dump says server version mismatch"),
    ],
)
def test_what_is_rejected(programs: Programs, psql: str, pg_dump: str, users: bool, words: Optional[str]) -> None:
    programs(psql=psql + "\n:" if "exit" not in psql else psql, pg_dump=pg_dump)
    found = database.obstacle(URL, users)
    assert found is None if words is None else words in str(found)


def test_its_programs_get_nothing_of_roots(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://root:secret@proxy.example:3128")
    monkeypatch.setenv("HOME", "/no/such/home")
    programs(psql="export -p > %s" % (tmp_path / "seen"))
    assert database.obstacle(URL, False) is None
    seen = (tmp_path / "seen").read_text()
    assert "HOME='%s'" % pwd.getpwuid(os.geteuid()).pw_dir in seen and "LC_ALL='C'" in seen
    assert "PROXY" not in seen and "/no/such" not in seen


def test_the_client_must_be_there(programs: Programs) -> None:
    assert database.obstacle(URL, False) == (
        "database_url needs pg_dump, pg_restore, psql for backups: install PostgreSQL's client"
    )
