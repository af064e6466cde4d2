# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An invented fleet of any size for the report's page: always the same one for the same number of hosts.

sample.py HOSTS FILE.html
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".collections"))

from ansible_collections.gpufleet.inference.plugins.plugin_utils.report import collect, page

READ_AT = 1796035600  # 2026-11-30 10:46:40 UTC
GIB = 2**30
TOTAL = 141 * GIB
UNFIT = {
    "gpu": 6,
    "check": "remap_pending",
    "effect": "unfit",
    "action": "reset",
    "text": "remapping of memory rows is pending",
    "remedy": "reset the GPU",
}
SLOW = {
    "gpu": 2,
    "check": "hw_thermal_slowdown",
    "effect": "slow",
    "action": "look",
    "text": "the hardware holds the clocks down because of heat (hw_thermal_slowdown)",
    "remedy": "look into it",
}
XID = {
    "gpu": 3,
    "check": "xid_119",
    "effect": "note",
    "action": "reset",
    "text": "Xid 119, the GPU's system processor did not answer: once, 14 min ago",
    "remedy": "reset the GPU",
}
#: Engine, unit, model, GPUs, version, words.
ENGINES = (
    ("ollama", "ollama", "m70b:latest", 8, "0.32.15", "Ollama 0.32.15"),
    ("vllm", "vllm@chat", "qwen3-235b", 8, "0.32.0", "vLLM 0.32.0"),
    ("vllm", "vllm@chat", "llama-3.3-70b", 4, "0.32.0", "vLLM 0.32.0"),
    ("llama_server", "llama-server@embed", "embed-large", 1, "b10488", "llama.cpp b10488"),
)


def fleet(number: int) -> List[Dict[str, Any]]:
    """The hosts. Of any 24 one does not answer, three have a GPU with a problem, and one differs."""
    chance = random.Random(1)
    return [collect.host(*_host(index, number, chance)) for index in range(1, number + 1)]


def _host(index: int, number: int, chance: random.Random) -> Tuple[str, Dict[str, Any], Dict[str, List[str]]]:
    name = "gpu%0*d.example" % (len(str(number)), index)
    if index % 24 == 11:
        said = "ssh: connect to host 192.0.2.%d port 22: No route to host" % (index % 250)
        return name, {"report_gpus": {"unreachable": True, "msg": "Data could not be sent over ssh: " + said}}, {}
    engine, unit, model, taken, version, words = ENGINES[index // 3 % 4]
    findings = {5: [UNFIT], 8: [SLOW], 17: [XID]}.get(index % 24, [])
    devices = _devices(unit, taken, chance, findings)
    differs = index % 24 == 14
    result = {
        "changed": differs,
        "verdict": "ok",
        "msg": "ok · %d× H200 · CUDA_VISIBLE_DEVICES=%s · %s" % (taken, ",".join(map(str, range(taken))), words),
        "restarted": differs,
        "reasons": ["the value in force changes: OLLAMA_KEEP_ALIVE"] * differs,
        "drift": {"OLLAMA_KEEP_ALIVE": {}} if differs else {},
        "differs": ["environment", "override"] * differs,
        "version": version,
    }
    registered = {engine + "_result": dict(result, instances={unit + ".service": result})}
    facts = {
        "devices": devices,
        "findings": findings,
        "driver": {"version": "580.159.04"},
        "topology": [["X" if row == column else "NV18" for column in range(8)] for row in range(8)],
        "rdma": [
            {"name": "mlx5_%d" % card, "gpu_distances": [_near(card, gpu) for gpu in range(8)]} for card in range(4)
        ],
    }
    variables = {
        "report_gpus": {"ansible_facts": {"gpu": facts}},
        "report_generations": {"generations": {unit + ".service": _generations(version, chance)}},
        "rollout_check": {"as_declared": not differs, "registered": registered},
        **(registered if differs else {}),
    }
    if engine == "ollama":
        variables["report_ollama"] = {"results": [{"unit": "ollama.service", "loaded": _loaded(devices)}]}
    return name, variables, {unit: [model]}


def _devices(unit: str, taken: int, chance: random.Random, findings: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    load, warm = chance.choice([0.3, 0.55, 0.8, 0.92]), chance.uniform(35, 70)
    wrong = {one["gpu"]: one for one in findings if one["effect"] != "note"}
    devices = []
    for index in range(8):
        used = int((load if index < taken else 0.01) * TOTAL * chance.uniform(0.97, 1))
        own = wrong.get(index)
        devices.append(
            {
                "index": index,
                "name": "NVIDIA H200",
                "memory": {"used_bytes": used, "total_bytes": TOTAL},
                "temperature": {"gpu_celsius": round(warm + chance.uniform(-5, 5)), "slowdown_celsius": 89},
                "utilization": {"gpu_percent": chance.randint(0, 100)},
                "power": {"usage_watts": chance.uniform(80, 690), "enforced_limit_watts": 700.0},
                "health": {
                    "ok": not own,
                    "fit": not own or own["effect"] == "slow",
                    "lost": False,
                    "reasons": [own["text"]] if own else [],
                },
                "processes": [{"unit": unit + ".service", "used_bytes": used}] if index < taken else [],
            }
        )
    return devices


def _loaded(devices: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    used = {str(device["index"]): device["memory"]["used_bytes"] for device in devices}
    small = {index: int(size * 0.25) for index, size in list(used.items())[:4]}
    return [
        {"name": "m70b:latest", "held_bytes": {index: int(size * 0.7) for index, size in used.items()}},
        {"name": "m32b:latest", "held_bytes": small},
    ]


def _near(card: int, gpu: int) -> str:
    return "PIX" if gpu // 2 == card else "NODE" if gpu // 4 == card // 2 else "SYS"


def _generations(version: str, chance: random.Random) -> List[Dict[str, Any]]:
    return [
        {
            "number": number,
            "accepted": "2026-11-%02dT%02d:1%d:00Z" % (19 + 3 * number, chance.randint(0, 23), number),
            "verdict": "ok",
            "version": version,
            "figures": {"ready_seconds": round(chance.uniform(0.3, 60), 1), "answer": "a token"},
            "downtime_ms": chance.randint(800, 40000),
            "changes": ["keep_alive 5m → 1h"] if number > 1 else [],
        }
        for number in range(1, chance.randint(2, 4))
    ]


def rollouts(hosts: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Three of them; the second one failed on its fifth host."""
    chance, found = random.Random(3), []
    for number in range(3):
        changed = [host for host in hosts if host["services"]][: 9 + number]
        rows = {}
        for index, host in enumerate(changed):
            failed = number == 1 and index == 4
            unit = host["services"][0]["unit"]
            predicted = 2.1 if unit == "ollama" else 38.0
            measured = round(predicted * (3.4 if failed else chance.uniform(0.6, 1.5)), 1)
            rows[host["name"]] = {
                "status": "failed" if failed else "done",
                "why": "not_ready: no answer within 180 s" if failed else "",
                "rolled_back": failed,
                "services": [{"service": unit, "predicted": predicted, "measured": measured}],
            }
        found.append(
            {
                "run": "202611%02dT0%d1400-a1b2c3" % (29 - number * 3, 8 - number),
                "verdict": "failed" if number == 1 else "complete",
                "reason": "1 host failed; rollout_max_failures is 0" if number == 1 else "",
                "hosts": rows,
                "as_declared": [host["name"] for host in hosts[len(rows) :]],
                "prediction_error": {"all": 0.14},
                "pools": {"chat": {"hosts": 12, "minimum": 11, "least_ready": 11}},
            }
        )
    return [collect.rollout(receipt) for receipt in found]


def rendered(number: int) -> str:
    """The page of a fleet."""
    hosts = fleet(number)
    return page.render({"read_at": READ_AT, "hosts": hosts, "rollouts": rollouts(hosts)})


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(rendered(int(sys.argv[1])), encoding="utf-8")
