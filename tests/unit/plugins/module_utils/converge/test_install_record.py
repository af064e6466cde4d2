# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of a host, also by two runs at once, by killed ones, and against those who want it otherwise."""

from __future__ import annotations

import json
import os
import pwd
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import account, install_record
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.account import UserStep
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import lock


def test_what_was_made_is_remembered_until_it_is_dropped(remembered: Path) -> None:
    for name in ("a", "b", "a"):
        install_record.add("units", name)
    assert install_record.remembered("units") == ["a", "b"] and install_record.remembered("users") == []
    install_record.drop("units", "a")
    install_record.drop("units", "never")
    assert install_record.remembered("units") == ["b"]
    install_record.drop("units", "b")
    assert not remembered.parent.exists()


def _many(begin: str) -> None:
    for number in range(20):
        install_record.add("units", "%s%d" % (begin, number))
        install_record.drop("users", begin)


def test_runs_at_once_lose_nothing_of_each_other(remembered: Path) -> None:
    with ThreadPoolExecutor(3) as runs:
        list(runs.map(_many, "abc"))
    assert len(install_record.remembered("units")) == 60


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\0" * 100])
def test_a_file_that_an_earlier_release_lost_in_a_power_cut_is_none(remembered: Path, content: str) -> None:
    remembered.parent.mkdir()
    remembered.write_text(content)
    assert install_record.remembered("units") == []
    install_record.add("units", "a")
    assert json.loads(remembered.read_text()) == {"units": ["a"]}


def test_one_that_cannot_be_read_is_not_taken_for_an_empty_one(remembered: Path) -> None:
    remembered.mkdir(parents=True)
    with pytest.raises(OSError):
        install_record.add("units", "a")
    with pytest.raises(OSError):
        install_record.remembered("units")


def test_another_run_is_waited_for_with_a_limit(monkeypatch: pytest.MonkeyPatch, remembered: Path) -> None:
    monkeypatch.setattr(install_record, "WAIT", 0)
    taken = "another run, process %d, is still busy with %s" % (os.getpid(), remembered)
    with lock.held("made.json", 0), pytest.raises(OSError, match=taken):
        install_record.add("units", "a")
    assert not remembered.exists()


# --- killed


class Killed(BaseException):
    """Stands for SIGKILL: nothing that handles errors may handle it."""


MUTATING = ("mkdir", "open", "rename", "unlink", "rmdir", "fchmod", "fsync", "write", "ftruncate")


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], List[str]]]:
    """`kill_at(n)` raises at the n-th call from then on that changes something; gives the calls that were made."""
    real = {name: getattr(os, name) for name in MUTATING}

    def arm(number: int) -> List[str]:
        calls: List[str] = []

        def replaced(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **more: Any) -> Any:
                changes = name != "open" or arguments[1] & (os.O_CREAT | os.O_TRUNC)
                if changes and len(calls) == number:
                    for other, function in real.items():
                        setattr(os, other, function)
                    raise Killed
                if changes:
                    calls.append(name)
                return real[name](*arguments, **more)

            return call

        for name in MUTATING:
            setattr(os, name, replaced(name))
        return calls

    yield arm
    for name, function in real.items():
        setattr(os, name, function)


def _points(act: Callable[[], None], kill_at: Callable[[int], List[str]]) -> Iterator[int]:
    """Run `act` killed at its first call, its second one, and so on, until it is not killed any more."""
    number = 0
    while True:
        kill_at(number)
        try:
            act()
        except Killed:
            yield number
            number += 1
        else:
            kill_at(-1)
            return


@pytest.mark.parametrize("before", [{}, {"units": ["a"]}, {"units": ["a"], "users": ["u"]}])
@pytest.mark.parametrize("act", [("add", "units", "b"), ("drop", "units", "a"), ("drop", "users", "u")])
def test_a_killed_run_leaves_the_record_before_or_after(
    kill_at: Callable[[int], List[str]], remembered: Path, monkeypatch: pytest.MonkeyPatch, before: Any, act: Any
) -> None:
    verb, kind, name = act

    def once() -> None:
        getattr(install_record, verb)(kind, name)

    def known() -> Any:
        return {kind: install_record.remembered(kind) for kind in ("units", "users") if install_record.remembered(kind)}

    for names in before.items():
        for one in names[1]:
            install_record.add(names[0], one)
    monkeypatch.setattr(install_record, "WAIT", 0)
    start = known()
    points = 0
    for _number in _points(once, kill_at):
        points += 1
        after = {kind: list(names) for kind, names in start.items()}
        if verb == "add":
            after.setdefault(kind, []).append(name)
        elif name in after.get(kind, []):
            after[kind].remove(name)
        assert known() in (start, {kind: names for kind, names in after.items() if names})
        # the next run does it again, and back
        once()
        (install_record.drop if verb == "add" else install_record.add)(kind, name)
        if verb == "drop" and name not in start.get(kind, []):
            install_record.drop(kind, name)
        assert known() == start
    assert points > 2
    for kind, names in known().items():
        for one in names:
            install_record.drop(kind, one)
    assert not remembered.parent.exists(), "nothing is left over"
    assert os.listdir(lock.FOLDER) == []


def test_what_is_written_lasts_through_a_power_cut(kill_at: Callable[[int], List[str]], remembered: Path) -> None:
    install_record.add("units", "a")
    calls = kill_at(-1)
    install_record.add("units", "b")
    assert calls.index("fsync") < calls.index("rename") < len(calls) - 1 - calls[::-1].index("fsync")
    del calls[:]
    install_record.drop("units", "a")
    install_record.drop("units", "b")
    last = calls[::-1]
    assert last.index("fsync") < last.index("unlink", last.index("fsync"))


# --- the user of a service


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Users in memory; `users.fails` says how useradd does."""

    class Users(set):
        fails = ""

    found = Users()

    def getpwnam(name: str) -> Any:
        if name not in found:
            raise KeyError(name)

    def run(command: List[str]) -> None:
        if command[0] == "useradd":
            if found.fails == "killed before":
                raise Killed
            if found.fails == "error":
                raise StepError("useradd: no")
            found.add(command[-1])
            if found.fails in ("killed", "taken"):
                raise Killed if found.fails == "killed" else StepError("useradd: exists")

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    monkeypatch.setattr(account, "run", run)
    monkeypatch.setattr(account, "GROUPS", ())
    return found


@pytest.mark.parametrize("how", ["killed", "killed before"])
def test_a_user_that_was_made_before_a_kill_is_known(users: Any, tmp_path: Path, how: str) -> None:
    users.fails = how
    with pytest.raises(Killed):
        UserStep("ollama", str(tmp_path / "home")).apply()
    assert install_record.remembered("users") == ["ollama"] and install_record.remembered("homes") == [
        str(tmp_path / "home")
    ]


def test_a_user_that_cannot_be_made_is_forgotten(users: Any, tmp_path: Path, remembered: Path) -> None:
    users.fails = "error"
    with pytest.raises(StepError):
        UserStep("ollama", str(tmp_path / "home")).apply()
    assert not remembered.exists()


def test_a_user_that_another_run_made_at_the_same_time_stays_known(users: Any, tmp_path: Path) -> None:
    users.fails = "taken"
    step = UserStep("ollama", str(tmp_path / "home"))
    with pytest.raises(StepError):
        step.apply()
    step.undo()
    assert install_record.remembered("users") == ["ollama"] and "ollama" in users
