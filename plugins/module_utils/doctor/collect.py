# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that helps a person who is not at the host: facts, units, logs, listeners, versions. Reads only.

Secrets are removed here, so that they do not leave the host.
"""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Sequence, Tuple

from ..converge.override import DIRECTORY, DROP_IN, SECRETS
from ..gpu import facts as gpu_facts
from ..gpu import health
from ..serving.adopt import private_below
from ..systemd.manager import System
from ..systemd.unit import parse, parse_assignments, parse_environment_file
from ..toolbox.command import status_of
from . import pains
from .redact import redactor, secret_values

LINES = 300
"""Last lines of each log."""
LARGEST = 256 * 1024
"""Bytes of one file of the bundle, and of one file of keys."""
LIMIT = 20.0
"""Seconds that one command may take."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMANDS: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    ("nvidia-smi.txt", ("nvidia-smi", "-q")),
    ("listeners.txt", ("ss", "-tlnp")),
    ("disks.txt", ("df", "-h")),
    ("memory.txt", ("free", "-m")),
    ("versions/kernel.txt", ("uname", "-a")),
    ("versions/os.txt", ("cat", "/etc/os-release")),
    ("versions/systemd.txt", ("systemctl", "--version")),
    ("versions/deb.txt", ("dpkg-query", "-W", "*nvidia*", "cuda*", "haproxy", "systemd")),
    ("versions/rpm.txt", ("rpm", "-qa", "*nvidia*", "cuda*", "haproxy", "systemd")),
)
_DRIVER = re.compile(r"NVRM|nvidia|Xid|[Oo]ut of memory|oom-kill|mlx5", re.IGNORECASE)
_HIDDEN = ("Environment", "SetCredential")
"""Properties whose values come from files that not everybody may read."""


def report(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The result of the module ``doctor``."""
    system, now = System(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    paths = gpu_facts.site_packages(gpu_facts.VENV)
    facts = gpu_facts.gather(timeout=params["timeout"], python_paths=paths, thorough=True)
    facts["findings"] += health.missing(facts["count"], params["expected_count"])
    units = {unit: shown(unit) for unit in ours(system)}
    clean = redactor(secrets(system, units))
    files: Dict[str, str] = {"facts.json": json.dumps(facts, indent=2, sort_keys=True)}
    files.update((name, run(command)) for name, command in COMMANDS)
    files["kernel.txt"] = "\n".join(line for line in _journal("-k", "-n", "5000") if _DRIVER.search(line))
    for unit, state in units.items():
        files["units/%s.files.txt" % unit] = "\n".join(_sources(system, unit, state))
        files["units/%s.show.txt" % unit] = "\n".join("%s=%s" % item for item in state.items())
        files["logs/%s.txt" % unit] = "\n".join(_journal("-u", unit, "-n", str(LINES)))
    found = pains.check(seen(facts, units))
    files["support.txt"] = pains.support(facts, platform.node(), now)
    files = {name: clean(text)[-LARGEST:] for name, text in files.items() if text}
    said = [{key: clean(text) for key, text in one.items()} for one in found]
    return {"changed": False, "files": files, "pains": said, "units": sorted(units), "time": now, "msg": _summary(said)}


def ours(system: System) -> List[str]:
    """The units that this collection manages."""
    names = [name[:-2] for name in system.names(DIRECTORY) if name.endswith(".d")]
    return sorted(name for name in names if os.path.lexists("%s/%s.d/%s" % (DIRECTORY, name, DROP_IN)))


def shown(unit: str) -> Dict[str, str]:
    """All properties of a unit, without those that may hold secrets."""
    pairs = [line.partition("=") for line in run(("systemctl", "show", "--no-pager", "--", unit)).splitlines()]
    return {name: value for name, _sep, value in pairs if not name.startswith(_HIDDEN)}


def secrets(system: System, units: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Every secret of our services: of their files, their processes, and the files of keys."""
    is_private = private_below("")
    for unit, state in units.items():
        for path, content in system.load([unit]):
            yield from secret_values(_assigned(path, content), is_private(path))
            for line in parse(content, path).assignments:
                if line.key == "EnvironmentFile":
                    for file, text in system.environment_files(line.value.lstrip("-")):
                        variables = {name: value for name, (value, _line) in parse_environment_file(text).items()}
                        yield from secret_values(variables, is_private(file))
                elif line.key in ("LoadCredential", "SetCredential"):
                    yield from _credential(line.key, line.value)
        yield from secret_values(_environ(state.get("MainPID", "0")), False)
    for folder, _folders, names in os.walk(SECRETS):
        for name in names:
            path = os.path.join(folder, name)
            if is_private(path) and not name.endswith((".json", ".py", ".cfg", ".lua")):
                yield _content(path)


def _credential(key: str, value: str) -> Iterator[str]:
    content = value.partition(":")[2]
    yield content if key == "SetCredential" else _content(content)


def _assigned(path: str, content: bytes) -> Dict[str, str]:
    lines = [line for line in parse(content, path).assignments if line.key == "Environment"]
    return {name: text for line in lines for name, text in parse_assignments(line.value, {})}


def _environ(pid: str) -> Dict[str, str]:
    pairs = [pair.partition("=") for pair in _content("/proc/%s/environ" % pid).split("\0")]
    return {name: text for name, _sep, text in pairs if name}


def _content(path: str) -> str:
    """The beginning of a file; empty if it cannot be read."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(LARGEST).decode("utf-8", "replace")
    except OSError:
        return ""


def _sources(system: System, unit: str, state: Mapping[str, str]) -> Iterator[str]:
    """The files of a unit, with the content of those that everybody may read; the variables of its process."""
    is_private = private_below("")
    for path, content in system.load([unit]):
        yield "# %s%s" % (path, ", which not everybody may read: left out" if is_private(path) else "")
        yield "" if is_private(path) else content.decode("utf-8", "replace")
    yield "# variables of the process: %s" % ", ".join(sorted(_environ(state.get("MainPID", "0"))))


def _journal(*words: str) -> Sequence[str]:
    return run(("journalctl", "-b", "--no-pager", "-o", "short-iso", *words)).splitlines()


def run(command: Sequence[str]) -> str:
    """What a command prints, whatever it ends with; empty if it does not exist."""
    with tempfile.TemporaryFile() as output:
        try:
            ended = status_of(command, LIMIT, environment={"PATH": PATH, "LC_ALL": "C"}, output=output)
        except OSError:
            return ""
        output.seek(0)
        text = output.read(8 * LARGEST).decode("utf-8", "replace")
    return text if ended is not None else text + "\n(it did not end within %g s)\n" % LIMIT


def _ports(facts: Mapping[str, Any]) -> Iterator[Tuple[str, Dict[str, int]]]:
    for device in facts["rdma"]:
        for port in device["ports"]:
            name = "%s/%d" % (device["name"], port["port"])
            folder = "/sys/class/infiniband/%s/ports/%d/counters/" % (device["name"], port["port"])
            texts = {counter: _content(folder + counter).strip() for counter in (*pains.PORT_ERRORS, "link_downed")}
            yield name, {counter: int(text) for counter, text in texts.items() if text.isdigit()}


def _in_driver() -> Dict[int, str]:
    """The processes that wait in the NVIDIA driver and take no signal now."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        start, _bracket, rest = _content("/proc/%s/stat" % name).rpartition(") ")
        if rest.startswith("D") and "[nvidia" in _content("/proc/%s/stack" % name):
            found[int(name)] = start.partition("(")[2]
    return found


def _stuck() -> Dict[int, str]:
    before = _in_driver()
    if before:
        # every call into the driver waits there for a moment: only a process that is still there is stuck
        time.sleep(1)
    return {pid: name for pid, name in _in_driver().items() if pid in before} if before else {}


def seen(facts: Mapping[str, Any], units: Mapping[str, Mapping[str, str]]) -> pains.Seen:
    """What the checks look at."""
    modules = [line.split()[0] for line in _content("/proc/modules").splitlines() if line]
    return pains.Seen(
        facts,
        units,
        modules,
        os.listdir("/dev"),
        dict(_disks()),
        os.path.exists("/run/reboot-required"),
        dict(_ports(facts)),
        _stuck(),
    )


def _disks() -> Iterator[Tuple[str, int]]:
    for line in run(("df", "-P", "-l", "-x", "tmpfs", "-x", "devtmpfs", "-x", "squashfs")).splitlines()[1:]:
        words = line.split()
        if len(words) >= 6 and words[4].rstrip("%").isdigit():
            yield words[5], int(words[4].rstrip("%"))


def _summary(found: Sequence[Mapping[str, str]]) -> str:
    return "%d known problem%s found" % (len(found), "" if len(found) == 1 else "s") if found else "nothing found"
