# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as a user installs it: built, installed elsewhere, its parts found by their FQCN."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

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

    def run(tool: str, *words: str, cwd: Path = folder) -> str:
        command = [str(Path(sys.executable).parent / tool), *words]
        done = subprocess.run(
            command, cwd=cwd, env=environment, text=True, stdin=subprocess.DEVNULL, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "[WARNING]" not in done.stderr and "[DEPRECATION" not in done.stderr, done.stderr
        return done.stdout

    run("ansible-galaxy", "collection", "build", "--output-path", str(folder), cwd=ROOT)
    (tarball,) = folder.glob("gpufleet-inference-*.tar.gz")
    assert tarball.stat().st_size < 2 * 1024 * 1024, "more than the collection is in the tarball"
    run("ansible-galaxy", "collection", "install", "--offline", str(tarball), "-p", str(folder / "collections"))
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
