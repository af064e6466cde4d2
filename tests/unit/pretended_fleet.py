# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts over the local connection, each with a pretended service, for the playbooks of a rollout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import yaml

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/unit/fixtures/rollout"
APPLY = os.path.relpath(FIXTURES / "apply.yml", ROOT / "playbooks/rollout_parts")
"""Relative, as with an absolute path a rollout reserves no host."""
TOOL = str(Path(sys.executable).with_name("ansible-playbook"))
POOLS = {"h1": ["chat"], "h2": ["chat", "embed"], "h3": ["chat", "embed"], "h4": ["embed"]}


class Fleet:
    """Four hosts in two pools, h2 and h3 in both; or others."""

    def __init__(self, folder: Path, pools: Dict[str, List[str]] = POOLS) -> None:
        self.world, self.state, self.inventory = folder / "world", folder / "state", folder / "fleet.yml"
        self.folder, self.hosts = folder, list(pools)
        self.world.mkdir()
        hosts = {name: {"ollama_models": models} for name, models in pools.items()}
        self.inventory.write_text(yaml.safe_dump({"ollama": {"hosts": hosts, "vars": {"ansible_connection": "local"}}}))

    def words(self, playbook: str, words: Any, variables: Dict[str, Any]) -> List[str]:
        given = {
            "world": str(self.world),
            "want": "new",
            "rollout_state": str(self.state),
            "rollout_apply": APPLY,
            "rollout_soak": 0,
            **variables,
        }
        given = {name: value for name, value in given.items() if value is not None}
        extra = ["-e", json.dumps(given), *words]
        return [TOOL, "-i", str(self.inventory), str(ROOT / "playbooks" / (playbook + ".yml")), *extra]

    def start(self, *words: str, playbook: str = "rollout", environ: Any = None, **variables: Any) -> subprocess.Popen:
        own = {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ACTION_PLUGINS": str(FIXTURES / "action"),
            "ANSIBLE_CALLBACK_PLUGINS": str(FIXTURES / "callback"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "tmp"),
            **(environ or {}),
        }
        return subprocess.Popen(
            self.words(playbook, words, variables),
            cwd=ROOT,
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, rc: Optional[int] = 0, **more: Any) -> str:
        process = self.start(*words, **more)
        output, _nothing = process.communicate(timeout=120)
        assert rc is None or process.returncode == rc, output
        return output

    def fault(self, host: str, mode: str) -> None:
        (self.world / (host + ".fault")).write_text(mode)

    def heal(self) -> None:
        for path in self.world.glob("*.fault"):
            path.unlink()

    def log(self) -> List[str]:
        path = self.world / "log"
        return path.read_text().splitlines() if path.exists() else []

    def changes(self) -> Dict[str, List[str]]:
        """What was applied to each host, one change after the other."""
        paths = [self.world / host for host in self.hosts]
        return {path.name: path.read_text().split()[1:] for path in paths if path.exists()}

    def events(self) -> List[Dict[str, Any]]:
        return [json.loads(line) for line in (self.state / "journal.jsonl").read_text().splitlines()]

    def receipt(self) -> Dict[str, Any]:
        path = max(self.state.glob("receipt-*.json"), key=lambda path: path.stat().st_mtime_ns)
        found: Dict[str, Any] = json.loads(path.read_text())
        return found

    def statuses(self) -> Dict[str, str]:
        return {host: own["status"] for host, own in self.receipt()["hosts"].items()}

    def reservations(self) -> Dict[str, str]:
        """For each reserved host, by which rollouts."""
        places = self.world.glob("*.reservation/rollout.json")
        return {path.parent.stem: json.loads(path.read_text())["holder"] for path in places}

    def reserve(self, *hosts: str, holder: str = "theirs") -> None:
        """For somebody else's rollout."""
        for host in hosts:
            place = self.world / (host + ".reservation") / "rollout.json"
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps({"holder": holder, "run": "r9", "by": "ada@ctl2", "since": "2026-11-30"}))

    def wait(self, line: str) -> None:
        until = time.monotonic() + 60
        while line not in self.log():
            assert time.monotonic() < until, self.log()
            time.sleep(0.02)
