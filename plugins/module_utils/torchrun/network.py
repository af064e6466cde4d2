# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan needs to know of a host: interfaces, names, PyTorch, GPUs; and which peers it reaches."""

from __future__ import annotations

import glob
import json
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..python_env import compat
from ..toolbox.errors import Failed
from . import code, command
from .command import SYSTEM_PATH

LISTENER = "gpufleet-torchrun-listen.service"
"""Transient unit of the listener that peers try; gone by itself after a while."""
STARTS = 30.0
"""Seconds that the listener may take to come up on a busy host."""
ATTEMPTS_AT_ONCE = 32
ANSWER = 200
"""Bytes of a listener's answer, at most."""
VERSION_FILE = 1 << 16
"""Bytes read of a file that names a version."""
DEVICE = ("index", "uuid", "processes")
"""What a plan needs to know of each GPU."""
CONFINED = (
    *("NoNewPrivileges=yes", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "RestrictAddressFamilies=AF_INET AF_INET6"),
    *("MemoryMax=128M", "TasksMax=8"),
)
"""Settings of the listener's unit: anybody in the network may talk to it."""
JOB_LIMIT = 120.0
"""Seconds within which a job that was started must hold its port: the import of PyTorch, and time to spare."""


def report(params: Mapping[str, Any], _check_mode: bool, warn: Any) -> Dict[str, Any]:
    """The result of the module ``torchrun_facts``: the host's own facts, or which of its ``peers`` it reaches."""
    if params["peers"] is None:
        return {"changed": False, "ansible_facts": {"torchrun": facts(params, lambda: _gpus(params), warn)}}
    peers = {peer["name"]: peer for peer in params["peers"] if isinstance(peer, dict)}
    return {"changed": False, "ansible_facts": {"torchrun_reach": reach(peers, params["timeout"])}}


def _gpus(params: Mapping[str, Any]) -> Dict[str, Any]:
    from ..gpu import facts as gpu

    return gpu.gather_for(params["facts_timeout"])


# --- facts


def interfaces(sysfs: str = "/sys/class/net") -> List[Dict[str, Any]]:
    """The network interfaces with their addresses."""
    done = _run(["ip", "-json", "address", "show"])
    if done.returncode:
        raise Failed("ip -json address show: exit %d: %s" % (done.returncode, done.stderr.strip()))
    return [_interface(one, sysfs) for one in json.loads(done.stdout or "[]") if one.get("ifname")]


def _interface(entry: Mapping[str, Any], sysfs: str) -> Dict[str, Any]:
    name, flags = entry["ifname"], entry.get("flags", [])
    return {
        "name": name,
        "up": "UP" in flags and "LOWER_UP" in flags,
        "loopback": "LOOPBACK" in flags,
        "mtu": entry.get("mtu"),
        "speed_mbps": _speed("%s/%s/speed" % (sysfs, name)),
        "addresses": [
            {"address": one["local"], "prefix": one["prefixlen"]}
            for one in entry.get("addr_info", [])
            if one.get("local") and one.get("family") in ("inet", "inet6") and not one.get("tentative")
        ],
    }


def _speed(path: str) -> Optional[int]:
    """Mbit/s; None where the driver does not know."""
    try:
        with open(path, encoding="ascii") as stream:
            speed = int(stream.read())
    except (OSError, ValueError):
        return None
    return speed if speed > 0 else None


def own_names(hostname: str) -> Dict[str, List[str]]:
    """What the host's own name resolves to on itself, as Gloo and torchrun look it up."""
    try:
        found = socket.getaddrinfo(hostname, None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    return {hostname: list(dict.fromkeys(str(one[4][0]).partition("%")[0] for one in found))}


def torch(venv: str) -> Tuple[Optional[Dict[str, Any]], Optional[str]]:
    """The PyTorch of an environment, from its files (an import would take seconds), or why there is none."""
    if not os.path.isabs(venv):
        return None, "expected the absolute path of an environment; those of conda are listed by: conda env list"
    if not os.access(venv + "/bin/python", os.X_OK):
        return None, "there is no %s/bin/python" % venv
    packages = [path for path in site_packages(venv) if os.path.isfile(path + "/torch/version.py")]
    if not packages:
        return None, "its Python has no package torch"
    from ..toolbox.files import read_regular

    try:
        text = (read_regular(packages[0] + "/torch/version.py", VERSION_FILE) or b"").decode("utf-8", "replace")
    except OSError as error:
        return None, "%s/torch/version.py: %s" % (packages[0], error.strerror)
    found = {}  # type: Dict[str, Optional[str]]
    for name in ("__version__", "cuda"):
        match = re.search(r"^%s\b[^=\n]*= *['\"]([\w.+-]{1,64})['\"]" % name, text, re.MULTILINE)
        found[name] = match.group(1) if match else None
    conda = os.path.isdir(venv + "/conda-meta")
    return {
        "version": found["__version__"],
        "cuda": found["cuda"],
        "nccl": _nccl(venv, packages[0]),
        "conda": conda,
        "compat": compat.folder(venv),
    }, None


def _nccl(venv: str, packages: str) -> Optional[str]:
    """The version of NCCL that PyPI's or conda's package has; None where PyTorch has its own inside."""
    for pattern in (packages + "/nvidia_nccl_cu*-*.dist-info", venv + "/conda-meta/nccl-*.json"):
        folder, _sep, name = pattern.rpartition("/")
        for path in glob.glob("%s/%s" % (glob.escape(folder), name)):
            version = re.search(r"-(\d{1,9}\.\d{1,9}\.\d{1,9})[\w.+]*-?[^/]*$", os.path.basename(path))
            if version:
                return version.group(1)
    return None


def site_packages(venv: str) -> List[str]:
    found = sorted(glob.glob(glob.escape(venv) + "/lib*/python3*/site-packages"))
    return [
        path for path in found if not os.path.islink(os.path.dirname(path))
    ]  # conda's python3.1 is one to python3.12


def facts(params: Mapping[str, Any], gather: Any, warn: Any) -> Dict[str, Any]:
    """Everything of this host that a plan needs; starts the listener when asked to.

    :param params: the module's parameters.
    :param gather: gives the facts of the GPUs.
    :param warn: called with each warning.
    """
    gpu = gather()
    hostname = socket.gethostname()
    found, missing = torch(params["venv"]) if params["venv"] else (None, None)
    return {
        "hostname": hostname,
        "interfaces": interfaces(),
        "own_names": own_names(hostname),
        "venv": params["venv"],
        "torch": found,
        "torch_missing": missing,
        "code": code.of_job(params, warn),
        "gpus": {
            "count": gpu["count"],
            "fault": gpu["fault"]["text"] if gpu["fault"] else None,
            "devices": [{key: device[key] for key in DEVICE} for device in gpu["devices"]],
            "nvlink": any((word or "").startswith("NV") for row in gpu["topology"] for word in row),
        },
        "rdma": gpu["rdma"],
        "listener": listen(params["master_port"], params["listen"]) if params["listen"] else None,
    }


# --- the listener


def listen(port: int, seconds: int) -> Dict[str, Any]:
    """Have a listener on the rendezvous port and on a free one: ``token``, ``port`` and ``busy``.

    ``busy`` names, by port, who holds the rendezvous port if another process does; then only the other is listened on.
    """
    from ..programs import peer_listener
    from ..toolbox.source import source_of

    _run(["systemctl", "stop", LISTENER])
    busy = {} if _ours(port) else {str(port): holder(port)}
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("0.0.0.0", 0))
        data = probe.getsockname()[1]
    token = uuid.uuid4().hex
    ports = [data] + ([] if busy else [port])
    asked = ["systemd-run", "--quiet", "--collect", "--unit", LISTENER, "--property=RuntimeMaxSec=%d" % (seconds + 5)]
    asked += ["--property=" + setting for setting in CONFINED]
    asked += ["--description=Answers the peers of a torchrun job that check whether they reach this host"]
    asked += [sys.executable, "-I", "-c", source_of(peer_listener), token, str(seconds), *map(str, ports)]
    done = _run(asked)
    if done.returncode:
        raise Failed("systemd-run: exit %d: %s" % (done.returncode, done.stderr.strip()))
    until = time.monotonic() + STARTS
    while not probe_port("127.0.0.1", data, token, 1.0)["ok"]:
        if time.monotonic() > until:
            text = "the listener did not come up within %d s: check journalctl -u %s"
            raise Failed(text % (STARTS, LISTENER))
        # nothing reports when the port is open
        time.sleep(0.05)
    return {"token": token, "port": data, "busy": busy}


def _ours(port: int) -> bool:
    """Whether the listener may have the port: nobody holds it, nor is about to.

    torchrun binds its port seconds after its start. A listener there would have it fail, so it is waited for.
    """
    until = time.monotonic() + JOB_LIMIT
    while _free(port):
        about = _job_for(port)
        if about is None:
            return True
        if time.monotonic() > until:
            text = (
                "process %d%s should listen on port %d but does not after %d s: find out what it waits for, or stop it"
            )
            raise Failed(text % (about, _of_unit(about), port, JOB_LIMIT))
        time.sleep(0.1)  # nothing reports that a port is bound
    return False


def _job_for(port: int) -> Optional[int]:
    """The main process of a job on this host that is to hold the port.

    systemd reports it of the unit that it started: what a process calls itself is up to that process.
    """
    shown = _run(["systemctl", "show", "--property=MainPID,ExecStart", "torchrun@*.service"]).stdout
    for unit in shown.split("\n\n"):
        pid = re.search(r"^MainPID=([1-9]\d*)$", unit, re.MULTILINE)
        words = re.search(r"^ExecStart=\{ path=.*? ; argv\[\]=(.*)$", unit, re.MULTILINE)
        if pid and words and command.holds(words.group(1).split(), port):
            return int(pid.group(1))
    return None


def _free(port: int) -> bool:
    for family, place in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((place, port))
        except OSError as error:
            if error.errno == 98:  # EADDRINUSE
                return False
    return True


def holder(port: int) -> str:
    """Who listens on a port, in words: program, process and unit."""
    from ..systemd.manager import System
    from ..toolbox.text import one_line

    pid, name = System().listener(port) or (0, "")
    return "%s, process %d%s" % (one_line(name), pid, _of_unit(pid)) if pid else "an unknown process"


def _of_unit(pid: int) -> str:
    from ..gpu.processes import unit_of

    unit = unit_of(pid)
    return " of %s" % unit if unit else ""


# --- trying peers


def reach(peers: Mapping[str, Mapping[str, Any]], timeout: float) -> Dict[str, Dict[str, Any]]:
    """Try every address of every peer.

    :param peers: per peer ``addresses``, ``token`` and ``port`` of its listener, and ``rendezvous``, the port that is
        to be tried in addition (None where it is not).
    :param timeout: seconds for each attempt.
    :returns: per peer and address ``data`` and ``rendezvous``, each ``ok`` and ``why``, and ``clock_offset_s``.
    """
    tries = []  # type: List[Tuple[str, str, str, int, Optional[str]]]
    for name, peer in peers.items():
        for address in peer["addresses"]:
            tries.append((name, address, "data", peer["port"], peer["token"]))
            if peer["rendezvous"]:
                held = str(peer["rendezvous"]) in peer["busy"]
                tries.append((name, address, "rendezvous", peer["rendezvous"], None if held else peer["token"]))
    found = {name: {address: {} for address in peer["addresses"]} for name, peer in peers.items()}  # type: Dict[str, Dict[str, Any]]
    if not tries:
        return found
    with ThreadPoolExecutor(min(len(tries), ATTEMPTS_AT_ONCE)) as pool:
        answers = list(pool.map(lambda one: probe_port(one[1], one[3], one[4], timeout), tries))
    for (name, address, kind, _port, _token), answer in zip(tries, answers):
        offset = answer.pop("clock_offset_s", None)
        found[name][address][kind] = answer
        if offset is not None:
            found[name][address]["clock_offset_s"] = offset
    return found


def probe_port(address: str, port: int, token: Optional[str], timeout: float) -> Dict[str, Any]:
    """Try one port: ``ok``, ``why`` not, and the offset of the peer's clock. Without a token any answer will do."""
    began, until = time.time(), time.monotonic() + timeout
    try:
        with socket.create_connection((address, port), timeout=timeout) as connection:
            if token is None:
                return {"ok": True, "why": ""}
            words = _line(connection, until).split()
    except socket.timeout:
        return {"ok": False, "why": "no answer within %g s" % timeout}
    except OSError as error:
        return {"ok": False, "why": (error.strerror or str(error)).lower()}
    ended = time.time()
    if len(words) != 2 or words[0] != token or not re.fullmatch(r"[0-9]{1,12}\.[0-9]{6}", words[1]):
        return {"ok": False, "why": "another program answers there"}
    return {"ok": True, "why": "", "clock_offset_s": round(float(words[1]) - (began + ended) / 2, 3)}


def _line(connection: socket.socket, until: float) -> str:
    """The first line that comes, in time however slowly it drips, and of no more than ANSWER bytes."""
    said = b""
    while b"\n" not in said and len(said) < ANSWER:
        left = until - time.monotonic()
        if left <= 0:
            raise socket.timeout
        connection.settimeout(left)
        more = connection.recv(ANSWER - len(said))
        if not more:
            break
        said += more
    return said.decode("ascii", "replace")


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    streams: Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    # whatever path the user who logged in has set
    environment = dict(os.environ, LC_ALL="C", PATH=SYSTEM_PATH)
    try:
        return subprocess.run(command, **streams, timeout=30, check=False, env=environment)
    except FileNotFoundError:
        raise Failed("there is no %s on this host" % command[0]) from None
    except subprocess.TimeoutExpired:
        raise Failed("%s did not finish within 30 s" % " ".join(command[:2])) from None
