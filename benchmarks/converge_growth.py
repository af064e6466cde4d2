#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run of site.yml on a converged fleet costs the controller as the inventory grows.

    .venv/bin/python benchmarks/converge_growth.py 1 100 1000
    .venv/bin/python benchmarks/converge_growth.py 1 250 --forks 5 16 50

The hosts are pretended: in place of ssh, a shell script prints what a host with four H200s and Ollama answers. So the
figures are those of Ansible and of this collection on the controller, without the work of hosts and network. Hosts that
do not answer "converged" would make the run fail.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests/unit/fixtures/gpu"
SSH = """\
#!/bin/sh
m="$*"
m=${m#*BECOME-SUCCESS-}
echo "BECOME-SUCCESS-${m%% *}"
mark=$(sed -n 's/.*\\(gpufleet-answer-[0-9a-f]\\{16\\} \\).*/\\1/p')
IFS= read -r answer <"${0%/*}/answer.json"
printf '%s%s\\n' "$mark" "$answer"
"""
MESSAGE = "ok · 4× H200 · CUDA_VISIBLE_DEVICES=0,1,2,3"


class Cost(NamedTuple):
    """Of one run: seconds, and MiB."""

    wall: float
    cpu: float
    largest: float
    """The largest process."""
    together: float
    """All processes, what they share counted once."""


def gpus(folder: Path) -> dict[str, Any]:
    """The facts of a real host with four H200s, out of a recording."""
    sys.path.insert(0, str(ROOT / ".collections"))
    from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts

    (folder / "proc/driver/nvidia").mkdir(parents=True)
    (folder / "proc/driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module  580.159.04\n")
    os.environ["GPUFLEET_FAKE_NVML"] = str(FIXTURES / "h200x4-nvml.json")
    found = facts.gather(python_paths=[str(FIXTURES / "fake")], root=str(folder))
    for device in found["devices"]:
        device["persistence_mode"] = True
    return found


def answers(folder: Path) -> list[dict[str, Any]]:
    """What the host says of the self check, its GPUs, its agent and its service: that all is as declared."""
    facts = gpus(folder)
    used = [{key: device[key] for key in ("index", "uuid", "name", "pci_bus_id")} for device in facts["devices"]]
    service = {"msg": MESSAGE, "verdict": "ok", "gpus": used, "version": "0.32.15", "proof_due": False, "unproven": ""}
    results = [{"reason": ""}, {"ansible_facts": {"gpu": facts}}, {"msg": "unchanged"}, service]
    return [{"state": "converged", "why": "", "result": {"changed": False, **result}} for result in results]


def inventory(folder: Path, count: int) -> Path:
    common = {
        "ansible_ssh_executable": str(folder / "ssh"),
        "ansible_python_interpreter": "/usr/bin/python3",
        "ollama_visible_devices": "all",
    }
    hosts = {"gpu%04d" % number: {"ansible_host": "192.0.2.1"} for number in range(count)}
    file = folder / ("%d.json" % count)
    file.write_text(json.dumps({"all": {"vars": common}, "ollama": {"hosts": hosts}}))
    return file


def memory_of(group: int) -> float:
    """MiB of all processes of a process group, what several of them share divided among them."""
    total = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(place.name)) == group:
                total += int(re.search(r"^Pss: +(\d+)", (place / "smaps_rollup").read_text(), re.MULTILINE).group(1))
        except (OSError, AttributeError):  # it has ended
            continue
    return total / 1024


def run(file: Path, count: int, forks: int) -> Cost:
    """One run, in which all hosts must be as declared."""
    tool = str(Path(sys.executable).with_name("ansible-playbook"))
    words = [tool, "-i", str(file), "--forks", str(forks), str(ROOT / "site.yml")]
    peak, done = [0.0], threading.Event()

    def watch(group: int) -> None:
        while not done.wait(0.5):  # a sample; reading the memory of many processes takes time of its own
            peak.append(memory_of(group))

    with tempfile.TemporaryFile("w+") as out:
        begun = time.monotonic()
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        watcher = threading.Thread(target=watch, args=[process.pid])
        watcher.start()
        _pid, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - begun
        done.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        said = out.read()
    if process.returncode or not re.search(r"gpufleet: %d hosts? in .* %d ok" % (count, count), said):
        raise SystemExit("not all hosts are as declared:\n%s" % said[-3000:])
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, max(peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forks", type=int, nargs="+", default=[16])
    wanted = parser.parse_args()
    ways = [(count, forks) for count in wanted.hosts for forks in wanted.forks]
    runs: dict[tuple[int, int], list[Cost]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "answer.json").write_text(json.dumps(answers(folder / "host")) + "\n")
        (folder / "ssh").write_text(SSH)
        (folder / "ssh").chmod(0o755)
        files = {count: inventory(folder, count) for count in wanted.hosts}
        for _ in range(wanted.rounds):
            for count, forks in ways:
                runs[count, forks].append(run(files[count], count, forks))
    print("| hosts | forks | wall s | CPU s | CPU ms per additional host | largest process MiB | all processes MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    first = {forks: statistics.median(cost.cpu for cost in runs[wanted.hosts[0], forks]) for forks in wanted.forks}
    for count, forks in ways:
        wall, cpu, largest, together = (statistics.median(column) for column in zip(*runs[count, forks], strict=True))
        more = count - wanted.hosts[0]
        slope = "%.0f" % (1000 * (cpu - first[forks]) / more) if more else "–"
        print("| %d | %d | %.1f | %.1f | %s | %.0f | %.0f |" % (count, forks, wall, cpu, slope, largest, together))


if __name__ == "__main__":
    main()
