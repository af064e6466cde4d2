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

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "playbooks/site.yml"
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


def played(folder: Path, inventory: Dict[str, Any], plays: List[Any], *words: str) -> Any:
    (folder / "play.yml").write_text(json.dumps(plays))
    (folder / "hosts.yml").write_text(json.dumps(inventory))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(folder / "hosts.yml"), *words]
    return subprocess.run(
        [*command, str(folder / "play.yml")],
        env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "default", "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


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
    done = played(folder, inventory, plays, *words)
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


def test_what_the_preflight_says_where_a_gpu_that_must_not_be_used_fails_the_run(tmp_path: Path) -> None:
    def facts(*findings: Dict[str, Any], fit: bool = True, count: int = 2) -> Dict[str, Any]:
        health = {"ok": not findings, "fit": fit, "lost": False, "reasons": []}
        return {"fault": None, "count": count, "devices": [{"index": 0, "health": health}], "findings": findings}

    slow = {"check": "hw_slowdown", "effect": "slow", "line": "GPU 0: hw_slowdown: it is hot"}
    sick = {"check": "remap_pending", "effect": "unfit", "line": "GPU 0: remap_pending: reset it"}
    short = {"check": "gpu_missing", "effect": "unfit", "line": "gpu_missing: 1 of 2", "remedy": "look at its seat"}
    found = {"slow": facts(slow), "sick": facts(slow, sick, fit=False), "short": facts(short, count=1)}
    given = {"gpu_host_on_unhealthy": "fail", "gpu_host_expected_gpus": 2, "gpu_host_required": True}
    inventory = {"all": {"hosts": {host: {**given, "found": gpu} for host, gpu in found.items()}}}
    tasks = [
        {"ansible.builtin.set_fact": {"gpu": "{{ found }}", "cacheable": True}},
        {"ansible.builtin.import_tasks": str(ROOT / "roles/gpu_host/tasks/preflight.yml")},
    ]
    done = played(tmp_path, inventory, [{"hosts": "all", "gather_facts": False, "tasks": tasks}])
    said = " ".join(done.stdout.split())
    assert "slow: gpu_unhealthy" not in said and re.search(r"slow +: ok=2 .*? failed=0", said), said
    assert "sick: gpu_unhealthy: GPU 0: remap_pending: reset it. What to do: repair them" in said
    assert "short: gpu_missing: 1 of 2. What to do: look at its seat" in said
