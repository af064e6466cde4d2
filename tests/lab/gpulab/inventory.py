# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's inventory (pure)."""

from __future__ import annotations

import json
import shlex
from typing import Dict, NamedTuple


class Address(NamedTuple):
    """Where a host is reached. `life` changes whenever the host starts anew."""

    ip: str
    life: str


def render(hosts: Dict[str, Address], lab: str, key: str, known_hosts: str, archive: str) -> str:
    """YAML inventory of the hosts, all in group `ollama`, and so in `torchrun`.

    Args: host name → address; the lab's name; paths of the private key, of known_hosts and of Ollama's archive.
    """
    options = [
        'UserKnownHostsFile="%s"' % known_hosts,
        "GlobalKnownHostsFile=/dev/null",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "PreferredAuthentications=publickey",
    ]
    common = {
        "ansible_user": "fleet",
        "ansible_ssh_private_key_file": key,
        "ansible_ssh_common_args": " ".join("-o " + shlex.quote(option) for option in options),
    }
    common["ollama_archive"] = archive
    lines = ["# Written by tests/lab/lab.py; gone with `make lab-down`.", "all:", "  vars:"]
    lines += ["    %s: %s" % (name, json.dumps(value)) for name, value in common.items()]
    lines += ["ollama:", "  hosts:"] if hosts else ["ollama: {}"]
    for name, address in hosts.items():
        # A kept SSH connection must not outlive its host: another one may answer at the same address.
        control = "%%(directory)s/%s-%s-%s" % (lab, name, address.life)
        lines.append(
            "    %s: {ansible_host: %s, ansible_control_path: %s}" % (name, json.dumps(address.ip), json.dumps(control))
        )
    lines += ["torchrun:", "  children:", "    ollama:"]
    return "\n".join(lines) + "\n"


def known_hosts(addresses: Dict[str, Address], keys: Dict[str, str]) -> str:
    """known_hosts file: address → the public key read on the host itself, not over the network."""
    return "".join("%s %s\n" % (addresses[name].ip, " ".join(keys[name].split()[:2])) for name in addresses)
