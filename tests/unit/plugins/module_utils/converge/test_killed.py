# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs killed before every call that changes something, between all states of a unit; then every kind of next run.

Real files, systemd in memory. Once a run is killed each further change that it tries fails, so nothing can clean up.
"""

from __future__ import annotations

import copy
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import atomic, observe
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Change, Outcome, ServiceError
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.run import converge
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd import manager

from ...conftest import UNIT, FakeSystem

FILE = "/etc/gpufleet/chat.yaml"
EMPTY = {"/etc/gpufleet", "/etc/gpufleet/credentials", "/etc/gpufleet/credentials/ollama.service"}
"""May be left empty by a run that was killed before it put something into them."""
STATES: Dict[str, Dict[str, Any]] = {
    "plain": {"environment": {"A": "1"}},
    "secret": {"environment": {"A": "1"}, "secret_environment": {"T": "token-1"}},
    "credentials": {"environment": {"A": "1"}, "credentials": {"a": "key-a", "b": "key-b"}},
    "one credential": {"environment": {"A": "1"}, "credentials": {"a": "key-a"}},
    "all": {
        "environment": {"A": "2"},
        "secret_environment": {"T": "token-2"},
        "credentials": {"a": "key-a", "b": "key-c"},
        "settings": {"Service": {"LimitNOFILE": ["2"]}},
        "files": {FILE: "two\n"},
    },
    "absent": {"state": "absent"},
}
CHANGING = ("rename", "link", "symlink", "unlink", "mkdir", "rmdir", "chmod", "fchmod", "write")


class Killed(BaseException):
    """As SIGKILL: no handler of the run may change anything any more."""


class Killer:
    """Stands for the module ``os`` in atomic.py, and is asked by the fake systemd: dies before call number ``at``."""

    def __init__(self) -> None:
        self.at: Optional[int] = None
        self.calls = 0

    def tick(self) -> None:
        if self.at is not None and self.calls >= self.at:
            raise Killed
        self.calls += 1

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        if name == "open":
            return lambda path, flags, *more: self._open(path, flags, *more)
        return (lambda *words, **more: (self.tick(), call(*words, **more))[1]) if name in CHANGING else call

    def _open(self, path: str, flags: int, *more: int) -> int:
        if flags & os.O_CREAT:
            self.tick()
        return os.open(path, flags, *more)


class Host(FakeSystem):
    """A unit that does not start without the files that it names."""

    killer: Killer
    accepted: Tuple[str, ...] = ()
    """The states that were accepted, in order."""

    def _write(self, call: str) -> None:
        if call != "lock":
            self.killer.tick()
        super()._write(call)

    def missing(self) -> List[str]:
        unit = self._merged()
        named = [line.value for line in unit.in_force("Service", "EnvironmentFile")]
        named += [line.value.split(":", 1)[1] for line in unit.in_force("Service", "LoadCredential")]
        return [path for path in named if self.read(path) is None]

    def _run_unit(self) -> Optional[str]:
        missing = self.missing()
        self.fails = lambda environment, settings: (
            "there is no %s" % missing if missing else environment.get("BAD") and "told to"
        )
        return super()._run_unit()

    def clone(self, root: Path) -> "Host":
        shutil.rmtree(root, ignore_errors=True)
        for directory, _inner, names in os.walk(self.root):
            copied = str(root) + directory[len(self.root) :]
            os.mkdir(copied, os.stat(directory).st_mode & 0o777)
            for name in names:
                shutil.copy2(directory + "/" + name, copied + "/" + name, follow_symlinks=False)
        other = Host.__new__(Host)
        other.__dict__ = copy.deepcopy(dict(self.__dict__, killer=None))
        other.root, other.killer = str(root), Killer()
        return other

    def run(self, state: str, **environment: str) -> Any:
        declared = dict(STATES["plain" if environment and state == "absent" else state])
        declared["environment"] = dict(declared.get("environment", {}), **environment)
        declared["files"] = dict({FILE: None}, **declared.get("files", {}))

        def accept(_outcome: Outcome) -> None:
            self.accepted += (state,)

        return converge(Change(self.unit, settle=0, accepted=accept, **declared), system=self)

    def held(self) -> Tuple[Any, ...]:
        """The files of /etc, what the running process has, and the directories."""
        files: Dict[str, Tuple[bytes, int]] = {}
        directories = set()
        for directory, _inner, names in os.walk(self.root + "/etc"):
            directories.add(directory[len(self.root) :])
            for name in names:
                path = "%s/%s" % (directory, name)
                files[path[len(self.root) :]] = Path(path).read_bytes(), os.lstat(path).st_mode
        process = {name: text for name, text in self.environment.items() if name != "INVOCATION_ID"}
        return (files, process, self.credentials), directories


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory, if there is one: thousands of trees are written."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder)


@pytest.fixture
def hosts(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dict[str, Host]]:
    """A host for each state, proven in it."""
    # a kill before it and one after it find the same files
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(observe.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(manager, "UNIT_PATH", ("/etc/systemd/system", "/usr/lib/systemd/system"))
    bare = Host(place / "bare")
    bare.killer = Killer()
    bare.write("/usr/lib/systemd/system/ollama.service", UNIT)
    os.makedirs(bare.root + "/etc/systemd/system")
    bare.boot()
    found = {}
    for number, name in enumerate(STATES):
        found[name] = bare.clone(place / ("state-%d" % number))
        found[name].run(name)
    yield found


def attempt(host: Host, monkeypatch: pytest.MonkeyPatch, at: Optional[int], state: str, **environment: str) -> bool:
    """One run, killed before call number ``at``; whether it was."""
    host.killer.at, host.killer.calls = at, 0
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "os", host.killer)
        try:
            host.run(state, **environment)
        except Killed:
            return True
        except ServiceError:
            assert environment
        finally:
            host.killer.at = None
    return False


def test_whenever_a_run_is_killed_the_next_one_leads_to_one_whole_state(
    hosts: Dict[str, Host], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = runs = 0
    whole = {name: host.held()[0] for name, host in hosts.items()}
    before_all = {name: host.held()[1] for name, host in hosts.items()}
    for before, after in itertools.permutations(STATES, 2):
        for at in itertools.count():
            killed = hosts[before].clone(place / "killed")
            if not attempt(killed, monkeypatch, at, after):
                break
            points += 1
            where = (before, after, at)
            assert killed.missing() == [], "a reboot finds a unit that can be started: %s" % (where,)
            for following in ("same", "former", "absent", "failing"):
                host = killed.clone(place / "next")
                runs += 1
                if following == "failing":
                    with pytest.raises(ServiceError) as caught:
                        host.run(after, BAD="1")
                    said = caught.value.message
                    assert "DOWN" not in said and "FAILED" not in said and caught.value.outcome.rolled_back, where
                    expected: Tuple[Any, ...] = (whole[before], whole[after])
                else:
                    declared = {"same": after, "former": before}.get(following, following)
                    host.run(declared)
                    expected = (whole[declared],)
                held, directories = host.held()
                assert held in expected, (following, where)
                assert directories - before_all[before] - before_all[after] <= EMPTY, (following, where)
                if following in ("same", "former"):
                    assert not host.run(declared).changed, (following, where)
                assert following != "same" or host.accepted[-1] == after, "it is in force, and nobody was told"
    print("\n%d kill points, %d next runs" % (points, runs))
    assert points > 600 and runs == 4 * points


def test_a_run_killed_while_it_rolls_back(hosts: Dict[str, Host], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = 0
    whole = {name: host.held()[0] for name, host in hosts.items()}
    for before, after in itertools.permutations([name for name in STATES if name != "secret"], 2):
        for at in itertools.count():
            killed = hosts[before].clone(place / "killed")
            if not attempt(killed, monkeypatch, at, after, BAD="1"):
                break
            points += 1
            where = (before, after, at)
            assert killed.missing() == [], where
            for following in ("failing", "former"):
                host = killed.clone(place / "next")
                if following == "failing":
                    with pytest.raises(ServiceError):
                        host.run(after, BAD="1")
                else:
                    host.run(before)
                    assert not host.run(before).changed, where
                assert host.held()[0] == whole[before], (following, where)
    print("\n%d kill points" % points)
    assert points > 400
