# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways to configure the lab's hosts that converge.py compares, and the jobs that each of them is given."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
PLAYBOOK = str(Path(sys.executable).parent / "ansible-playbook")
DEFAULTS = {"ANSIBLE_PIPELINING": "0", "ANSIBLE_FORKS": "5"}
VALUE = "KEEP_ALIVE"
"""Stands in a command for the value of OLLAMA_KEEP_ALIVE, which a job may change."""
SITE = "site.yml"


class Way(NamedTuple):
    """A command that configures all hosts."""

    name: str
    command: list[str]
    env: dict[str, str] = {}

    @property
    def playbook(self) -> bool:
        return self.command[0] == PLAYBOOK

    @property
    def drop_in(self) -> str:
        """What it writes of its own: the others share one file, in place of which site.yml has its override."""
        return "zz-gpufleet.conf" if self.name == SITE else "50-benchmark.conf"

    def words(self, value: str) -> list[str]:
        return [word.replace(VALUE, value) for word in self.command]


class Job(NamedTuple):
    """What is to be done when the time starts."""

    name: str
    changes: bool
    """Whether each run has something to change."""
    before: str = ""
    """Shell commands for each host before each run; they take no part in the figures."""


RESET = """\
systemctl disable --quiet --now ollama.service
rm -rf /etc/systemd/system/ollama.service.d
systemctl daemon-reload
systemctl reset-failed
"""
JOBS = {
    "converged": Job("Nothing to change", False),
    "change": Job("One changed variable", True),
    "first": Job("First run on a host where Ollama is installed, but neither configured nor running", True, RESET),
}


def ways(inventory: str, folder: Path, pyinfra: str | None, mitogen: str | None) -> list[Way]:
    """The first is what the others are compared with.

    :param folder: for files that the commands need.
    :param pyinfra: path of the program; ``mitogen``: folder of its strategy plugins. None: it is left out.
    """
    builtin = [PLAYBOOK, "-i", inventory, str(HERE / "builtin.yml"), "-e", "benchmark_keep_alive=" + VALUE]
    found = [
        Way(SITE, [PLAYBOOK, "-i", inventory, str(ROOT / "site.yml"), "-e", "ollama_keep_alive=" + VALUE]),
        Way("builtin modules, tuned", builtin),
        Way("builtin modules, Ansible's defaults", builtin, DEFAULTS),
    ]
    if mitogen:
        strategy = {"ANSIBLE_STRATEGY_PLUGINS": mitogen, "ANSIBLE_STRATEGY": "mitogen_linear"}
        found.append(Way("builtin modules, tuned, with Mitogen", builtin, strategy))
    if pyinfra:
        hosts = str(_pyinfra_hosts(inventory, folder))
        found.append(Way("pyinfra", [pyinfra, "-y", "--data", "keep_alive=" + VALUE, hosts, "pyinfra_job.py"]))
    found.append(Way("shell script over ssh", ["sh", str(_floor(inventory, folder)), VALUE]))
    return found


def _connection(inventory: str) -> tuple[dict[str, str], str, str]:
    """The hosts' addresses, the private key and the file of known hosts."""
    listed = yaml.safe_load(Path(inventory).read_text())
    common = listed["all"]["vars"]
    known = re.search(r'UserKnownHostsFile="([^"]+)"', common["ansible_ssh_common_args"]).group(1)
    hosts = {name: host["ansible_host"] for name, host in listed["ollama"]["hosts"].items()}
    return hosts, common["ansible_ssh_private_key_file"], known


def _floor(inventory: str, folder: Path) -> Path:
    """A shell script that pipes floor.sh to all hosts at once, over connections that stay open as Ansible's do."""
    hosts, key, known = _connection(inventory)
    options = f"-i {key} -o UserKnownHostsFile={known} -o IdentitiesOnly=yes -o LogLevel=ERROR"
    options += f" -o ControlMaster=auto -o ControlPersist=120s -o ControlPath={folder}/%h"
    lines = [
        f'ssh {options} fleet@{address} sudo sh -s -- "$1" <{HERE}/floor.sh & pids="$pids $!"'
        for address in hosts.values()
    ]
    script = folder / "floor"
    script.write_text("pids=\n" + "\n".join([*lines, "for pid in $pids; do wait $pid || exit 1; done"]) + "\n")
    return script


def _pyinfra_hosts(inventory: str, folder: Path) -> Path:
    hosts, key, known = _connection(inventory)
    file = folder / "hosts.py"
    more = {"ssh_user": "fleet", "ssh_key": key, "ssh_known_hosts_file": known}
    file.write_text(f"ollama = {[(address, more) for address in hosts.values()]!r}\n")
    return file
