# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many hosts at a time the playbook site changes, by Ansible itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml

SITE = Path(__file__).resolve().parents[2] / "playbooks/site.yml"
ENGINES = ("ollama", "vllm", "llama_server")
SHARED = {"name": "big", "model": "org/big", "hosts": ["a", "b"]}


def included(play: Dict[str, Any]) -> List[str]:
    """The roles that a play of site.yml includes."""
    names = [task.get("ansible.builtin.include_role", {}).get("name", "") for task in play.get("tasks", [])]
    return [name.rpartition(".")[2] for name in names if name]


def test_no_role_is_read_for_hosts_that_are_as_declared() -> None:
    """Ansible reads those that a play lists even where it has no hosts: 0.2 s at each start."""
    plays = yaml.safe_load(SITE.read_text())
    assert not [play for play in plays if "roles" in play]
    roles = {role for play in plays for role in included(play)}
    assert roles == {"gateway", "gpu_host", "monitoring", "open_webui", *ENGINES}


def batches(folder: Path, inventory: Dict[str, Any], *words: str) -> Dict[str, int]:
    """Engine to the hosts of its first batch, where three are to be changed."""
    plays = [
        {
            "hosts": "all",
            "gather_facts": False,
            "serial": play["serial"],
            "tasks": [{"ansible.builtin.debug": {"msg": "%s=={{ ansible_play_batch | length }}=" % role}}],
        }
        for play in yaml.safe_load(SITE.read_text())
        for role in included(play)[-1:]
        if role in ENGINES
    ]
    (folder / "play.yml").write_text(json.dumps(plays))
    (folder / "hosts.yml").write_text(json.dumps(inventory))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(folder / "hosts.yml"), *words]
    done = subprocess.run(
        [*command, str(folder / "play.yml")],
        env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "default", "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {role: int(found) for role, found in reversed(re.findall(r"(\w+)==(\d+)=", done.stdout))}


@pytest.mark.parametrize(
    ("gateways", "instances", "words", "expected"),
    [
        ({}, [], (), (3, 3, 3)),
        ({"gw": None}, [], (), (1, 1, 1)),
        ({"gw": None}, [SHARED], (), (1, 3, 1)),
        ({"gw": None}, [], ("-e", "gpufleet_batch=2"), (2, 2, 2)),
    ],
    ids=["no gateway", "a gateway", "a model on several hosts", "as declared"],
)
def test_hosts_behind_a_gateway_change_one_after_the_other(
    tmp_path: Path, gateways: Any, instances: Any, words: Any, expected: Any
) -> None:
    hosts = dict.fromkeys("abc")
    inventory = {"gateway": {"hosts": gateways}, "vllm": {"hosts": hosts, "vars": {"vllm_instances": instances}}}
    assert batches(tmp_path, inventory, "--limit", "vllm", *words) == dict(zip(ENGINES, expected))


def test_roles_run_and_are_asked_in_the_same_order_each_time() -> None:
    """``intersect`` returns another order in each process: with two engines, a host's self check would differ."""
    files = [path for folder in ("playbooks", "roles") for path in (SITE.parents[1] / folder).rglob("*.yml")]
    found = {
        path.name for path in files if re.search(r"intersect\(group_names\)(?! \| length)", path.read_text("utf-8"))
    }
    assert found == set()
