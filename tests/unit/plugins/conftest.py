# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A systemd in memory, at the seam that systemd.py is: files lie below a folder of the test, processes are dicts."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import atomic
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import merge

UNIT = """\
[Unit]
Description=Ollama Service
[Service]
ExecStart=/usr/local/bin/ollama serve
Restart=always
RestartSec=3
Environment="PATH=/usr/local/bin:/usr/bin"
[Install]
WantedBy=default.target
"""


class FakeProcess:
    def __init__(self, system: "FakeSystem", pid: int) -> None:
        self.system, self.pid = system, pid

    def alive(self) -> bool:
        return self.pid in self.system.processes

    def ended_within(self, limit: float) -> bool:
        self.system.waited.append(limit)
        return not self.alive()


class FakeSystem(System):
    """One unit. ``fails(environment, settings)`` gives None or how the started process ends."""

    def __init__(self, root: Path, unit: str = "ollama.service") -> None:
        super().__init__(str(root))
        self.unit = unit
        self.calls: List[str] = []
        self.forbidden = False
        self.processes: Dict[int, Dict[str, str]] = {}
        self.lines: Dict[str, List[str]] = {}
        self.waited: List[float] = []
        self.ignored: List[str] = []
        self.restarts_itself = True
        self.reload_fails: Optional[str] = None
        self.looks = 0
        self.fails: Callable[[Dict[str, str], Dict[Any, Any]], Optional[str]] = lambda environment, settings: None
        self.changes_environment: Callable[[Dict[str, str]], Dict[str, str]] = lambda environment: environment
        self.misreads: Callable[[Dict[str, str]], Dict[str, str]] = lambda environment: environment
        self.state: Dict[str, str] = {
            "LoadState": "loaded",
            "ActiveState": "inactive",
            "SubState": "dead",
            "UnitFileState": "disabled",
            "Result": "success",
            "Type": "simple",
            "TimeoutStopUSec": "1min 30s",
            "MainPID": "0",
            "NRestarts": "0",
            "InvocationID": "",
            "ControlGroup": "/system.slice/" + unit,
        }
        self.invocations = 0
        self.credentials: Dict[str, Optional[bytes]] = {}
        self.loaded: Dict[str, str] = {}
        self.loaded_settings: Dict[Any, Any] = {}
        self.dropins: List[str] = []
        self.snapshot: Any = None

    # --- the test's side

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        place = Path(self.root + path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode("utf-8", "surrogateescape"))
        place.chmod(mode)
        return place

    def tree(self) -> Dict[str, Any]:
        """Everything below the root: path to content and mode."""
        found = {}
        for path in sorted(Path(self.root).rglob("*")):
            name = str(path)[len(self.root) :]
            kind = "link" if path.is_symlink() else "dir" if path.is_dir() else path.read_bytes()
            found[name] = (kind, path.lstat().st_mode & 0o7777)
        return found

    def boot(self, running: bool = True) -> "FakeSystem":
        """Load the unit and run it; what the test counts begins here."""
        self.reload()
        if running:
            assert self.start(self.unit, 1) is None
        self.calls.clear()
        return self

    @property
    def environment(self) -> Dict[str, str]:
        """That of the running process."""
        return self.processes[int(self.state["MainPID"])]

    # --- reading

    def _merged(self) -> Any:
        return merge(self.load([self.unit]))

    def show(self, unit: str) -> Dict[str, str]:
        self.calls.append("show")
        self._restart_itself()
        if self.state["UnitFileState"] in ("enabled", "disabled"):
            self.state["UnitFileState"] = "enabled" if os.path.lexists(self.root + self.link) else "disabled"
        if self.state["LoadState"] == "not-found":
            return dict(self.state, Id=unit)
        now = [(path, content) for path, content in self.load([self.unit])]
        return dict(
            self.state,
            Id=self.unit,
            Names=self.unit,
            FragmentPath="/usr/lib/systemd/system/" + self.unit,
            DropInPaths=" ".join(self.dropins),
            NeedDaemonReload="yes" if now != self.snapshot else "no",
            Environment=" ".join('"%s=%s"' % (k, _quoted(v)) for k, v in self.misreads(self.loaded).items()),
        )

    def _restart_itself(self) -> None:
        """Do what systemd does RestartSec= after a death; that is at the third look."""
        self.looks = self.looks + 1 if self.state["SubState"].startswith("auto-restart") else 0
        if self.looks == 3 and self.restarts_itself:
            self.looks, restarts = 0, int(self.state["NRestarts"]) + 1
            self._run_unit()
            self.state["NRestarts"] = str(restarts)

    def environ(self, pid: int) -> Optional[Dict[str, str]]:
        return self.processes.get(pid)

    def credential(self, pid: int, environ: Any, name: str) -> Optional[bytes]:
        return self.credentials.get(name)

    def process(self, pid: int) -> Any:
        return FakeProcess(self, pid)

    def pids(self, control_group: str) -> List[int]:
        return sorted(self.processes)

    def journal(self, unit: str, invocation_id: str, lines: int) -> List[str]:
        return self.lines.get(invocation_id, [])[-lines:]

    def sync_journal(self) -> None:
        self.calls.append("sync")

    def verify(self, unit: str, drop_in: str, content: bytes) -> List[str]:
        return self.ignored

    def specifiers(self, unit: str, fragment: str = "") -> Dict[str, str]:
        return {"n": unit, "u": "root", "h": "/root"}

    # --- changing

    def _write(self, call: str) -> None:
        assert not self.forbidden, "%s in check mode" % call
        self.calls.append(call)

    @contextmanager
    def lock(self, unit: str, limit: float) -> Iterator[None]:
        self._write("lock")
        yield
        self.calls.append("unlock")

    def reload(self) -> None:
        self._write("reload")
        self.snapshot = [(path, content) for path, content in self.load([self.unit])]
        unit = self._merged()
        self.loaded_settings = unit.settings()
        self.dropins = [path for path, _content in self.snapshot if path.endswith(".conf")]
        values = unit.environment(self.specifiers(self.unit))
        self.loaded = {name: value.text for name, value in values.items()}
        if self.state["LoadState"] == "not-found" and self.snapshot:
            self.state["LoadState"] = "loaded"
        if not self.snapshot:
            self.state["LoadState"] = "not-found"

    def _run_unit(self) -> Optional[str]:
        self.invocations += 1
        pid, invocation = 1000 + self.invocations, "%032x" % self.invocations
        environment = self._merged().environment(self.specifiers(self.unit), self.environment_files)
        given = {name: value.text for name, value in environment.items() if value.path not in self._unloaded()}
        given.update((name, text) for name, text in self.loaded.items() if name not in given)
        given = self.changes_environment(given)
        self.processes.clear()
        how = self.fails(given, self.loaded_settings)
        self.lines[invocation] = ["Started %s." % self.unit]
        self.state.update(InvocationID=invocation, ExecMainStartTimestampMonotonic="0", NRestarts="0")
        if how:
            self.lines[invocation].append("Error: %s" % how)
            states = ("failed", "failed")
            if ("Service", "ExecStopPost") in self.loaded_settings:
                states = ("deactivating", "stop-post")
            elif self.loaded_settings.get(("Service", "Restart")) == ["always"]:
                states = ("activating", "auto-restart")
            self.state.update(
                ActiveState=states[0],
                SubState=states[1],
                Result="exit-code",
                ExecMainCode="1",
                ExecMainStatus="1",
                MainPID="0",
            )
            return None
        loads = self._merged().in_force("Service", "LoadCredential")
        self.credentials = {name: self.read(path) for name, path in (line.value.split(":", 1) for line in loads)}
        self.processes[pid] = dict(given, INVOCATION_ID=invocation)
        self.state.update(ActiveState="active", SubState="running", Result="success", MainPID=str(pid))
        return None

    def _unloaded(self) -> List[str]:
        """Drop-ins that systemd has not read yet."""
        return [path for path, content in self.load([self.unit]) if (path, content) not in self.snapshot]

    def restart(self, unit: str, stop_limit: float, start_limit: float) -> Optional[str]:
        self._write("restart")
        return self._run_unit()

    def reload_unit(self, unit: str, limit: float) -> Optional[str]:
        self._write("reload the unit")
        return self.reload_fails

    def start(self, unit: str, start_limit: float) -> Optional[str]:
        self._write("start")
        return self._run_unit() if self.state["ActiveState"] != "active" else None

    def stop(self, unit: str, stop_limit: float) -> Optional[str]:
        self._write("stop")
        self.processes.clear()
        self.state.update(ActiveState="inactive", SubState="dead", MainPID="0")
        return None

    def reset_failed(self, unit: str) -> None:
        self._write("reset-failed")

    @property
    def link(self) -> str:
        return "/etc/systemd/system/default.target.wants/" + self.unit

    def enable(self, unit: str) -> str:
        self._write("enable")
        place = Path(self.root + self.link)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to("/usr/lib/systemd/system/" + self.unit)
        return "Created symlink %s -> /usr/lib/systemd/system/%s.\n" % (self.link, self.unit)

    def disable(self, unit: str, runtime: bool = False) -> str:
        self._write("disable")
        place = Path(self.root + self.link)
        place.unlink()
        place.parent.rmdir()
        return "Removed %s.\n" % self.link


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("$", "\\$").replace("`", "\\`")


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    """A host with ollama.service as upstream writes it, running."""
    fake = FakeSystem(tmp_path)
    fake.write("/usr/lib/systemd/system/ollama.service", UNIT)
    return fake.boot()


@pytest.fixture
def no_writes(system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    """The same host, on which every write is an error."""
    system.forbidden = True
    for name in ("stage", "commit", "undo", "discard", "finish"):
        monkeypatch.setattr(atomic.Files, name, _raiser(name))
    return system


def _raiser(name: str) -> Callable[..., None]:
    def fail(*_arguments: Any) -> None:
        raise AssertionError("Files.%s in check mode" % name)

    return fail
