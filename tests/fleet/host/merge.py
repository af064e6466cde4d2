# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On a lab host: lets systemd and our merge read the same units, and compares what they make of them."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System, split_items
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import merge

BASES = ["/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"]
NAMES = ["zq-a-b.service", "zq-a-b@x-y.service", "zq-b@i.service", "zq-c.service", "zq-d-.service"]
NAMES += ["zq--e.service", "-zq.service", "zq--f-@a@b.service", "zq-b@.x.service", "zq-g\\x2dh--i.service"]
FILES = [
    "10-a.conf",
    "9-n.conf",
    "50.conf",
    "override.conf",
    "ZZZ.conf",
    "zz-gpufleet.conf",
    ".h.conf",
    "é.conf",
    "x.txt",
]
LINES = [
    "Environment=A=1 B=2",
    'Environment="A=x y" \'B=q"q\' C=%n',
    'Environment="A=\\x41\\n\\t\\\\ \\"q\\""',
    "Environment=A=%Z B=%i C=%%",
    'Environment="D=open',
    "Environment=E=1 \\",
    "  F=2",
    "Environment=",
    "Environment=1X=bad G=é H=a\\ b",
    "# comment",
    "; comment \\",
    "[Unit]",
    "[Service]",
    "[X-Own]",
    "[broken",
    "Nice=5",
    "Nice=",
    "Nice=7",
    "SupplementaryGroups=adm",
    "SupplementaryGroups=",
    "SupplementaryGroups=disk audio",
    "UnsetEnvironment=A",
    "UnsetEnvironment=A=1 A=x",
    "UnsetEnvironment=B=2",
    "Environment=A=%q B=%f",
    "Environment=A=%y B=%Y D=%d",
    "Environment=A=%I B=%P C=%s",
    "Restart=always",
    "Restart=",
    "PrivateDevices=yes",
    "PrivateDevices=",
    "DevicePolicy=closed",
    "DevicePolicy=",
    "LimitNOFILE=4000",
    "LimitNOFILE=",
    "EnvironmentFile=-/run/zq.env/",
    "EnvironmentFile=-/run//./zq.d/%n.env",
    "EnvironmentFile=/run/../etc/zq.env",
    "EnvironmentFile=-zq.env",
    "EnvironmentFile=-/run/zq-%Z.env",
    "EnvironmentFile=",
    "no equals",
    "=no key",
    "",
]
rng = random.Random(int(json.loads(Path(sys.argv[1]).read_text())["seed"]))
written = []


def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        Path(path).write_bytes(content)
        written.append(path)


def show(units, properties):
    out = subprocess.check_output(["systemctl", "show", "-p", ",".join(properties), "--", *units])
    blocks = out.decode("utf-8", "surrogateescape").split("\n\n")
    return [state_of(block.split("\n")) for block in blocks]


def state_of(lines):
    """The properties; that one which has a line for each item is a list of these."""
    state = dict(line.split("=", 1) for line in lines if "=" in line)
    files = [line.split("=", 1)[1].rpartition(" (")[0] for line in lines if line.startswith("EnvironmentFiles=")]
    return dict(state, EnvironmentFiles=files)


def compare(unit, state):
    """What differs between systemd and our merge."""
    system = System()
    files = system.load([unit])
    ours = merge(files)
    specifiers = system.specifiers(unit, files[0][0])
    environment = {name: value.text for name, value in ours.environment(specifiers).items()}
    theirs = dict(item.split("=", 1) for item in split_items(state["Environment"]))
    for word in split_items(state["UnsetEnvironment"]):
        name, equals, value = word.partition("=")
        if name in theirs and (not equals or theirs[name] == value):
            del theirs[name]
    nice = [line.value for line in ours.in_force("Service", "Nice")]
    groups = " ".join(line.value for line in ours.in_force("Service", "SupplementaryGroups")).split()
    found = {
        "paths": ([path for path, _content in files if path.endswith(".conf")], split_items(state["DropInPaths"])),
        "environment": (environment, theirs),
        "nice": (nice[-1] if nice else "0", state["Nice"]),
        "groups": (groups, split_items(state["SupplementaryGroups"])),
        "environment files": (list(ours.environment_files(specifiers)), state["EnvironmentFiles"]),
        **{key: (last(ours, key, default), state[key]) for key, default in DEFAULTS.items()},
    }
    return {what: pair for what, pair in found.items() if pair[0] != pair[1]}


def last(ours, key, default):
    found = [line.value for line in ours.in_force("Service", key)]
    # systemd itself makes this of PrivateDevices=
    private = key == "DevicePolicy" and last(ours, "PrivateDevices", "no") == "yes"
    return found[-1] if found else "closed" if private else default


DEFAULTS = {"Restart": "no", "PrivateDevices": "no", "DevicePolicy": "auto", "LimitNOFILE": "524288"}
PROPERTIES = [
    *DEFAULTS,
    "EnvironmentFiles",
    "Environment",
    "UnsetEnvironment",
    "DropInPaths",
    "Nice",
    "SupplementaryGroups",
    "LoadState",
]
differences, compared, drop_ins = [], 0, 0


def check(case, units):
    global compared, drop_ins
    states = show(units, PROPERTIES)
    for unit, state in zip(units, states):
        if state["LoadState"] == "loaded":
            compared += 1
            drop_ins += len(split_items(state["DropInPaths"]))
            found = compare(unit, state)
            if found:
                differences.append({"case": case, "unit": unit, "found": found})
    return states


def clean():
    while written:
        path = Path(written.pop())
        path.unlink()
        if path.parent.name.endswith(".d") and not any(path.parent.iterdir()):
            path.parent.rmdir()


def body():
    lines = [rng.choice(LINES) for _ in range(rng.randrange(6))]
    content = "\n".join(["[Service]", *lines]) + rng.choice(["\n", ""])
    return content.encode() + rng.choice([b""] * 20 + [b"\nEnvironment=A=\xff\nEnvironment=B=3\n"])


data = json.loads(Path(sys.argv[1]).read_text())
Path("/etc/machine-info").write_text('PRETTY_HOSTNAME="A \\"host\\""\n')
for case in range(data["rounds"]):
    for unit in NAMES:
        fragment = unit if "@" not in unit or rng.random() < 0.2 else unit.split("@")[0] + "@.service"
        content = b"[Service]\nExecStart=/bin/sleep infinity\n" + body()[10:]
        place = "%s/%s" % (rng.choice(BASES), fragment)
        if rng.random() < 0.1 and not os.path.lexists(place):
            write("/run/zq-linked/" + fragment, content)
            os.symlink("/run/zq-linked/" + fragment, place)
            written.append(place)
        else:
            write(place, content)
    stems = ["zq-a-b", "zq-a-", "zq-", "zq-b", "zq-c", "zq-d-", "zq-a-b@x-y", "zq-a-b@", "zq-a-@x-y", "zq-@", "zq-b@i"]
    stems += ["zq--e", "zq--", "-zq", "zq--f-@a@b", "zq--f-@", "zq--f-", "zq-@a@b", "zq-b@.x", "zq-g\\x2dh--"]
    for _ in range(40):
        stem = rng.choice(stems)
        write("%s/%s.service.d/%s" % (rng.choice(BASES), stem, rng.choice(FILES)), body())
    for _ in range(2):
        path = "/etc/systemd/system/%s.service.d/%s" % (rng.choice(stems), rng.choice(FILES[:6]))
        Path(path).parent.mkdir(exist_ok=True)
        if not os.path.lexists(path):
            os.symlink("/dev/null", path)
            written.append(path)
    write("/run/systemd/system/service.d/%s" % rng.choice(FILES[:6]), body())
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    check(case, NAMES)
    clean()

# the tables of the unit tests, one unit a row
for number, content in enumerate(data["files"].values()):
    write("/etc/systemd/system/zq-t%d.service" % number, b"[Service]\nExecStart=/bin/sleep infinity\n")
    write("/etc/systemd/system/zq-t%d.service.d/01.conf" % number, base64.b64decode(content))
subprocess.run(["systemctl", "daemon-reload"], check=True)
states = check("table", ["zq-t%d.service" % number for number in range(len(data["files"]))])
for name, state in zip(data["files"], states):
    data["files"][name] = dict(item.split("=", 1) for item in split_items(state["Environment"]))
clean()

units = []
for number, content in enumerate(data["environment_files"].values()):
    Path("/run/zq-%d.env" % number).write_bytes(base64.b64decode(content))
    unit = "[Service]\nType=exec\nEnvironmentFile=/run/zq-%d.env\nExecStart=/bin/sleep infinity\n" % number
    write("/etc/systemd/system/zq-e%d.service" % number, unit.encode())
    units.append("zq-e%d.service" % number)
subprocess.run(["systemctl", "daemon-reload"], check=True)
subprocess.run(["systemctl", "start", *units], check=True)
for name, state in zip(data["environment_files"], show(units, ["MainPID"])):
    raw = Path("/proc", state["MainPID"], "environ").read_bytes().decode("utf-8", "surrogateescape")
    have = dict(item.split("=", 1) for item in raw.split("\0") if "=" in item)
    data["environment_files"][name] = {key: value for key, value in have.items() if len(key) == 1}
subprocess.run(["systemctl", "stop", *units], check=True)
clean()
os.unlink("/etc/machine-info")
subprocess.run(["systemctl", "daemon-reload"], check=True)
del data["seed"], data["rounds"]
print(json.dumps({"compared": compared, "drop_ins": drop_ins, "differences": differences[:5], **data}))
