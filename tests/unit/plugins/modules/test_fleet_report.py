# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible runs it: which hosts and receipts are on the page, who can read it, what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

ROOT = Path(__file__).resolve().parents[4]
TOOL = str(Path(sys.executable).with_name("ansible-playbook"))
INVENTORY = """
ollama: {hosts: {gpu10: , gpu2: }}
vllm: {hosts: {gone: }}
all:
  vars:
    ansible_connection: local
    vllm_api_key: hunter2
    vllm_instances: [{name: chat, model: org/small, api_key: hunter2}]
  hosts:
    gpu2: {report_gpus: {ansible_facts: {gpu: {devices: [{index: 0, name: !unsafe "{{ 7 * 7 }}</script>"}]}}}}
    gpu10: {report_gpus: {ansible_facts: {gpu: {findings: [{gpu: 1, effect: unfit, action: reset, text: rows}]}}}}
    gone: {report_gpus: {unreachable: true, msg: No route to host}}
"""


class Run:
    """A play of one task on three hosts, of which one does not answer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.page = folder, folder / "page.html"
        (folder / "fleet.yml").write_text(INVENTORY)

    def __call__(self, *words: str, rc: int = 0, **arguments: Any) -> str:
        task = {"gpufleet.inference.fleet_report": arguments or {"path": str(self.page)}, "run_once": True}
        play = [{"hosts": "all", "gather_facts": False, "tasks": [task]}]
        (self.folder / "play.yml").write_text(json.dumps(play))
        own = {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"), "ANSIBLE_NOCOLOR": "1", "HOME": str(self.folder)}
        words = ("-i", "fleet.yml", "play.yml", "-v", "-e", "rollout_state=state", *words)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        done = subprocess.run([TOOL, *words], cwd=self.folder, env={**clean, **own}, capture_output=True, text=True)
        assert done.returncode == rc, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    def data(self) -> Dict[str, Any]:
        found = re.search(r'id="data">(.*?)</script', self.page.read_text(), re.DOTALL)
        assert found
        data: Dict[str, Any] = json.loads(found[1])
        return data


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_the_page_has_every_host_and_no_secret(run: Run) -> None:
    said = run()
    assert "page.html: 3 hosts, 2 with a problem" in said
    hosts = {host["name"]: host for host in run.data()["hosts"]}
    assert list(hosts) == ["gone", "gpu2", "gpu10"]
    assert hosts["gpu2"]["gpus"][0]["name"] == "{{ 7 * 7 }}</script>"
    assert [one["kind"] for one in hosts["gone"]["problems"]] == ["unreachable"]
    assert "hunter2" not in run.page.read_text() + said
    assert run.page.stat().st_mode & 0o777 == 0o600


def test_an_older_page_is_replaced_and_a_link_is_not_followed(run: Run) -> None:
    other = run.folder / "other"
    other.write_text("as before")
    run.page.symlink_to(other)
    run()
    assert other.read_text() == "as before" and not run.page.is_symlink() and run.data()["hosts"]
    assert sorted(path.name for path in run.folder.glob("*report*")) == []


def test_receipts_are_those_of_the_state_folder_the_newest_first(run: Run) -> None:
    state = run.folder / "state"
    state.mkdir()
    for name in ("20261128T1", "20261130T1", "20261129T1"):
        (state / ("receipt-%s.json" % name)).write_text(json.dumps({"run": name, "hosts": {}}))
    (state / "receipt-20261201T1.json").write_text("torn")
    run()
    assert [one["run"] for one in run.data()["rollouts"]] == ["20261130T1", "20261129T1", "20261128T1"]


def test_check_mode_writes_nothing(run: Run) -> None:
    assert "3 hosts, 2 with a problem" in run("--check")
    assert not run.page.exists()


def test_a_folder_that_does_not_exist_is_named(run: Run) -> None:
    said = run(rc=2, path=str(run.folder / "no/page.html"))
    assert "the page cannot be written to %s/no/page.html: [Errno 2] No such file or directory" % run.folder in said


def test_a_misspelt_option_is_named(run: Run) -> None:
    assert "dest is not an option" in run(rc=2, dest="x")
