# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab: its hosts go up, go down, and change their simulated GPUs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, Sequence

from gpulab import image, inventory, machine, podman
from gpulab.errors import LabError
from gpulab.podman import Container

REPOSITORY = Path(__file__).resolve().parents[3]
DEFAULT_NAME = "gpufleet"
SIMULATOR = REPOSITORY / "tests/lab/nvml/build.py"
APPLY = "/usr/local/lib/nvidia-sim/apply"

# What a host boots with; those not named have four H200s.
STATES = {"gpu1": "rtx4090x4", "gpu3": "h200x2"}
DEFAULT_STATE = "h200x4"

BOOT_TIMEOUT = 120.0

# Waits inside the host until systemd has finished booting, then says in what state, and the host's public key.
BOOTED = (
    "until systemctl show --property Version >/dev/null 2>&1; do sleep 0.1; done;"
    " systemctl is-system-running --wait; cat /etc/ssh/ssh_host_ed25519_key.pub"
)

TOOLS = {"podman": "podman", podman.RUNTIME: podman.RUNTIME, "ssh-keygen": "openssh-client"}


def host_names(count: int) -> List[str]:
    """gpu1, gpu2, …"""
    if not 1 <= count <= 64:
        raise LabError("%d hosts asked for: expected 1 to 64" % count)
    return ["gpu%d" % number for number in range(1, count + 1)]


def state_of(host: str) -> str:
    """Name of the simulated GPUs a host boots with."""
    return STATES.get(host, DEFAULT_STATE)


class Lab:
    """The lab called `name`: containers NAME-gpu1, NAME-gpu2, …, and its keys and inventory.

    `cache`: folder for what is kept between runs. `owner`: uid and gid of the person whose lab it is; root's or not, the
    keys and the inventory are theirs. `say` gets one line for each thing done.
    """

    def __init__(self, name: str, cache: Path, owner: Sequence[int], say: Callable[[str], None]) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise LabError("GPUFLEET_LAB=%s: expected a name of lower case letters, digits and dashes" % name)
        self.name, self.cache, self.owner, self.say = name, cache, owner, say
        self.folder = cache / "lab" / name
        self.key = self.folder / "ssh" / "id_ed25519"
        self.known_hosts = self.folder / "ssh" / "known_hosts"
        default = name == DEFAULT_NAME
        self.inventory = (REPOSITORY / "inventories/lab" if default else self.folder / "inventory") / "hosts.yml"

    # --- names

    @property
    def prefix(self) -> str:
        return self.name + "-gpu"

    def container(self, host: str) -> str:
        """Name of a host's container. Raises LabError when the lab has no such host running."""
        found = {one.name: one for one in podman.containers(self.prefix)}
        name = "%s-%s" % (self.name, host)
        if name not in found or not found[name].alive:
            running = [self.host(one) for one in found.values() if one.alive]
            raise LabError("host %s does not run; running: %s (start hosts with `make lab-up`)" % (host, ", ".join(running) or "none"))
        return name

    def host(self, container: Container) -> str:
        return container.name[len(self.name) + 1 :]

    # --- up and down

    def up(self, count: int, env: Mapping[str, str]) -> None:
        """Bring exactly `count` hosts up, booted, reachable over SSH, with the GPUs of their default state.

        Hosts that run as they should are kept with all that is on them; others are started or made anew.
        """
        check_tools()
        hosts = host_names(count)
        with self.locked():
            self.make_key()
            with locked(self.cache / "lab" / "image.lock"):
                base = image.ensure(self.cache, self.say)
            handed_in = {"machine": self.folder / "machine", "access": self.folder / "access"}
            self.write_machine_files(handed_in["machine"], env)
            self.write_access(handed_in["access"])
            simulator = simulator_tree()
            if simulator:
                handed_in["simulator"] = simulator
            label = spec_label(base, simulator)
            self.start_hosts(hosts, base, handed_in, label)
            keys = self.wait_booted(hosts)
            addresses = self.write_inventory(hosts, keys)
            with ThreadPoolExecutor(len(hosts)) as pool:
                list(pool.map(lambda host: wait_ssh(host, addresses[host].ip), hosts))
            if simulator:
                for host in hosts:
                    self.state(host, state_of(host), [])
        self.say("%d hosts up; inventory: %s" % (count, self.inventory))

    def down(self) -> None:
        """Remove all hosts, the keys and the inventory; the image and the caches stay."""
        with self.locked():
            names = [one.name for one in podman.containers(self.prefix)]
            podman.remove(names)
            with contextlib.suppress(FileNotFoundError):
                self.inventory.unlink()
            for folder in self.folder.iterdir():
                if folder.is_dir():
                    shutil.rmtree(folder)
        self.say("%d hosts removed" % len(names))

    def start_hosts(self, hosts: Sequence[str], base: str, handed_in: Dict[str, Path], label: str) -> None:
        """Leave running exactly the containers of these hosts, each made of this image and simulator."""
        wanted = {"%s-%s" % (self.name, host): host for host in hosts}
        found = {one.name: one for one in podman.containers(self.prefix)}
        podman.remove([name for name in found if name not in wanted])
        for name, host in wanted.items():
            old = found.get(name)
            if old and old.labels.get("gpufleet.spec") == label:
                if old.alive or podman.start(name):
                    continue
            if old:
                self.say("%s: made anew (stopped, or its image or simulator has changed)" % host)
                podman.remove([name])
            podman.create(name, host, base, handed_in, {"gpufleet.lab": self.name, "gpufleet.spec": label})

    def wait_booted(self, hosts: Sequence[str]) -> Dict[str, str]:
        """Wait until systemd has booted on all hosts; host name → its public host key."""

        def wait(host: str) -> str:
            name = "%s-%s" % (self.name, host)
            done = podman.execute(name, "sh", "-c", BOOTED, check=False, timeout=BOOT_TIMEOUT)
            state, _newline, key = done.stdout.partition("\n")
            if done.returncode or state != "running":
                failed = podman.execute(name, "systemctl", "--failed", "--no-legend", "--plain", check=False).stdout
                raise LabError(
                    "%s: systemd is %s, expected running. Failed units: %s. Look with `podman logs %s`; `make lab-down lab-up`"
                    " makes the host anew" % (host, state or done.stderr.strip(), failed.strip() or "none", name)
                )
            return key

        with ThreadPoolExecutor(8) as pool:
            return dict(zip(hosts, pool.map(wait, hosts)))

    # --- files

    def make_key(self) -> None:
        """The lab's SSH key, made once in its folder."""
        if self.key.exists() and self.key.with_suffix(".pub").exists():
            return
        self.key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            self.key.unlink()
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab " + self.name, "-f", str(self.key)]
        subprocess.run(words, check=True)
        for path in (self.key.parent, self.key, self.key.with_suffix(".pub")):
            os.chown(path, *self.owner)

    def write_machine_files(self, folder: Path, env: Mapping[str, str]) -> None:
        # The content only is replaced: the folder itself is mounted in running hosts.
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            shutil.rmtree(path)
        machine.write_files(folder, env)

    def write_access(self, folder: Path) -> None:
        """The key of user `fleet`, as a tree for the hosts."""
        path = folder / "etc/ssh/authorized_keys/fleet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.key.with_suffix(".pub").read_text())

    def write_inventory(self, hosts: Sequence[str], keys: Dict[str, str]) -> Dict[str, inventory.Address]:
        """Write known_hosts and the inventory, each at one stroke; host name → address."""
        found = {self.host(one): one for one in podman.containers(self.prefix)}
        addresses = {}
        for host in hosts:
            one = found[host]
            life = hashlib.sha256((one.id + one.started_at).encode()).hexdigest()[:8]
            addresses[host] = inventory.Address(one.ip, life)
        self.replace(self.known_hosts, inventory.known_hosts(addresses, keys))
        self.replace(self.inventory, inventory.render(addresses, self.name, str(self.key), str(self.known_hosts)))
        shared = REPOSITORY / "inventories/lab/group_vars"
        link = self.inventory.parent / "group_vars"
        if link != shared and not link.is_symlink():
            link.symlink_to(shared)
        return addresses

    def replace(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as unfinished:
            unfinished.write(text)
        os.chmod(unfinished.name, 0o644)
        os.chown(unfinished.name, *self.owner)
        os.replace(unfinished.name, path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Only one at a time changes a lab."""
        with locked(self.folder / "lock"):
            yield

    # --- a host

    def state(self, host: str, name: str, faults: Sequence[str]) -> None:
        """Switch a host's simulated GPUs to the named state, with these faults laid over it."""
        words = [APPLY, name] + [word for fault in faults for word in ("--fault", fault)]
        done = podman.execute("%s-%s" % (self.name, host), *words, check=False)
        if done.returncode:
            raise LabError("%s: state %s: %s" % (host, " ".join(words[1:]), (done.stderr or done.stdout).strip()))

    def ssh_command(self, host: str, command: Sequence[str]) -> List[str]:
        """The command line of ssh as user `fleet`."""
        found = {one.name: one for one in podman.containers(self.prefix)}
        options = ["UserKnownHostsFile=\"%s\"" % self.known_hosts, "GlobalKnownHostsFile=/dev/null", "IdentitiesOnly=yes"]
        words = ["ssh", "-i", str(self.key)] + [word for option in options for word in ("-o", option)]
        return [*words, "fleet@" + found[self.container(host)].ip, *command]

    def status(self) -> str:
        """A table of the hosts."""
        rows = [("HOST", "CONTAINER", "ADDRESS", "SYSTEMD", "GPUS", "OLLAMA")]
        ask = (
            "systemctl is-system-running; sed -n 's/^state[ =:]*//p;q' /etc/nvidia-sim/state 2>/dev/null || echo -;"
            " systemctl is-active ollama.service"
        )
        for one in sorted(podman.containers(self.prefix), key=lambda one: int(one.name[len(self.prefix) :])):
            said = podman.execute(one.name, "sh", "-c", ask, check=False).stdout.split() if one.alive else []
            rows.append((self.host(one), "running" if one.alive else "dead", one.ip or "-", *(said + ["-"] * 3)[:3]))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def check_tools() -> None:
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if missing:
        raise LabError("the lab needs %s: apt-get install %s" % (", ".join(missing), " ".join(missing)))


def simulator_tree() -> Path | None:
    """Folder of the NVML simulator's files, built if need be, to be copied over a host's /."""
    if not SIMULATOR.exists():
        return None
    done = subprocess.run([sys.executable, str(SIMULATOR), "path"], capture_output=True, text=True)
    if done.returncode:
        raise LabError("%s path: exit %d: %s" % (SIMULATOR, done.returncode, done.stderr.strip()))
    return Path(done.stdout.strip())


def spec_label(base: str, simulator: Path | None) -> str:
    """What a host is made of; one with another label is made anew."""
    parts = [base, image.tree_hash(simulator) if simulator else "", podman.START, str(podman.DEVICE_RULES)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_ssh(host: str, ip: str, timeout: float = 30.0) -> None:
    """Wait until sshd answers with its banner."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((ip, 22), timeout=5) as connection:
                if connection.recv(4) == b"SSH-":
                    return
                problem = "no SSH banner"
        except OSError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise LabError("%s: sshd at %s does not answer after %d s: %s" % (host, ip, timeout, problem))
        time.sleep(0.1)
