#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare whole runs of site.yml with what the engine takes by itself, on a real GPU host.

    export FOLDER=ENVIRONMENT_WITH_VLLM
    $FOLDER/bin/python tests/gpu/model_of_shape.py /srv/gpufleet-vllm/llama-8b llama-8b
    python3 tests/gpu/overhead.py ROUNDS -i tests/gpu/one.yml

In each round: removed, then configured from nothing; the engine alone started until a token; one variable changed; the
engine alone restarted until a token. Then what a self check costs, as systemd counts it. Leaves the service running.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BARS = {"from nothing": ("start", 1.5), "one variable changed": ("restart", 1.15)}
UNIT = "gpufleet-self-check.service"


def site(inventory: list[str], *more: str) -> float:
    started = time.monotonic()
    command = ["ansible-playbook", *inventory, "playbooks/site.yml", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    took = time.monotonic() - started
    print("\n".join(line for line in done.stdout.splitlines() if re.search("ok ·|failed=", line)), flush=True)
    if done.returncode:
        sys.exit("failed: %s\n%s%s" % (" ".join(command), done.stdout, done.stderr))
    return took


def on_host(inventory: list[str], module: str, arguments: str) -> str:
    command = ["ansible", *inventory, "--become", "-m", module, "-a", arguments, "vllm"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit("failed: %s\n%s%s" % (" ".join(command), done.stdout, done.stderr))
    return done.stdout


def alone(inventory: list[str], verb: str) -> float:
    program = "%s %s vllm@small http://127.0.0.1:8500 small" % (ROOT / "tests/gpu/own.py", verb)
    found = re.search(r"SECONDS ([\d.]+)", on_host(inventory, "ansible.builtin.script", program))
    assert found
    return float(found.group(1))


def self_check(inventory: list[str], times: int) -> list[float]:
    """CPU seconds of each of several checks."""
    ask = "systemctl start %s; systemctl show -P CPUUsageNSec %s" % (UNIT, UNIT)
    used = [on_host(inventory, "ansible.builtin.shell", ask) for _time in range(times)]
    return [int(re.findall(r"(\d{6,})", one)[-1]) / 1e9 for one in used]


def main() -> None:
    rounds, inventory = int(sys.argv[1]), sys.argv[2:]
    took: dict[str, list[float]] = {name: [] for name in ("from nothing", "start", "one variable changed", "restart")}
    for number in range(rounds):
        site(inventory, "-e", "vllm_state=absent")
        took["from nothing"].append(site(inventory))
        took["start"].append(alone(inventory, "start"))
        took["one variable changed"].append(site(inventory, "-e", "vllm_max_num_seqs=%d" % (32 + number)))
        took["restart"].append(alone(inventory, "restart"))
        print({name: ["%.1f" % value for value in values] for name, values in took.items()}, flush=True)
    last = "vllm_max_num_seqs=%d" % (31 + rounds)
    print("nothing to change: %.1f s" % site(inventory, "-e", last))
    medians = {name: statistics.median(values) for name, values in took.items()}
    for name, (verb, bar) in BARS.items():
        ratio = medians[name] / medians[verb]
        said = "%s: %.1f s; the engine alone (%s): %.1f s; ratio %.2f, bar %.2f"
        print(said % (name, medians[name], verb, medians[verb], ratio, bar))
    checks = self_check(inventory, 10)
    print("self check, CPU s: %s; median %.3f" % (checks, statistics.median(checks)))


if __name__ == "__main__":
    main()
