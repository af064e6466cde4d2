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
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.service import atomic
from ansible_collections.gpufleet.inference.plugins.module_utils.service.engine import Change, ServiceError, converge

from .conftest import UNIT, FakeSystem

FILE = "/etc/gpufleet/chat.yaml"
EMPTY = {"/etc/gpufleet", "/etc/gpufleet/credentials", "/etc/gpufleet/credentials/ollama.service"}
"""May be left empty by a run that was killed before it put something into them."""
SECRETS = (b"token-1", b"token-2", b"key-a", b"key-b", b"key-c")
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
        shutil.copytree(self.root, root, symlinks=True)
        other = Host.__new__(Host)
        other.__dict__.update(copy.deepcopy({k: v for k, v in self.__dict__.items() if k != "killer"}))
        other.root, other.killer = str(root), Killer()
        return other

    def run(self, state: str, **environment: str) -> Any:
        declared = dict(STATES["plain" if environment and state == "absent" else state])
        declared["environment"] = dict(declared.get("environment", {}), **environment)
        declared["files"] = dict({FILE: None}, **declared.get("files", {}))
        return converge(Change(self.unit, settle=0, **declared), system=self)

    def held(self) -> Tuple[Any, ...]:
        """The files of /etc, and what the running process has."""
        files = {path: held for path, held in self.tree().items() if path.startswith("/etc") and held[0] != "dir"}
        process = {name: text for name, text in self.environment.items() if name != "INVOCATION_ID"}
        return files, process, self.credentials

    def directories(self) -> Set[str]:
        return {path for path, held in self.tree().items() if path.startswith("/etc") and held[0] == "dir"}


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dict[str, Host]]:
    """A host for each state, proven in it."""
    # a kill before it and one after it find the same files
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: None)
    bare = Host(tmp_path / "bare")
    bare.killer = Killer()
    bare.write("/usr/lib/systemd/system/ollama.service", UNIT)
    os.makedirs(bare.root + "/etc/systemd/system")
    bare.boot()
    found = {}
    for number, name in enumerate(STATES):
        found[name] = bare.clone(tmp_path / ("state-%d" % number))
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
    hosts: Dict[str, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = runs = 0
    whole = {name: host.held() for name, host in hosts.items()}
    for before, after in itertools.permutations(STATES, 2):
        for at in itertools.count():
            killed = hosts[before].clone(tmp_path / "killed")
            if not attempt(killed, monkeypatch, at, after):
                break
            points += 1
            where = (before, after, at)
            assert killed.missing() == [], "a reboot finds a unit that can be started: %s" % (where,)
            for following in ("same", "former", "absent", "failing"):
                host = killed.clone(tmp_path / "next")
                runs += 1
                if following == "failing":
                    with pytest.raises(ServiceError) as caught:
                        host.run(after, BAD="1")
                    said = caught.value.message
                    assert "DOWN" not in said and "FAILED" not in said and caught.value.outcome.rolled_back, where
                    assert host.held() in (whole[before], whole[after]), where
                else:
                    declared = {"same": after, "former": before}.get(following, following)
                    host.run(declared)
                    assert host.held() == whole[declared], (following, where)
                    assert not host.run(declared).changed, (following, where)
                if following == "absent":
                    left = b"".join(held[0] for held in host.tree().values() if isinstance(held[0], bytes))
                    assert not any(secret in left for secret in SECRETS), where
                empty = host.directories() - hosts[before].directories() - hosts[after].directories()
                assert empty <= EMPTY, (following, where)
    print("\n%d kill points, %d next runs" % (points, runs))
    assert points > 600 and runs == 4 * points


def test_a_run_killed_while_it_rolls_back(
    hosts: Dict[str, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = 0
    whole = {name: host.held() for name, host in hosts.items()}
    for before, after in itertools.permutations(STATES, 2):
        for at in itertools.count():
            killed = hosts[before].clone(tmp_path / "killed")
            if not attempt(killed, monkeypatch, at, after, BAD="1"):
                break
            points += 1
            where = (before, after, at)
            assert killed.missing() == [], where
            for following in ("failing", "former"):
                host = killed.clone(tmp_path / "next")
                if following == "failing":
                    with pytest.raises(ServiceError):
                        host.run(after, BAD="1")
                else:
                    host.run(before)
                    assert not host.run(before).changed, where
                assert host.held() == whole[before], (following, where)
    print("\n%d kill points" % points)
    assert points > 800
