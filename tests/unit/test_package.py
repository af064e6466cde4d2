# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as a user installs it: built, installed elsewhere, its parts found by their FQCN."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, List

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`installed(TOOL, WORD...)` runs a tool of ansible-core where only the installed collection can be found."""
    folder = tmp_path_factory.mktemp("package")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment.update(
        ANSIBLE_COLLECTIONS_PATH=str(folder / "collections"), ANSIBLE_HOME=str(folder), ANSIBLE_NOCOLOR="1"
    )
    environment["ANSIBLE_COLLECTIONS_SCAN_SYS_PATH"] = "0"

    def run(tool: str, *words: str, cwd: Path = folder, rc: int = 0) -> str:
        command = [str(Path(sys.executable).parent / tool), *words]
        done = subprocess.run(
            command, cwd=cwd, env=environment, text=True, stdin=subprocess.DEVNULL, capture_output=True
        )
        assert done.returncode == rc, done.stdout + done.stderr
        if rc:
            return " ".join((done.stdout + done.stderr).split())
        assert "[WARNING]" not in done.stderr and "[DEPRECATION" not in done.stderr, done.stderr
        return done.stdout

    run("ansible-galaxy", "collection", "build", "--output-path", str(folder), cwd=ROOT)
    (tarball,) = folder.glob("gpufleet-inference-*.tar.gz")
    assert tarball.stat().st_size < 2 * 1024 * 1024, "more than the collection is in the tarball"
    run("ansible-galaxy", "collection", "install", "--offline", str(tarball), "-p", str(folder / "collections"))
    run.folder = folder  # type: ignore[attr-defined]
    return run


def test_modules_are_documented(installed: Callable[..., str]) -> None:
    names = ["gpufleet.inference." + module for module in MODULES]
    documents = json.loads(installed("ansible-doc", "--json", *names))
    assert sorted(documents) == names
    for document in documents.values():
        assert document["doc"]["short_description"] and document["examples"] and document["return"]


def test_playbooks_are_found_by_name(installed: Callable[..., str], tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.ini"
    inventory.write_text("[ollama]\ngpu1\n[torchrun]\ngpu1\n")
    names = ["gpufleet.inference." + playbook for playbook in PLAYBOOKS]
    said = installed("ansible-playbook", "-i", str(inventory), "--syntax-check", *names)
    assert [Path(line).stem for line in said.splitlines() if line.startswith("playbook: ")] == PLAYBOOKS


def test_the_example_inventory_is_packed_and_the_workshop_is_not(installed: Any) -> None:
    collection = installed.folder / "collections/ansible_collections/gpufleet/inference"
    listed = json.loads(installed("ansible-inventory", "-i", str(collection / "inventories/example"), "--list"))
    assert listed["ollama"]["hosts"] == ["gpu-a.example", "gpu-b.example"]
    names = {entry["name"] for entry in json.loads((collection / "FILES.json").read_text())["files"]}
    assert {"inventories/example/group_vars/vllm.yml", "playbooks/site.yml", "playbooks/checks/hosts.yml"} <= names
    packed = {name.partition("/")[0] for name in names}
    assert not packed & {"ansible.cfg", "Makefile", "site.yml", "tests"}
    assert "extensions/eda/rulebooks/repair.yml" in names
    assert not names & {"inventories/lab", "extensions/molecule"}


def test_every_group_of_the_example_inventory_is_one_of_a_playbook() -> None:
    """The commented groups too: without the comments it is still an inventory."""
    text = (ROOT / "inventories/example/hosts.yml").read_text(encoding="utf-8")
    _head, groups = text.split("ollama:\n", 1)
    full = yaml.safe_load("ollama:\n" + re.sub("(?m)^# ", "", groups))
    checks = [yaml.safe_load(path.read_text("utf-8"))[0]["vars"] for path in (ROOT / "playbooks").glob("*.yml")]
    known = {name for check in checks for name in check["checked_groups"]}
    assert set(full) - {"all"} == known
    assert {path.stem for path in (ROOT / "inventories/example/group_vars").iterdir()} == known


@pytest.mark.parametrize(
    ("playbook", "words", "said"),
    [
        ("site", [], "of the hosts of this run (there is no inventory), none is in a group of this playbook (ollama,"),
        ("verify", ["-i", "gpu9,"], "of the hosts of this run (gpu9), none is in a group of this playbook (ollama,"),
        ("site", ["-i", "INVENTORY", "--limit", "web"], "of the hosts of this run (web1, web2), none is in a group"),
        ("loadtest", [], "none is in a group of this playbook (ollama, vllm, llama_server)"),
        ("adopt", ["-i", "gpu9,"], "none is in a group of this playbook (ollama)"),
        ("torchrun", ["-i", "INVENTORY"], "none is in a group of this playbook (torchrun)"),
        ("torchrun_check", ["-i", "INVENTORY"], "none is in a group of this playbook (torchrun)"),
        ("site", ["-i", "INVENTORY", "--tags", "model"], "has no tag model; it has gpu_host, facts, models, service"),
        ("verify", ["-i", "INVENTORY", "--tags", "service"], "has no tag service; it has none, and always runs as a"),
    ],
)
def test_nothing_done_is_no_success(installed: Any, tmp_path: Path, playbook: str, words: List[str], said: str) -> None:
    inventory = tmp_path / "hosts.ini"
    inventory.write_text("[web]\nweb1\nweb2\n[ollama]\ngpu1\n")
    words = [str(inventory) if word == "INVENTORY" else word for word in words]
    output = installed("ansible-playbook", *words, "gpufleet.inference." + playbook, rc=2)
    assert "nothing to do: " in output and said in output


def test_the_documented_tags_are_those_of_the_tasks(installed: Any, tmp_path: Path) -> None:
    (tmp_path / "hosts.ini").write_text("[ollama]\ngpu1\n")
    site = (ROOT / "playbooks/site.yml").read_text(encoding="utf-8")
    play = [
        {"hosts": "all", "gather_facts": False, "roles": re.findall(r"name: (gpufleet\.inference\.\w+)$", site, re.M)}
    ]
    (tmp_path / "play.yml").write_text(json.dumps(play))
    listed = installed("ansible-playbook", "-i", str(tmp_path / "hosts.ini"), "--list-tags", str(tmp_path / "play.yml"))
    tags = set(re.findall(r"[\w-]+", " ".join(re.findall(r"TASK TAGS: \[(.*)\]", listed))))
    applied = set(re.findall(r"apply: \{tags: \[(\w+)\]\}", site))
    assert tags | applied == {"always", *yaml.safe_load(site)[0]["vars"]["checked_tags"]}
