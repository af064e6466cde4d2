#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares site.yml with other ways to do the same job on the lab's hosts.

    make bench                                                    4 hosts, nothing to change; both can be chosen:
    make bench BENCH="--hosts 16 --jobs converged change first"
    .venv/bin/python benchmarks/converge.py --pyinfra /opt/pyinfra/bin/pyinfra --write

The others are a playbook of builtin modules, with this checkout's ansible.cfg (pipelining, 16 forks) and with Ansible's
defaults (no pipelining, 5 forks), Mitogen and pyinfra where they are given, and a shell script over parallel ssh. All
run alternately (A B C A B C …) on the same hosts, so that a change in the machine's speed affects all of them. The
figures are medians; the ratio is computed for each round, and is the figure to compare. Controller CPU is that of the
command and its children; the hosts' CPU is read from their cgroups.
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
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from converge_ways import JOBS, ROOT, SITE, Job, Way, ways

LAB = os.environ.get("GPUFLEET_LAB", "bench")
PAGE = ROOT / "docs/benchmarks.md"
COLUMNS = ("way", "remote calls per host", "wall s", "controller CPU s", "CPU s of a host", "wall relative to site.yml")
CONVERGED = "-1"


class Cost(NamedTuple):
    """Seconds of one run."""

    wall: float
    controller: float
    host: float
    """CPU of a host."""


def lab(*words: str) -> str:
    """Output of the lab's own command line."""
    command = [sys.executable, str(ROOT / "tests" / "lab" / "lab.py"), *words]
    done = subprocess.run(command, env={**os.environ, "GPUFLEET_LAB": LAB}, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def on_hosts(count: int, script: str) -> list[str]:
    """Output of a shell script on all hosts of the lab, as root, not over SSH."""
    started = [
        subprocess.Popen(
            ["podman", "exec", f"{LAB}-gpu{number}", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        for number in range(1, count + 1)
    ]
    return [one.communicate()[0] for one in started]


def host_cpu(count: int) -> float:
    """CPU seconds used so far by all hosts of the lab."""
    stats = on_hosts(count, "cat /sys/fs/cgroup/cpu.stat")
    return sum(int(re.search(r"usage_usec (\d+)", stat).group(1)) for stat in stats) / 1e6


def run(way: Way, value: str, *extra: str) -> str:
    """The output of one run; it must not fail."""
    command = [*way.words(value), *extra]
    cwd = ROOT if way.playbook else ROOT / "benchmarks"
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **way.env})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return done.stdout


def measure(way: Way, job: Job, value: str, count: int) -> Cost:
    """What one run costs. It must have done its job, and nothing else."""
    hosts, before, begun = host_cpu(count), resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    said = run(way, value)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    host = (host_cpu(count) - hosts) / count
    changed = [number != "0" for number in re.findall(r"changed=(\d+)", said)]
    if way.playbook and (changed.count(True) != (count if job.changes else 0) or len(changed) < count):
        raise SystemExit(f"{way.name} changed {changed.count(True)} of {count} hosts:\n{said[-3000:]}")
    for shown in on_hosts(count, "systemctl show ollama.service -p Environment -p ActiveState -p UnitFileState"):
        if not all(one in shown for one in (f"OLLAMA_KEEP_ALIVE={value}", "=active", "=enabled")):
            raise SystemExit(f"{way.name} has left a host in another state:\n{shown}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, host)


def prepare(way: Way, job: Job, value: str, count: int, compared: list[Way]) -> None:
    """Have the hosts as they are to be when the time starts."""
    if job.before:
        on_hosts(count, job.before)
    elif job.changes:  # as this way has configured them; what another one has left would count more, or less
        others = {one.drop_in for one in compared} - {way.drop_in}
        paths = " ".join("/etc/systemd/system/ollama.service.d/" + name for name in others)
        left = on_hosts(count, f"ls {paths} 2>/dev/null; rm -f {paths}; systemctl daemon-reload")
        if any(left):
            run(way if way.name == SITE else compared[-1], value)


def remote_calls(way: Way, count: int) -> str:
    """What one host was sent in a converged run: commands over SSH, as Ansible's own -vvv output names them."""
    if not way.playbook or "ANSIBLE_STRATEGY" in way.env:
        return "–"
    return str(len(re.findall(r"^<[^>]+> SSH: EXEC ", run(way, CONVERGED, "-vvv", "--limit", "gpu1"), re.MULTILINE)))


def rounds_of(compared: list[Way], job: Job, count: int, rounds: int) -> dict[str, list[Cost]]:
    """The costs of each way, one of each round."""
    costs: dict[str, list[Cost]] = {way.name: [] for way in compared}
    values = (f"{number}h" if job.changes else CONVERGED for number in range(1, 1_000_000))
    for _ in range(rounds):
        for way in compared:
            prepare(way, job, next(values), count, compared)
            costs[way.name].append(measure(way, job, next(values), count))
    return costs


def table(compared: list[Way], job: Job, count: int, costs: dict[str, list[Cost]]) -> Iterator[str]:
    """The lines of the table of one job on so many hosts."""
    columns = [column for column in COLUMNS if not job.changes or "calls" not in column]
    yield "| %s |" % " | ".join(columns)
    yield "| %s |" % " | ".join("---" for _column in columns)
    ours = costs[compared[0].name]
    for way in compared:
        own = costs[way.name]
        ratio = statistics.median(one.wall / other.wall for one, other in zip(own, ours, strict=True))
        figures = ["%.2f" % statistics.median(column) for column in zip(*own, strict=True)]
        calls = [] if job.changes else [remote_calls(way, count)]
        yield "| %s |" % " | ".join([way.name, *calls, *figures, "%.2f" % ratio])


def section(compared: list[Way], job: Job, count: int, rounds: int) -> str:
    """The heading, the circumstances and the table of one job."""
    costs = rounds_of(compared, job, count, rounds)
    said = "%s; ansible-core %s; medians of %d rounds; load average %.0f on %d cores." % (
        *(time.strftime("%Y-%m-%d"), version("ansible-core"), rounds, os.getloadavg()[2], os.cpu_count() or 0),
    )
    lines = "\n".join(table(compared, job, count, costs))
    return f"### {job.name}: {count} host{'s'[: count != 1]}\n\n{said}\n\n{lines}\n"


def written(page: str, section: str) -> str:
    """The page with this section in place of the one of the same heading, or after the last one of its kind."""
    heading = section.partition("\n")[0]
    begin, end = "<!-- written by `make bench` -->\n", "<!-- end -->\n"
    before, _begin, rest = page.partition(begin)
    found, _end, after = rest.partition(end)
    kept = [one for one in re.split(r"^(?=### )", found, flags=re.MULTILINE) if one.strip()]
    kept = [one for one in kept if one.partition("\n")[0] != heading] + [section]
    titles = [job.name for job in JOBS.values()]
    places = {one: re.match(r"### (.*): (\d+) host", one).groups() for one in kept}
    kept.sort(key=lambda one: (titles.index(places[one][0]), int(places[one][1])))
    return before + begin + "\n" + "\n\n".join(one.strip() for one in kept) + "\n\n" + end + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=[4])
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=["converged"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--without", nargs="+", metavar="WORD", default=[], help="leave out ways with this in their name"
    )
    parser.add_argument("--pyinfra", metavar="PROGRAM", help="path of pyinfra, if it is to be measured")
    parser.add_argument("--mitogen", metavar="FOLDER", help="folder of Mitogen's strategy plugins, likewise")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/benchmarks.md")
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    wanted = parser.parse_args()
    try:
        for count in wanted.hosts:
            with tempfile.TemporaryDirectory() as folder:
                lab("up", "--hosts", str(count))
                compared = ways(lab("inventory").strip(), Path(folder), wanted.pyinfra, wanted.mitogen)
                compared = [way for way in compared if not any(word in way.name for word in wanted.without)]
                for way in [*compared, compared[0]]:
                    run(way, CONVERGED)
                for job in wanted.jobs:
                    found = section(compared, JOBS[job], count, wanted.rounds)
                    print(found, flush=True)
                    if wanted.write:
                        PAGE.write_text(written(PAGE.read_text(), found))
    finally:
        if not wanted.keep:
            lab("down")


if __name__ == "__main__":
    main()
