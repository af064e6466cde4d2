# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups of hosts by their facts, by Ansible's own constructed inventory and its fact cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "inventories/example/hosts_by_facts.yml"
H200 = {"name": "NVIDIA H200", "memory": {"total_bytes": 150754820096}}
RTX = {"name": "NVIDIA GeForce RTX 4090", "memory": {"total_bytes": 25757220864}}
FACTS: Dict[str, Any] = {
    "big": {"devices": [H200] * 2, "findings": [{"effect": "note"}], "driver": {"version": "580.159.04"}},
    "mixed": {"devices": [H200, RTX], "findings": [{"effect": "unfit"}], "driver": {"version": "570.1"}},
    "lost": {"devices": [RTX], "findings": [], "driver": {"version": "580.1"}, "fault": {"code": "gpu_lost"}},
    "slow": {"devices": [RTX], "findings": [{"effect": "slow"}], "driver": {"version": "580.1"}},
}
HOSTS = {"ollama": {"hosts": dict.fromkeys([*FACTS, "bare", "new"]), "vars": {"ansible_connection": "local"}}}


def ansible(folder: Path, program: str, *words: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name(program)), "-i", str(folder / "hosts.yml"), *words],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
            "ANSIBLE_CACHE_PLUGIN": "jsonfile",
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(folder / "cache"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "HOME": str(folder),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_hosts_are_grouped_by_what_was_found_there(tmp_path: Path) -> None:
    """`bare` is this machine as gpu_facts really finds it, without a driver; `new` has never been asked."""
    plays = [
        {
            "hosts": host,
            "gather_facts": False,
            "tasks": [
                {
                    "ansible.builtin.set_fact": {
                        "gpu": {"fault": None, "count": len(facts["devices"]), **facts},
                        "cacheable": True,
                    }
                }
            ],
        }
        for host, facts in FACTS.items()
    ]
    asked = {"hosts": "bare", "gather_facts": False, "tasks": [{"gpufleet.inference.gpu_facts": {}}]}
    (tmp_path / "hosts.yml").write_text(json.dumps(HOSTS))
    (tmp_path / "plays.yml").write_text(json.dumps([*plays, asked]))
    ansible(
        tmp_path, "ansible-playbook", str(tmp_path / "plays.yml"), "-e", "ansible_python_interpreter=" + sys.executable
    )
    listed = json.loads(ansible(tmp_path, "ansible-inventory", "-i", str(EXAMPLE), "--list"))
    groups = {name: sorted(group["hosts"]) for name, group in listed.items() if name.startswith("gpu")}
    assert groups == {
        "gpu_model_nvidia_h200": ["big", "mixed"],
        "gpu_model_nvidia_geforce_rtx_4090": ["lost", "mixed", "slow"],
        "gpu_memory_140": ["big"],
        "gpu_memory_24": ["lost", "mixed", "slow"],
        "gpu_driver_580": ["big", "lost", "slow"],
        "gpu_driver_570": ["mixed"],
        "gpus_2": ["big", "mixed"],
        "gpus_1": ["lost", "slow"],
        "gpus_0": ["bare"],
        "gpu_unfit": ["lost", "mixed"],
        "gpu_slow": ["slow"],
    }
