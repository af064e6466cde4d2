# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab: its hosts go up, go down, and change their simulated GPUs."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import pwd
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
ARCHIVE = REPOSITORY / "tests/lab/ollama/archive.py"
APPLY = "/usr/local/lib/nvidia-sim/apply"

# What a host boots with; those not named have four H200s.
STATES = {"gpu1": "rtx4090x4", "gpu3": "h200x2"}
DEFAULT_STATE = "h200x4"

# Hosts brought up at once: more only wait for the same few processors.
AT_ONCE = 4

# Of root's, on a booted host: systemd 3, logind 1.
INOTIFY_PER_HOST = 4

# Waits until systemd has booted and says its state, lets credentials of units reach them, as on a real host, refreshes
# what this machine hands in, and says the host's key.
BOOTED = (
    "until systemctl show --property Version >/dev/null 2>&1; do sleep 0.1; done;"
    " systemctl is-system-running --wait; mount --make-rshared /; cp -rP --remove-destination %s/machine/. / &&"
    " cat /etc/ssh/ssh_host_ed25519_key.pub"
) % podman.HANDED_IN

# A line each: systemd's state, the simulated GPUs (as the first line of their state file says), Ollama's unit.
STATUS = (
    "systemctl is-system-running; echo $(sed -n '1s/^# applied: //p' /etc/nvidia-sim/state 2>/dev/null);"
    " systemctl is-active ollama.service"
)

TOOLS = {
    "podman": "podman",
    podman.RUNTIME: podman.RUNTIME,
    "iptables": "iptables",
    "ssh-keygen": "openssh-client",
    "gcc": "gcc libc6-dev",
}


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

    `cache`: existing folder for what is kept between runs; its owner becomes the owner of the keys and of the
    inventory, so that a lab brought up through sudo is the user's own. `say` gets one line for each thing done.
    """

    def __init__(self, name: str, cache: Path, say: Callable[[str], None]) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise LabError("GPUFLEET_LAB=%s: expected a name of lower case letters, digits and dashes" % name)
        self.name, self.cache, self.say = name, cache, say
        self.owner = (cache.stat().st_uid, cache.stat().st_gid)
        self.home = pwd.getpwuid(self.owner[0]).pw_dir
        self.folder = cache / "lab" / name
        self.shared = cache / "shared"
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
        name = self.name_of(host)
        if name not in found or not found[name].alive:
            running = sorted((self.host(one) for one in found.values() if one.alive), key=lambda host: int(host[3:]))
            raise LabError(
                "host %s does not run; running: %s (start hosts with `make lab-up`)"
                % (host, ", ".join(running) or "none")
            )
        return name

    def name_of(self, host: str) -> str:
        return "%s-%s" % (self.name, host)

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
            self.shared.mkdir(exist_ok=True)
            os.chown(self.shared, *self.owner)
            archive = self.made_by(ARCHIVE)
            simulator = Path(self.made_by(SIMULATOR))
            with locked(self.cache / "lab" / "image.lock"):
                base = image.ensure(self.cache, self.say)
            handed_in = {"machine": self.folder / "machine", "access": self.folder / "access"}
            self.write_machine_files(handed_in["machine"], dict(env, HOME=self.home))
            self.write_access(handed_in["access"])
            handed_in["simulator"] = simulator
            label = spec_label(base, self.key.with_suffix(".pub").read_text(), simulator)
            found = {one.name: one for one in podman.containers(self.prefix)}
            podman.remove([name for name in found if name not in map(self.name_of, hosts)])
            check_inotify(sum(not (old and old.alive) for old in map(found.get, map(self.name_of, hosts))))

            def bring_up(host: str) -> str:
                key = self.ensure_host(host, found.get(self.name_of(host)), base, handed_in, label)
                self.state(host, state_of(host), [])
                return key

            with ThreadPoolExecutor(AT_ONCE) as pool:
                keys = dict(zip(hosts, pool.map(bring_up, hosts), strict=True))
            self.write_inventory(keys, archive)
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

    def ensure_host(self, host: str, old: Container | None, base: str, handed_in: Dict[str, Path], label: str) -> str:
        """Leave the host running, booted and answering on SSH; its public host key.

        An `old` container of the same label is kept, started if it stands still, and made anew if that does not help.
        """
        name = self.name_of(host)
        if old:
            reason = "its image, simulator or key has changed"
            if old.labels.get("gpufleet.spec") == label:
                try:
                    if not old.alive:
                        podman.start(name)
                    # Units may have failed since, that is what the lab is for.
                    return self.wait_booted(host, states=("running", "degraded"), timeout=30)
                except LabError as error:
                    reason = str(error)
            self.say("%s is made anew: %s" % (host, reason))
            podman.remove([name])
        labels = {"gpufleet.lab": self.name, "gpufleet.spec": label}
        podman.create(name, host, base, handed_in, labels, self.shared)
        try:
            return self.wait_booted(host, states=("running",), timeout=120)
        except LabError as error:
            # Seen once in a container within a container: systemd could not move a unit's process (status 219/CGROUP).
            self.say("%s is made anew, once: %s" % (host, error))
            podman.remove([name])
        podman.create(name, host, base, handed_in, labels, self.shared)
        return self.wait_booted(host, states=("running",), timeout=120)

    def wait_booted(self, host: str, states: Sequence[str], timeout: float) -> str:
        """Wait until a host's systemd has booted into one of these states and sshd answers; its public host key."""
        name = self.name_of(host)
        deadline = time.monotonic() + timeout
        done = podman.execute(name, "sh", "-c", BOOTED, check=False, timeout=timeout)
        state, _newline, key = done.stdout.partition("\n")
        if done.returncode or state not in states:
            failed = podman.execute(name, "systemctl", "--failed", "--no-legend", "--plain", check=False).stdout
            said = podman.podman("logs", "--tail", "3", name, check=False).stdout
            raise LabError(
                "%s: systemd is %s, expected %s; failed units: %s; last words of the container: %s"
                % (
                    host,
                    state or "unknown (exit %d: %s)" % (done.returncode, done.stderr.strip()),
                    " or ".join(states),
                    failed.strip() or "none",
                    said.strip() or "none",
                )
            )
        wait_ssh(host, podman.address(name), deadline - time.monotonic())
        return key

    # --- files

    def made_by(self, script: Path) -> str:
        """Path that a script of the lab prints, made in the cache if need be, as its owner."""
        user, group = self.owner
        env = dict(os.environ, HOME=self.home, GPUFLEET_CACHE=str(self.cache))
        words = [sys.executable, str(script), "path"]
        done = subprocess.run(
            words, stdout=subprocess.PIPE, text=True, env=env, user=user, group=group, extra_groups=[]
        )
        if done.returncode:
            raise LabError("%s path: exit %d, see above" % (script, done.returncode))
        return done.stdout.strip()

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

    def write_inventory(self, keys: Dict[str, str], archive: str) -> None:
        """Write known_hosts and the inventory, each at one stroke. `keys`: host name → public host key."""
        found = {self.host(one): one for one in podman.containers(self.prefix)}
        addresses = {}
        for host in keys:
            one = found[host]
            life = hashlib.sha256((one.id + one.started_at).encode()).hexdigest()[:8]
            addresses[host] = inventory.Address(one.ip, life)
        self.replace(self.known_hosts, inventory.known_hosts(addresses, keys))
        self.replace(
            self.inventory, inventory.render(addresses, self.name, str(self.key), str(self.known_hosts), archive)
        )
        shared = REPOSITORY / "inventories/lab/group_vars"
        link = self.inventory.parent / "group_vars"
        if link != shared and not link.is_symlink():
            link.symlink_to(shared)

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
        done = podman.execute(self.name_of(host), *words, check=False)
        if done.returncode:
            raise LabError("%s: state %s: %s" % (host, " ".join(words[1:]), (done.stderr or done.stdout).strip()))

    def ssh_command(self, host: str, command: Sequence[str]) -> List[str]:
        """The command line of ssh as user `fleet`."""
        found = {one.name: one for one in podman.containers(self.prefix)}
        options = ['UserKnownHostsFile="%s"' % self.known_hosts, "GlobalKnownHostsFile=/dev/null", "IdentitiesOnly=yes"]
        words = ["ssh", "-i", str(self.key)] + [word for option in options for word in ("-o", option)]
        return [*words, "fleet@" + found[self.container(host)].ip, *command]

    def status(self) -> str:
        """A table of the hosts."""

        def row(one: Container) -> Sequence[str]:
            said, state = [], "running" if one.alive else "dead"
            if one.alive:
                try:
                    said = podman.execute(one.name, "sh", "-c", STATUS, check=False, timeout=10).stdout.splitlines()
                except LabError:
                    state = "hangs"
            return (self.host(one), state, one.ip or "-", *((line or "-") for line in (said + [""] * 3)[:3]))

        found = sorted(podman.containers(self.prefix), key=lambda one: int(one.name[len(self.prefix) :]))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            rows = [("HOST", "CONTAINER", "ADDRESS", "SYSTEMD", "GPUS", "OLLAMA"), *pool.map(row, found)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def check_tools() -> None:
    """Raise LabError unless the programs that `up` calls are here."""
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")]
    if missing:
        packages = " ".join(TOOLS[tool] for tool in missing)
        raise LabError("the lab needs %s, not found here: apt-get install %s" % (", ".join(missing), packages))


def check_inotify(new: int) -> None:
    """Raise LabError if root has too few inotify instances left: systemd would not start on the new hosts."""
    wanted = new * INOTIFY_PER_HOST
    left = inotify_instances_left(wanted)
    if left < wanted:
        raise LabError(
            "%d more hosts need %d inotify instances, the kernel gives only %d: raise its limit with"
            " sysctl -w fs.inotify.max_user_instances=512, or take other labs down" % (new, wanted, left)
        )


def inotify_instances_left(wanted: int) -> int:
    """How many inotify instances, at most `wanted`, the kernel gives this user now."""
    libc = ctypes.CDLL(None)
    taken = []
    try:
        while len(taken) < wanted and (instance := libc.inotify_init()) >= 0:
            taken.append(instance)
        return len(taken)
    finally:
        for instance in taken:
            os.close(instance)


def spec_label(base: str, public_key: str, simulator: Path) -> str:
    """What a host is made of; one with another label is made anew. The simulator's folder tells its content."""
    parts = [base, public_key, str(simulator), podman.START, str(podman.DEVICE_RULES), podman.SHARED]
    parts.append(podman.SHARED_MEMORY)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_ssh(host: str, ip: str, timeout: float) -> None:
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
            raise LabError("%s: sshd at %s does not answer: %s%s" % (host, ip, problem, dead_bridge(ip)))
        # nothing tells when the port is open
        time.sleep(0.1)


def dead_bridge(ip: str) -> str:
    """What is wrong with the way to a host when it leads over a bridge without a cable; nothing else is told.

    Podman's two network backends use the same addresses, and the bridge of one stays when the other takes over.
    """
    route = subprocess.run(["ip", "-json", "route", "show", "match", ip], capture_output=True, text=True)
    dead = [way["dev"] for way in json.loads(route.stdout or "[]") if "linkdown" in way.get("flags", [])]
    if not dead:
        return ""
    return "; the way there leads over %s, which nothing is plugged into: ip link delete %s" % (dead[0], dead[0])
