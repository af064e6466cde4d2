# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host compiled once is used again, and only if nobody but root could have written it."""

from __future__ import annotations

import json
import marshal
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils import question

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root keeps code")

MAIN = """
from . import other

def bring(params, check_mode, warn):
    if params["late"]:
        from . import late
    return {"changed": False, "msg": other.NAME}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Like the folder on a host: everything above it is root's."""
    above = Path(tempfile.mkdtemp(prefix="gpufleet-test-", dir="/run"))
    yield above / "code"
    shutil.rmtree(above)


@pytest.fixture
def ask(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dict[str, Any]]:
    """`ask(long=True)` sends the sources, `ask()` the digest alone; the answer. `ask.name` is the word in a source."""
    monkeypatch.setattr(question, "FOLDER", tmp_path)
    monkeypatch.setattr(question, "KEPT", str(folder))
    (tmp_path / "room").mkdir()
    (tmp_path / "room/main.py").write_text(MAIN)
    (tmp_path / "room/late.py").write_text("")

    def run(long: bool = False, writes: bool = True, late: bool = False, change: Any = None) -> Dict[str, Any]:
        (tmp_path / "room/other.py").write_text("NAME = %r\n" % run.name)  # type: ignore[attr-defined]
        asked = question.Question([(question.RemoteFunction("room.main", "bring", {}), {"late": late})], writes)
        script = (asked.script if long else asked.short_script)("mark ")
        text = change(script.decode()) if change else script.decode()
        done = subprocess.run([sys.executable, "-"], input=text, capture_output=True, text=True, check=False)
        assert done.stdout.startswith("mark ") and not done.stderr, done
        (answer,) = json.loads(done.stdout[5:])
        return dict(answer)

    run.name = "first"  # type: ignore[attr-defined]
    return run


LACKS = {"state": "lacks", "why": "", "result": None}
FIRST = {"state": "converged", "why": "", "result": {"changed": False, "msg": "first"}}


def compiled(folder: Path) -> set:
    """The names of the modules that are kept as compiled code."""
    texts = marshal.loads((folder / "room.main").read_bytes())[3]
    return {name.rpartition(".")[2] for name, text in texts.items() if isinstance(text, bytes)}


def test_the_sources_are_sent_once(ask: Any, folder: Path) -> None:
    assert ask() == LACKS
    assert ask(long=True) == ask() == ask(writes=False) == FIRST
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "room.main").stat().st_mode & 0o777 == 0o600


def test_nothing_is_compiled_twice(ask: Any, folder: Path) -> None:
    ask(long=True)
    before = (folder / "room.main").stat()
    ask()
    assert (folder / "room.main").stat().st_ino == before.st_ino, "not written again"
    assert compiled(folder) == {"main", "other"}
    ask(late=True, writes=False)
    assert compiled(folder) == {"main", "other"}
    ask(late=True)
    assert compiled(folder) == {"main", "other", "late"}


def test_check_mode_writes_nothing(ask: Any, folder: Path) -> None:
    assert ask(long=True, writes=False) == FIRST
    assert not folder.exists() and ask() == LACKS


def test_other_sources_take_the_place_of_the_old_ones(ask: Any, folder: Path) -> None:
    ask(long=True)
    ask.name = "second"
    assert ask() == LACKS
    assert ask(long=True)["result"]["msg"] == ask()["result"]["msg"] == "second"
    assert os.listdir(folder) == ["room.main"]


def test_another_python_compiles_anew(ask: Any, folder: Path) -> None:
    ask(long=True)
    file = folder / "room.main"
    key, version, *rest = marshal.loads(file.read_bytes())
    assert version == sys.version
    file.write_bytes(marshal.dumps([key, "3.8.0 (another one)", *rest]))
    assert ask() == LACKS


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: folder.chmod(0o770),
        lambda folder: folder.chmod(0o707),
        lambda folder: os.chown(folder, 65534, 0),
        lambda folder: folder.parent.chmod(0o777),
        lambda folder: os.chown(folder.parent, 65534, 0),
        lambda folder: (folder / "room.main").chmod(0o602),
        lambda folder: os.chown(folder / "room.main", 65534, 0),
        lambda folder: (folder.rename(folder.parent / "x"), folder.symlink_to("x")),
        lambda folder: ((folder / "room.main").rename(folder / "x"), (folder / "room.main").symlink_to("x")),
    ],
)
def test_what_another_user_could_have_written_is_not_run(ask: Any, folder: Path, spoil: Any) -> None:
    ask(long=True)
    assert ask() == FIRST
    spoil(folder)
    assert ask() == LACKS
    assert ask(long=True) == FIRST, "the answer needs no folder"


@pytest.mark.parametrize(
    "prepare",
    [
        lambda folder: folder.symlink_to("elsewhere"),
        lambda folder: (folder.mkdir(), folder.chmod(0o777)),
        lambda folder: (folder.mkdir(0o700), os.chown(folder, 65534, 0)),
        lambda folder: folder.write_text(""),
    ],
)
def test_nothing_is_written_where_another_user_could_read_or_write(ask: Any, folder: Path, prepare: Any) -> None:
    (folder.parent / "elsewhere").mkdir(0o700)
    prepare(folder)
    assert ask(long=True) == FIRST
    assert not os.listdir(folder.parent / "elsewhere")
    assert folder.is_file() or not os.listdir(folder)


def test_what_is_cut_off_is_not_run(ask: Any, folder: Path) -> None:
    ask(long=True)
    content = (folder / "room.main").read_bytes()
    for size in [*range(0, len(content), len(content) // 12), len(content) - 1]:
        (folder / "room.main").write_bytes(content[:size])
        assert ask() == LACKS
    (folder / "room.main").write_bytes(marshal.dumps(1))
    assert ask() == LACKS


def test_what_a_killed_check_left_is_removed(ask: Any, folder: Path) -> None:
    folder.mkdir(0o700)
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    for pid in (ended.pid, os.getpid()):
        (folder / ("new-%d" % pid)).write_text("")
    ask(long=True)
    assert sorted(os.listdir(folder)) == ["new-%d" % os.getpid(), "room.main"]


def test_another_user_keeps_nothing(ask: Any, folder: Path) -> None:
    demoted = "import os; os.geteuid = lambda: 65534\n"
    assert ask(long=True, change=lambda text: demoted + text) == FIRST
    assert not folder.exists()
