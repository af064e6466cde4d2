# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: a local fleet of GPU hosts in containers. See README.md beside this file.

Run as root, or as a user who may sudo. GPUFLEET_LAB names the lab (default gpufleet), GPUFLEET_CACHE the folder for
what is kept (default ~/.cache/gpufleet-inference).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gpulab import machine, podman
from gpulab.errors import LabError
from gpulab.fleet import DEFAULT_NAME, Lab


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lab.py", description="A local fleet of GPU hosts in containers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="bring exactly N hosts up, in their default states")
    up.add_argument("--hosts", type=int, default=3, metavar="N", help="how many hosts (default %(default)s)")
    commands.add_parser("down", help="remove all hosts, keys and the inventory")
    commands.add_parser("status", help="a table of the hosts")
    commands.add_parser("inventory", help="print the path of the inventory")
    state = commands.add_parser("state", help="switch the simulated GPUs of a host")
    state.add_argument("host")
    state.add_argument("state")
    state.add_argument("--fault", action="append", default=[], metavar="FAULT[:INDEX]")
    for name, text in (
        ("exec", "run a command as root on a host"),
        ("ssh", "log in as user fleet, or run a command so"),
        ("net", "run a command of this machine, such as ip, tc or iptables, in a host's network"),
    ):
        one = commands.add_parser(name, help=text)
        one.add_argument("host")
        one.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return parser.parse_args(words)


def become_root(cache: Path) -> None:
    """Run this again through sudo, with the settings that count kept; the cache stays that of the user."""
    os.environ["GPUFLEET_CACHE"] = str(cache)
    kept = [
        name for name in os.environ if name.startswith(("GPUFLEET_", "OLLAMA_", "PIP_")) or name in machine.CA_VARIABLES
    ]
    kept += [name for name in os.environ if name.lower() in machine.PROXY_VARIABLES]
    os.execvp("sudo", ["sudo", "--preserve-env=" + ",".join(kept), sys.executable, *sys.argv])


def say(line: str) -> None:
    """Print a line in one piece: several hosts come up at the same time."""
    sys.stdout.write("lab: %s\n" % line)
    sys.stdout.flush()


def main() -> None:
    options = parse(sys.argv[1:])
    os.umask(0o022)  # what is handed to the hosts must be readable there
    cache = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache/gpufleet-inference").resolve()
    cache.mkdir(parents=True, exist_ok=True)
    if os.geteuid():
        become_root(cache)
    lab = Lab(os.environ.get("GPUFLEET_LAB") or DEFAULT_NAME, cache, say)
    words = getattr(options, "words", [])
    words = words[1:] if words[:1] == ["--"] else words
    if options.command == "up":
        lab.up(options.hosts, os.environ)
    elif options.command == "down":
        lab.down()
    elif options.command == "status":
        print(lab.status())
    elif options.command == "inventory":
        print(lab.inventory)
    elif options.command == "state":
        lab.container(options.host)
        lab.state(options.host, options.state, options.fault)
    elif options.command == "exec":
        status = podman.attach(lab.name_of(options.host), words or ["bash"], sys.stdin.isatty())
        if status == podman.NOT_RUN:
            lab.container(options.host)  # says which hosts there are, when that is why
        sys.exit(status)
    elif options.command == "net":
        command = ["nsenter", "--net", "--target", str(podman.pid(lab.container(options.host))), "--", *words]
        os.execvp(command[0], command)
    elif options.command == "ssh":
        command = lab.ssh_command(options.host, words)
        os.execvp(command[0], command)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit("lab: %s" % error)
    except KeyboardInterrupt:
        sys.exit(130)
