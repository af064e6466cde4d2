# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab as fixtures: real hosts over real SSH for the modules, and a way to look at them that is none of ours.

The test lab has its own containers (GPUFLEET_LAB=test; with `pytest -n` each process has a lab) and is taken down at
the end unless KEEP_LAB is set.
    FLEET_HOSTS=n   how many hosts (default 3: gpu1 has 4 cards of 24 GiB, gpu2 four H200s, gpu3 two)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAB_PY = ROOT / "tests" / "lab" / "lab.py"
sys.path[:0] = [str(Path(__file__).parent), str(LAB_PY.parent)]

import faults_table  # noqa: E402
from controller import Controller  # noqa: E402
from gpulab import podman  # noqa: E402  (a part of the lab's program, not of the collection)

APPLY = "/usr/local/lib/nvidia-sim/apply"
SETTINGS = {
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callback_plugins"),
    "ANSIBLE_CALLBACKS_ENABLED": "results",
    "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_GATHERING": "explicit",
    "ANSIBLE_INJECT_FACT_VARS": "false",  # no role may depend on it
}
STATES = {"gpu1": "rtx4090x4", "gpu2": "h200x4", "gpu3": "h200x2"}
LONGEST = ("test_torchrun", "test_vllm_service", "test_llama_server", "test_site", "test_rollout", "test_gateway")


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """The longest files first, then by their number of tests: so the processes of pytest-xdist end together."""
    tests = Counter(item.path for item in items)

    def place(item: pytest.Item) -> Tuple[Any, ...]:
        file = item.path
        return LONGEST.index(file.stem) if file.stem in LONGEST else len(LONGEST), -tests[file], file

    items.sort(key=place)


class Run:
    """One run of ansible or ansible-playbook: `rc`, `output`, `results` (one dict a task and host), `stats` by host."""

    def __init__(self, rc: int, output: str, lines: List[Dict[str, Any]], seconds: float) -> None:
        self.rc, self.output, self.seconds = rc, output, seconds
        self.results = [line for line in lines if "result" in line]
        self.stats: Dict[str, Dict[str, int]] = next((line["stats"] for line in lines if "stats" in line), {})

    @property
    def changed(self) -> int:
        """Number of changed tasks over all hosts."""
        return sum(host["changed"] for host in self.stats.values())

    def of(self, action: str, host: Optional[str] = None) -> List[Dict[str, Any]]:
        """Results of one action, by its short name or its FQCN, of one host or all; `failed` is always in them.

        What was skipped has none. What host_check was told in place of an action counts as its result.
        """
        return [
            dict(result, failed=line["status"] in ("failed", "ignored", "unreachable"))
            for line in self.results
            if host in (None, line["host"]) and line["status"] != "skipped"
            for name, result in [(line["action"], line["result"]), *_told(line["result"])]
            if action in (name, name.rpartition(".")[2])
        ]


def _told(result: Dict[str, Any]) -> List[Tuple[str, Dict[str, Any]]]:
    """Module and result of each question of host_check."""
    return [(module, result["registered"][name]) for name, module in result.get("modules", {}).items()]


class Lab:
    """The running test lab."""

    def __init__(self, hosts: int, cache: Path) -> None:
        self.hosts = ["gpu%d" % number for number in range(1, hosts + 1)]
        self.cache = cache
        self.inventory = ""
        self.controller: Optional[Controller] = None
        self.starting = threading.Lock()  # some tests have two runs at once

    def lab(self, *words: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess:
        """Run lab.py; its output is in `.stdout`, what went to stderr after it."""
        command = [sys.executable, str(LAB_PY), *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        done.stdout += done.stderr  # two streams in one pipe come in any order
        assert not check or done.returncode == 0, "lab.py %s: exit %d\n%s" % (
            " ".join(words),
            done.returncode,
            done.stdout,
        )
        return done

    def up(self) -> None:
        self.lab("up", "--hosts", str(len(self.hosts)))
        self.inventory = self.lab("inventory").stdout.strip()

    def down(self) -> None:
        self.lab("down")

    def close(self) -> None:
        if self.controller:
            self.controller.close()

    def sh(self, host: str, command: str, check: bool = True, timeout: float = 120) -> str:
        """Output of a shell command run as root on a host, not through Ansible: the independent look."""
        container = "%s-%s" % (os.environ["GPUFLEET_LAB"], host)
        words = [*podman.inside(container), "sh", "-c", command]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        done.stdout += done.stderr
        assert not check or done.returncode == 0, "%s: %s: exit %d\n%s" % (host, command, done.returncode, done.stdout)
        return done.stdout

    def state(self, host: str, name: Optional[str] = None, *faults: str) -> None:
        """Switch a host's simulated GPUs, without faults unless named; no name: the state the host booted with."""
        words = [word for fault in faults for word in ("--fault", fault)]
        self.sh(host, " ".join([APPLY, name or STATES.get(host, "h200x4"), *words]))

    def reset(self, host: str) -> str:
        """Make a host as after boot: its GPUs, no service of ours, no override, nothing failed. Gives its name back."""
        gpus = "%s %s || exit;" % (APPLY, STATES.get(host, "h200x4"))
        self.sh(
            host,
            gpus + "systemctl list-unit-files --no-legend 'ollama*' 'fleet-*' | while read unit rest; do"
            '   systemctl unmask --quiet $unit; case $unit in *@.service) systemctl stop "${unit%.service}*";;'
            "   *) systemctl disable --quiet --now $unit;; esac; done 2>/dev/null;"
            " umount -q /etc/systemd/system /etc 2>/dev/null;"
            " rm -rf /etc/gpufleet /etc/systemd/system/ollama* /etc/systemd/system/fleet-*;"
            " rm -rf /run/systemd/system/ollama* /run/systemd/system/fleet-*;"
            " systemctl daemon-reload; systemctl reset-failed",
        )
        return host

    def ansible(self, *words: str, timeout: float = 900) -> Run:
        """Run `ansible` or `ansible-playbook` (`words[0]`) on the lab's inventory."""
        results = self.cache / ("results-%d.jsonl" % time.monotonic_ns())
        environ = dict(os.environ, **SETTINGS, GPUFLEET_RESULTS=str(results))
        with self.starting:
            if not self.controller:
                self.controller = Controller(self.cache, environ)
        words = (words[0], "-i", self.inventory, *words[1:])
        started = time.monotonic()
        status, output = self.controller.run(words, environ, ROOT, timeout)
        seconds = time.monotonic() - started
        lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        return Run(status, output, lines, seconds)

    def module(
        self, host: str, name: str, args: Optional[Dict[str, Any]] = None, *words: str, check: bool = False, **more: Any
    ) -> Dict[str, Any]:
        """Run one module over SSH and sudo, with --diff; its result, with `failed` and `seconds` always in it."""
        action = name if "." in name else "gpufleet.inference." + name
        options = ["-a", json.dumps(args)] if args else []
        given = ["-m", action, *options, *(["--check"] if check else []), *words]
        run = self.ansible("ansible", host, "--become", "--diff", *given, **more)
        assert len(run.results) == 1, "no result of %s on %s:\n%s" % (action, host, run.output)
        line = run.results[0]
        return dict(line["result"], failed=line["status"] != "ok", seconds=run.seconds)

    def playbook(self, path: str, *words: str, ok: bool = True, warnings: bool = False, **more: Any) -> Run:
        """Run a playbook with --diff; unless told otherwise it must succeed and must warn of nothing."""
        run = self.ansible("ansible-playbook", "--diff", path, *words, **more)
        assert not ok or run.rc == 0, "%s: exit %d\n%s" % (path, run.rc, run.output)
        assert warnings or not any(word in run.output for word in ("[WARNING]", "[DEPRECATION")), run.output
        return run


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab, up, with FLEET_HOSTS hosts."""
    # Each process of pytest-xdist has a lab of its own.
    names = [os.environ.get("GPUFLEET_LAB") or "test", os.environ.get("PYTEST_XDIST_WORKER")]
    os.environ["GPUFLEET_LAB"] = "-".join(name for name in names if name)
    running = Lab(int(os.environ.get("FLEET_HOSTS", "3")), tmp_path_factory.mktemp("fleet"))
    running.up()
    yield running
    running.close()
    if not os.environ.get("KEEP_LAB"):
        running.down()


@pytest.fixture(scope="module")
def rows() -> Iterator[List[faults_table.Row]]:
    """Rows of a table of docs/faults.md, written at the end when asked for."""
    found: List[faults_table.Row] = []
    yield found
    faults_table.write(found)


@pytest.fixture
def fresh(lab: Lab) -> Callable[[str], str]:
    """`fresh("gpu2")` resets a host and gives its name back."""
    return lab.reset


@pytest.fixture
def host(lab: Lab) -> str:
    """The first host, reset: 4 consumer cards."""
    return lab.reset("gpu1")


@pytest.fixture
def sh(lab: Lab) -> Callable[..., str]:
    return lab.sh


@pytest.fixture
def module(lab: Lab) -> Callable[..., Dict[str, Any]]:
    return lab.module


@pytest.fixture
def run_playbook(lab: Lab) -> Callable[..., Run]:
    return lab.playbook
