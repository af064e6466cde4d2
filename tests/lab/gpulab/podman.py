# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only file that talks to podman."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence

from gpulab.errors import LabError

# runc, as crun refuses a machine with both cgroup versions mounted.
RUNTIME = "runc"

# SYS_PTRACE: root reads other users' /proc/PID/environ. SYS_ADMIN: units and the simulator mount. MKNOD: /dev/nvidia*.
CAPABILITIES = ("SYS_PTRACE", "SYS_ADMIN", "MKNOD")

# 195 is the major number of /dev/nvidiaN; no driver answers there, so opening a node that is allowed gives ENXIO.
DEVICE_RULES = ("c 195:* rwm",)

# What a lab host gets from this machine is mounted here and copied over its / before systemd starts.
HANDED_IN = "/usr/local/share/gpufleet-lab"

# What is kept in the cache for all hosts of all labs, too large to copy, such as a Python environment with PyTorch.
SHARED = "/srv/shared"

# /dev/shm, on which vLLM's processes meet; podman's own default is 64 MB, a real host has half its memory.
SHARED_MEMORY = "1g"

# With cgroup version 2 alone systemd enforces DeviceAllow=, as on a real GPU host.
START = (
    'if [ "$(stat -fc %%T /sys/fs/cgroup)" != cgroup2fs ]; then'
    " umount -lR /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup || exit 1; fi;"
    " for tree in %s/*/; do cp -rP --remove-destination $tree. / || exit 1; done;"
    " exec /sbin/init"
) % HANDED_IN


class Container(NamedTuple):
    """One container as podman knows it. `alive`: its first process truly runs here, whatever podman remembers."""

    name: str
    id: str
    alive: bool
    ip: str
    started_at: str
    labels: Dict[str, str]


def podman(*words: str, check: bool = True, timeout: float = 120, **more) -> subprocess.CompletedProcess:
    """Run podman; stdout and stderr are text. Raises LabError when it fails, unless `check` is off."""
    try:
        done = subprocess.run(["podman", *words], capture_output=True, text=True, timeout=timeout, **more)
    except subprocess.TimeoutExpired:
        raise LabError("podman %s: no answer within %d s" % (" ".join(words), timeout)) from None
    if check and done.returncode:
        raise LabError(
            "podman %s: exit %d: %s" % (" ".join(words), done.returncode, (done.stderr or done.stdout).strip())
        )
    return done


#: Exit status of `podman exec` that could not reach the container (a command may exit so, too)
NOT_RUN = 125


def execute(container: str, *command: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run a command as root inside a container."""
    return podman("exec", container, *command, check=check, timeout=timeout)


def attach(container: str, command: Sequence[str], terminal: bool) -> int:
    """Run a command inside a container on this process's own input and output; its exit status, or NOT_RUN."""
    return subprocess.run(["podman", "exec", "-it" if terminal else "-i", container, *command]).returncode


def containers(prefix: str) -> List[Container]:
    """The containers named PREFIX1, PREFIX2, …"""
    words = ["ps", "--all", "--noheading", "--format", "{{.Names}}", "--filter", "name=^%s[0-9]+$" % prefix]
    listed = podman(*words, check=False)
    if listed.returncode:
        forget_former_boot()
        listed = podman(*words)
    names = listed.stdout.split()
    if not names:
        return []
    found = []
    for one in json.loads(podman("container", "inspect", *names).stdout):
        networks = (one["NetworkSettings"].get("Networks") or {}).values()
        found.append(
            Container(
                name=one["Name"],
                id=one["Id"],
                alive=one["State"]["Running"] and is_process_of(one["State"]["Pid"], one["Id"]),
                ip=next((network["IPAddress"] for network in networks if network.get("IPAddress")), ""),
                started_at=one["State"]["StartedAt"],
                labels=one["Config"].get("Labels") or {},
            )
        )
    return found


def forget_former_boot(alive: Path = Path("/run/libpod/alive"), proc: Path = Path("/proc")) -> None:
    """Let podman notice that the machine was restarted.

    Podman knows it by this file being gone. Where /run outlives a restart the file stays, and podman fails on
    containers that it takes for running. None runs when there is no conmon, the parent of each.
    """
    for path in proc.glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if path.read_text() == "conmon\n":
                return
    alive.unlink(missing_ok=True)


def is_process_of(pid: int, container_id: str, proc: Path = Path("/proc")) -> bool:
    """Whether PID is a process of that container: after a restart of the machine podman may name a stranger's."""
    try:
        return container_id in (proc / str(pid) / "cgroup").read_text()
    except OSError:
        return False


def create(
    name: str, hostname: str, image: str, handed_in: Dict[str, Path], labels: Dict[str, str], shared: Path
) -> None:
    """Start a new container whose first process is systemd.

    `handed_in`: name → folder of this machine whose content is copied over the `/` of the host at each start.
    `shared`: folder of this machine that the host may read at SHARED.
    """
    limits = {
        "nofile": min(10000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] % 2**63),
        "nproc": min(9000, resource.getrlimit(resource.RLIMIT_NPROC)[1] % 2**63),
    }
    words = ["--runtime", RUNTIME, "run", "--detach", "--name", name, "--hostname", hostname]
    words += ["--systemd=always", "--cgroupns=private", "--security-opt", "apparmor=unconfined"]
    words += ["--shm-size", SHARED_MEMORY]
    words += [word for capability in CAPABILITIES for word in ("--cap-add", capability)]
    words += [word for rule in DEVICE_RULES for word in ("--device-cgroup-rule", rule)]
    # Given, as the runtime would otherwise ask for more than a machine that cannot raise its hard limits has.
    words += [word for limit, value in limits.items() for word in ("--ulimit", "%s=%d:%d" % (limit, value, value))]
    words += [word for label in labels.items() for word in ("--label", "%s=%s" % label)]
    for folder, path in handed_in.items():
        words += ["--volume", "%s:%s/%s:ro" % (path, HANDED_IN, folder)]
    words += ["--volume", "%s:%s:ro" % (shared, SHARED)]
    podman(*words, image, "sh", "-c", START)


def start(name: str) -> None:
    """Start a container that exists."""
    podman("start", name)


def address(name: str) -> str:
    """IP address of a running container."""
    return podman(
        "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name
    ).stdout.strip()


def pid(name: str) -> int:
    """The first process of a running container, as this machine numbers it."""
    return int(podman("inspect", "--format", "{{.State.Pid}}", name).stdout)


_inits: Dict[str, int] = {}


def inside(container: str) -> List[str]:
    """The words before a command that run it as root inside a running container, in its init's control group.

    What tests look at a host with, also as a user who may sudo: `podman exec` loads all of podman's state each time.
    """
    become = ["sudo"] if os.geteuid() else []
    if container not in _inits or not os.path.isdir("/proc/%d" % _inits[container]):
        asked = [*become, "podman", "inspect", "--format", "{{.State.Pid}}", container]
        found = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        _inits[container] = int(found.stdout or 0)
        if not _inits[container]:
            raise LabError("%s does not run: %s" % (container, found.stderr.strip() or "it is stopped"))
    join = 'echo $$ >/sys/fs/cgroup/init.scope/cgroup.procs; exec "$@"'
    clean = ["env", "-i", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    return [*become, "nsenter", "--all", "--target", str(_inits[container]), *clean, "sh", "-c", join, "sh"]


def remove(names: Sequence[str]) -> None:
    """Remove containers at once, running or not."""
    if names:
        podman("rm", "--force", "--time", "0", *names)


def image_exists(image: str) -> bool:
    return podman("image", "exists", image, check=False).returncode == 0


def import_image(archive: Path, image: str) -> None:
    """Make an image of a root file system's tar."""
    podman("import", "--quiet", str(archive), image, timeout=600)
