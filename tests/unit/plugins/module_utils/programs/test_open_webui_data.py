# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data of Open WebUI stays with its version, wherever a start is killed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import open_webui_data

OLD, NEW = "0.12.3", "0.12.4"


class Killed(BaseException):
    """The power is gone."""


class Host:
    """The folders of a host. A start runs the program, and then the version migrates its database."""

    def __init__(self, folder: Path) -> None:
        self.data, self.backups = folder / "data", folder / "backups"

    def start(self, version: str) -> None:
        open_webui_data.main(version, str(self.data), str(self.backups))
        database = self.data / "webui.db"
        found = database.read_text().split() if database.exists() else []
        assert not found or found[0] <= version, "%s does not start with a database of %s" % (version, found[0])
        database.write_text(" ".join([version, *found[1:]]))

    def chat(self, text: str) -> None:
        with (self.data / "webui.db").open("a") as file:
            file.write(" " + text)

    def accept(self, keep: int = 2) -> None:
        open_webui_data.accept(str(self.backups), keep)

    @property
    def chats(self) -> List[str]:
        return (self.data / "webui.db").read_text().split()[1:]

    @property
    def kept(self) -> List[str]:
        return sorted(path.name for path in self.backups.iterdir())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    found = Host(tmp_path)
    found.start(OLD)
    found.accept()
    found.chat("hello")
    (found.data / "cache").mkdir()
    (found.data / "cache/large").write_text("x" * 1000)
    (found.data / "uploads").mkdir()
    (found.data / "uploads/a.txt").write_text("a document")
    os.symlink("/etc/passwd", found.data / "uploads/link")
    os.mkfifo(found.data / "pipe")
    return found


def test_the_same_version_starts_again(host: Host) -> None:
    host.start(OLD)
    assert host.chats == ["hello"] and host.kept == []


def test_a_failed_update_gives_the_data_back(host: Host) -> None:
    host.start(NEW)
    host.chat("lost")
    host.start(OLD)
    assert host.chats == ["hello"] and host.kept == [NEW + ".failed"]
    assert (host.data / "uploads/a.txt").read_text() == "a document"
    assert (host.data / "uploads/link").is_symlink() and not (host.data / "pipe").exists()
    host.start(NEW)
    host.accept()
    assert host.chats == ["hello"] and host.kept == [OLD, NEW + ".failed"]
    assert not (host.backups / OLD / "cache").exists()


def test_what_was_accepted_is_never_taken_back(host: Host) -> None:
    host.start(NEW)
    host.accept()
    host.chat("since")
    with pytest.raises(AssertionError, match="does not start with a database of 0.12.4"):
        host.start(OLD)
    host.start(NEW)
    assert host.chats == ["hello", "since"]


def test_old_backups_go(host: Host) -> None:
    for version in ("0.12.4", "0.12.5", "0.12.6"):
        host.start(version)
        host.accept()
    assert host.kept == ["0.12.4", "0.12.5"]


def test_data_without_a_mark_is_saved_as_well(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.data.mkdir()
    (host.data / "webui.db").write_text("0.11.0 theirs")
    host.start(NEW)
    assert host.chats == ["theirs"] and host.kept == ["unknown.unproven"]


def test_a_fresh_host_has_no_backup(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.start(NEW)
    assert host.kept == [] and open_webui_data.version_of(str(host.data)) == NEW


CALLS = ("rename", "mkdir", "unlink")


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """`killing(n)`: the power goes before the nth change of the file system."""
    left: List[float] = [float("inf")]

    def guard(real: Any) -> Any:
        def call(*words: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*words, **more)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, guard(getattr(os, name)))
    monkeypatch.setattr(shutil, "copytree", guard(shutil.copytree))
    monkeypatch.setattr(shutil, "rmtree", guard(shutil.rmtree))

    def kill(after: int) -> None:
        left[0] = after

    yield kill
    left[0] = float("inf")


def killed_at(host: Host, killing: Callable[[int], None], step: int, version: str) -> bool:
    killing(step)
    try:
        host.start(version)
        return False
    except Killed:
        return True
    finally:
        killing(10**9)


@pytest.mark.parametrize("then", [OLD, NEW], ids=["taken back", "resumed"])
def test_a_power_cut_anywhere_in_an_update(host: Host, killing: Callable[[int], None], then: str) -> None:
    step = 0
    while killed_at(host, killing, step, NEW):
        host.start(then)
        assert host.chats == ["hello"], "killed before change %d" % step
        host.start(OLD)  # both ways may still be gone
        assert host.chats == ["hello"], "killed before change %d" % step
        step += 1
    assert step >= 3


@pytest.mark.parametrize("then", [OLD, NEW], ids=["taken back", "resumed"])
def test_a_power_cut_anywhere_in_a_rollback(host: Host, killing: Callable[[int], None], then: str) -> None:
    step = 0
    host.start(NEW)
    while killed_at(host, killing, step, OLD):
        host.start(then)
        assert host.chats == ["hello"], "killed before change %d" % step
        host.start(NEW)
        step += 1
    assert step >= 3


def test_a_third_version_after_a_power_cut_in_a_rollback(host: Host, killing: Callable[[int], None]) -> None:
    step = 0
    host.start(NEW)
    while killed_at(host, killing, step, OLD):
        host.start("0.12.5")
        assert host.chats == ["hello"], "killed before change %d" % step
        shutil.rmtree(host.data)
        shutil.rmtree(host.backups)
        host.start(OLD)
        host.chat("hello")
        host.start(NEW)
        step += 1
    assert step >= 3


def test_what_else_is_in_the_backups_stays(host: Host) -> None:
    (host.backups / "manual.tgz").write_text("theirs")
    for version in ("0.12.4", "0.12.5", "0.12.6"):
        host.start(version)
        host.accept()
    assert host.kept == ["0.12.4", "0.12.5", "manual.tgz"]


@pytest.fixture
def postgres(monkeypatch: pytest.MonkeyPatch) -> List[List[str]]:
    """What is called of PostgreSQL's programs; a dump is written as a file."""
    called: List[List[str]] = []

    def run(command: List[str], env: Any, **_more: Any) -> None:
        assert env["PGPASSWORD"] == "p@ss" and not [word for word in command if "p@ss" in word]
        called.append(command)
        for word in command:
            if command[0] == "pg_dump" and word.startswith("--file="):
                Path(word[len("--file=") :]).write_text("a dump")

    monkeypatch.setattr(open_webui_data.subprocess, "run", run)
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://webui:p%40ss@db.example:5433/chats?sslmode=require")
    return called


def test_postgresql_is_dumped_and_loaded(host: Host, postgres: List[List[str]]) -> None:
    host.start(NEW)
    assert [words[0] for words in postgres] == ["pg_dump"]
    host.start(OLD)
    assert [words[0] for words in postgres] == ["pg_dump", "psql", "pg_restore"]
    assert not (host.data / open_webui_data.DUMP).exists()
    host.start(OLD)
    assert len(postgres) == 3


def test_a_database_that_is_down_is_loaded_before_anything_is_saved(
    host: Host, postgres: Any, monkeypatch: Any
) -> None:
    host.start(NEW)

    def down(*_words: Any, **_more: Any) -> None:
        raise open_webui_data.subprocess.CalledProcessError(2, "psql")

    working = open_webui_data.subprocess.run
    monkeypatch.setattr(open_webui_data.subprocess, "run", down)
    with pytest.raises(open_webui_data.subprocess.CalledProcessError):
        host.start(OLD)
    monkeypatch.setattr(open_webui_data.subprocess, "run", working)
    host.start(NEW)
    assert [words[0] for words in postgres] == ["pg_dump", "psql", "pg_restore", "pg_dump"]


def test_the_place_of_a_database() -> None:
    found = open_webui_data.variables("postgresql+psycopg://webui:p%40ss@db.example:5433/chats?sslmode=require")
    assert found == {
        "PGHOST": "db.example",
        "PGPORT": "5433",
        "PGUSER": "webui",
        "PGPASSWORD": "p@ss",
        "PGDATABASE": "chats",
        "PGSSLMODE": "require",
    }
