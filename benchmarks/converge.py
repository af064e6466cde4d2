#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures a run on a fleet that already matches the inventory: site.yml against a playbook of builtin modules.

    .venv/bin/python benchmarks/converge.py                       1, 4 and 16 lab hosts, 3 rounds
    .venv/bin/python benchmarks/converge.py --hosts 4 --rounds 5

The builtin playbook runs twice: with this checkout's ansible.cfg (pipelining, 16 forks), and with Ansible's defaults
(no pipelining, 5 forks). All three run alternately (A B C A B C …) on the same hosts, so that a change in the machine's
speed affects all of them. The results are medians; the ratio is computed for each round. Controller CPU is that of
ansible-playbook and its children; the hosts' CPU is read from their cgroups. The ratio is the figure to compare.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAB = os.environ.get("GPUFLEET_LAB", "bench")
DEFAULTS = {"ANSIBLE_PIPELINING": "0", "ANSIBLE_FORKS": "5"}
BUILTIN = ROOT / "benchmarks" / "builtin.yml"
#: Name, playbook, environment; the first is what the others are compared with
VARIANTS = (
    ("site.yml", ROOT / "site.yml", {}),
    ("builtin modules, tuned", BUILTIN, {}),
    ("builtin modules, Ansible's defaults", BUILTIN, DEFAULTS),
)


def lab(*words: str) -> str:
    """Output of the lab's own command line."""
    command = [sys.executable, str(ROOT / "tests" / "lab" / "lab.py"), *words]
    done = subprocess.run(command, env={**os.environ, "GPUFLEET_LAB": LAB}, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def play(playbook: Path, inventory: str, *extra: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    """One run of a playbook; it must not fail."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", inventory, str(playbook), *extra]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return done


def host_cpu(count: int) -> float:
    """CPU seconds used so far by all hosts of the lab."""
    total = 0
    for number in range(1, count + 1):
        stat = subprocess.run(
            ["podman", "exec", f"{LAB}-gpu{number}", "cat", "/sys/fs/cgroup/cpu.stat"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        total += int(re.search(r"usage_usec (\d+)", stat).group(1))
    return total / 1e6


def measure(playbook: Path, inventory: str, count: int, env: dict[str, str]) -> dict[str, float]:
    """Seconds of wall clock, of the controller's CPU and of the hosts' CPU for one run."""
    hosts, before, begun = host_cpu(count), resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = play(playbook, inventory, env=env)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    changed = re.findall(r"changed=(\d+)", done.stdout)
    if len(changed) < count or set(changed) != {"0"}:
        raise SystemExit(f"{playbook.name} is not converged: changed={changed}\n{done.stdout[-3000:]}")
    return {
        "wall": wall,
        "controller": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "hosts": host_cpu(count) - hosts,
    }


def remote_calls(playbook: Path, inventory: str, env: dict[str, str]) -> int:
    """What one host was sent in a converged run: commands over SSH, as ansible's own -vvv output names them."""
    said = play(playbook, inventory, "-vvv", "--limit", "gpu1", env=env).stdout
    return len(re.findall(r"^<[^>]+> SSH: EXEC ", said, re.MULTILINE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    print("| hosts | playbook | remote calls per host | wall s | controller CPU s | hosts' CPU s | slower by |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    try:
        for count in wanted.hosts:
            lab("up", "--hosts", str(count))
            inventory = lab("inventory").strip()
            for playbook in (VARIANTS[0][1], BUILTIN):
                play(playbook, inventory, env={})
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in VARIANTS}
            for _ in range(wanted.rounds):
                for name, playbook, env in VARIANTS:
                    rounds[name].append(measure(playbook, inventory, count, env))
            ours = rounds[VARIANTS[0][0]]
            for name, playbook, env in VARIANTS:
                runs = rounds[name]
                figures = [statistics.median(run[what] for run in runs) for what in ("wall", "controller", "hosts")]
                ratio = statistics.median(run["wall"] / own["wall"] for run, own in zip(runs, ours, strict=True))
                print(
                    f"| {count} | {name} | {remote_calls(playbook, inventory, env)} | "
                    + " | ".join(f"{figure:.1f}" for figure in figures)
                    + f" | {ratio:.1f} |",
                    flush=True,
                )
    finally:
        lab("down")


if __name__ == "__main__":
    main()
