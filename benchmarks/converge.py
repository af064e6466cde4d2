#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures a run on a fleet that already matches the inventory: site.yml against other ways to do the same checks.

    .venv/bin/python benchmarks/converge.py                       1, 4 and 16 lab hosts, 3 rounds
    .venv/bin/python benchmarks/converge.py --hosts 4 --rounds 5 --pyinfra /opt/pyinfra/bin/pyinfra

The others are: the shell script floor.sh over parallel ssh, pyinfra if it is given, and a playbook of builtin modules,
with this checkout's ansible.cfg (pipelining, 16 forks) and with Ansible's defaults (no pipelining, 5 forks). All run
alternately (A B C A B C …) on the same hosts, so that a change in the machine's speed affects all of them. The figures
are medians; the ratio is computed for each round, and is the figure to compare. Controller CPU is that of the command
and its children; the hosts' CPU is read from their cgroups.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
LAB = os.environ.get("GPUFLEET_LAB", "bench")
DEFAULTS = {"ANSIBLE_PIPELINING": "0", "ANSIBLE_FORKS": "5"}
PLAYBOOK = str(Path(sys.executable).parent / "ansible-playbook")


class Variant(NamedTuple):
    """A way to check all hosts."""

    name: str
    command: list[str]
    env: dict[str, str] = {}


def variants(inventory: str, folder: Path, pyinfra: str | None) -> list[Variant]:
    """The first is what the others are compared with."""
    builtin = [PLAYBOOK, "-i", inventory, str(HERE / "builtin.yml")]
    found = [
        Variant("site.yml", [PLAYBOOK, "-i", inventory, str(ROOT / "site.yml")]),
        Variant("builtin modules, tuned", builtin),
        Variant("builtin modules, Ansible's defaults", builtin, DEFAULTS),
        Variant("shell script over ssh", ["sh", str(floor(inventory, folder))]),
    ]
    if pyinfra:
        found.insert(3, Variant("pyinfra", [pyinfra, "-y", str(pyinfra_hosts(inventory, folder)), "pyinfra_job.py"]))
    return found


def connection(inventory: str) -> tuple[dict[str, str], str, str]:
    """The hosts' addresses, the private key and the file of known hosts."""
    listed = yaml.safe_load(Path(inventory).read_text())
    common = listed["all"]["vars"]
    known = re.search(r'UserKnownHostsFile="([^"]+)"', common["ansible_ssh_common_args"]).group(1)
    hosts = {name: host["ansible_host"] for name, host in listed["ollama"]["hosts"].items()}
    return hosts, common["ansible_ssh_private_key_file"], known


def floor(inventory: str, folder: Path) -> Path:
    """A shell script that pipes floor.sh to all hosts at once, over connections that stay open as Ansible's do."""
    hosts, key, known = connection(inventory)
    options = f"-i {key} -o UserKnownHostsFile={known} -o IdentitiesOnly=yes -o LogLevel=ERROR"
    options += f" -o ControlMaster=auto -o ControlPersist=120s -o ControlPath={folder}/%h"
    lines = [
        f'ssh {options} fleet@{address} sudo sh -s <{HERE}/floor.sh & pids="$pids $!"' for address in hosts.values()
    ]
    script = folder / "floor"
    script.write_text("pids=\n" + "\n".join([*lines, "for pid in $pids; do wait $pid || exit 1; done"]) + "\n")
    return script


def pyinfra_hosts(inventory: str, folder: Path) -> Path:
    hosts, key, known = connection(inventory)
    file = folder / "hosts.py"
    more = {"ssh_user": "fleet", "ssh_key": key, "ssh_known_hosts_file": known}
    file.write_text(f"ollama = {[(address, more) for address in hosts.values()]!r}\n")
    return file


def lab(*words: str) -> str:
    """Output of the lab's own command line."""
    command = [sys.executable, str(ROOT / "tests" / "lab" / "lab.py"), *words]
    done = subprocess.run(command, env={**os.environ, "GPUFLEET_LAB": LAB}, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def run(variant: Variant, *extra: str) -> str:
    """The output of one run; it must not fail."""
    command = [*variant.command, *extra]
    cwd = ROOT if variant.command[0] == PLAYBOOK else HERE
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **variant.env})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return done.stdout


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


def measure(variant: Variant, count: int) -> dict[str, float]:
    """Seconds of wall clock, of the controller's CPU and of the hosts' CPU for one run."""
    hosts, before, begun = host_cpu(count), resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    said = run(variant)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    changed = re.findall(r"changed=(\d+)", said)
    if variant.command[0] == PLAYBOOK and (len(changed) < count or set(changed) != {"0"}):
        raise SystemExit(f"{variant.name} is not converged: changed={changed}\n{said[-3000:]}")
    return {
        "wall": wall,
        "controller": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "hosts": host_cpu(count) - hosts,
    }


def remote_calls(variant: Variant) -> str:
    """What one host was sent in a converged run: commands over SSH, as ansible's own -vvv output names them."""
    if variant.command[0] != PLAYBOOK:
        return "–"
    return str(len(re.findall(r"^<[^>]+> SSH: EXEC ", run(variant, "-vvv", "--limit", "gpu1"), re.MULTILINE)))


def table(count: int, rounds: int, pyinfra: str | None, folder: Path) -> None:
    """The rows of one size of the fleet."""
    lab("up", "--hosts", str(count))
    ways = variants(lab("inventory").strip(), folder, pyinfra)
    for variant in [*ways, ways[0]]:
        run(variant)
    runs: dict[str, list[dict[str, float]]] = {variant.name: [] for variant in ways}
    for _ in range(rounds):
        for variant in ways:
            runs[variant.name].append(measure(variant, count))
    for variant in ways:
        own = runs[variant.name]
        figures = [statistics.median(one[what] for one in own) for what in ("wall", "controller", "hosts")]
        pairs = zip(own, runs[ways[0].name], strict=True)
        ratio = statistics.median(one["wall"] / ours["wall"] for one, ours in pairs)
        cells = [count, variant.name, remote_calls(variant), *("%.2f" % figure for figure in figures), "%.2f" % ratio]
        print("| %s |" % " | ".join(map(str, cells)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pyinfra", metavar="PROGRAM", help="path of pyinfra, if it is to be measured")
    wanted = parser.parse_args()
    print("| hosts | way | remote calls per host | wall s | controller CPU s | hosts' CPU s | wall beside site.yml |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    try:
        for count in wanted.hosts:
            with tempfile.TemporaryDirectory() as folder:
                table(count, wanted.rounds, wanted.pyinfra, Path(folder))
    finally:
        lab("down")


if __name__ == "__main__":
    main()
