# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts the roles are run on."""

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

from ansible_collections.gpufleet.inference.plugins.filter.still_to_do import NONE, FilterModule

still_to_do = FilterModule().filters()["still_to_do"]
ROOT = Path(__file__).resolve().parents[4]

DONE = {"as_declared": True, "roles": ["gpu_host", "ollama"], "shares": False}
SHARES = {**DONE, "shares": True}
OF_ANOTHER_ROLE = {**DONE, "roles": ["gpu_host"]}
DIFFERS = {"as_declared": False, "msg": "the roles are run"}
FAILED = {"failed": True, "msg": "roles is missing"}


@pytest.mark.parametrize(
    "checks, pattern",
    [
        ({}, NONE),
        ({"a": None, "b": None}, "ollama"),
        ({"a": DIFFERS, "b": FAILED}, "ollama"),
        ({"a": DONE, "b": DIFFERS}, "ollama,!a"),
        ({"a": OF_ANOTHER_ROLE, "b": DONE}, "ollama,!b"),
        ({"a": DONE, "b": DONE}, NONE),
        ({"a": SHARES, "b": SHARES}, NONE),
        ({"a": DONE, "b": SHARES}, NONE),
        ({"a": None, "b": SHARES}, "ollama"),
        ({"a": DONE, "b": SHARES, "c": DIFFERS}, "ollama,!a"),
    ],
)
def test_the_hosts(checks: Dict[str, Any], pattern: str) -> None:
    hostvars = {host: {"gpufleet_check": check} if check else {} for host, check in checks.items()}
    assert still_to_do({"ollama": list(checks)}, "ollama", hostvars) == pattern


def test_several_roles() -> None:
    groups = {"ollama": ["a", "b"], "vllm": ["b", "c", "d"], "llama_server": ["a"]}
    done = {"as_declared": True, "roles": ["gpu_host", "ollama", "vllm", "llama_server"], "shares": False}
    roles = ["ollama", "vllm", "llama_server"]

    def pattern(**checks: Any) -> str:
        return str(still_to_do(groups, roles, {host: {"gpufleet_check": one} for host, one in checks.items()}))

    assert pattern(a=done, b=DIFFERS, c=done, d=DIFFERS) == "ollama,vllm,!a,!c"
    assert pattern(a=done, b=done, c=DIFFERS, d=done) == "vllm,!b,!d"
    assert pattern(a=done, b=done, c=done, d=done) == NONE


def test_a_group_that_the_inventory_does_not_have() -> None:
    assert still_to_do({"vllm": ["a"]}, "ollama", {"a": {"gpufleet_check": DONE}}) == NONE


def test_the_last_check_of_a_run_counts(tmp_path: Path) -> None:
    """By a real ansible-playbook, with the very patterns of site.yml."""
    (hosts,) = {
        play["hosts"]
        for play in yaml.safe_load((ROOT / "playbooks/site.yml").read_text())
        if "'ollama', hostvars" in play.get("hosts", "")
    }

    def serve(name: str) -> Dict[str, Any]:
        task = {"ansible.builtin.debug": {"msg": "%s {{ inventory_hostname }}" % name}}
        return {"name": name, "hosts": hosts, "gather_facts": False, "tasks": [task]}

    def check(**results: Any) -> Dict[str, Any]:
        task = {"ansible.builtin.set_fact": {"gpufleet_check": "{{ results[inventory_hostname] }}"}}
        return {"hosts": "all", "gather_facts": False, "tasks": [{**task, "vars": {"results": results}}]}

    plays = [serve("unasked"), check(a=DONE, b=DIFFERS), serve("first"), check(a=DIFFERS, b=DONE), serve("second")]
    plays += [check(a=OF_ANOTHER_ROLE, b=DONE), serve("third"), check(a=DONE, b=SHARES), serve("fourth")]
    (tmp_path / "play.yml").write_text(json.dumps(plays))
    (tmp_path / "hosts.yml").write_text(json.dumps({"ollama": {"hosts": {"a": {}, "b": {}}}}))
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "hosts.yml", "play.yml"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    # One fork prints the hosts in the inventory's order.
    environ.update(ANSIBLE_COLLECTIONS_PATH=str(ROOT / ".collections"), ANSIBLE_NOCOLOR="1", ANSIBLE_FORKS="1")
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ran: List[str] = re.findall(r'"msg": "(\w+ \w)"', done.stdout)
    assert ran == ["unasked a", "unasked b", "first b", "second a", "third a"]
