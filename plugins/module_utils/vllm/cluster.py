# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ray under one model on several hosts: what starts a node of it, where it listens, its variables. Pure.

Every host's unit runs a node of a cluster that is this instance's alone. It ends by the unit's end, and never by
`ray stop`, which ends every Ray of its user on the host. Seen with Ray 2.60.0 and vLLM 0.32.0: a node that joins before
its head is whole gives up after half a minute; vLLM itself waits until the GPUs of all nodes are there.
"""

from __future__ import annotations

import hashlib
from typing import Dict, List, Tuple

LONGEST_NAME = 28
"""Characters of an instance's name: the socket in the node's folder has a path of 78 more, and 107 are possible."""

# Counted from the port of the rendezvous, which is the cluster's own; the next one is the supervisor's, the one after
# it the role's for a while.
_NODE_MANAGER, _OBJECT_MANAGER, _CLIENTS = 3, 4, 5


def directory(name: str) -> str:
    """Under /run, for its user alone. Ray makes its own folder in there, and lets everybody open the sockets in that,
    by which one has it run code."""
    return "vllm-" + name


def start(program: str, name: str, addresses: List[str], rank: int, port: int, gpus: int, clients: bool) -> List[str]:
    """The words that start a node. Those of the head end when it is there, the others with the node.

    :param program: path of `ray`.
    :param clients: whether the environment has what the server for Ray's own clients needs: the head starts one then.
    """
    words = [program, "start", "--disable-usage-stats", "--log-style", "record"]
    words += ["--node-ip-address", addresses[rank], "--num-gpus", str(gpus)]
    words += ["--temp-dir", "/run/%s/ray" % directory(name)]
    words += ["--node-manager-port", str(port + _NODE_MANAGER), "--object-manager-port", str(port + _OBJECT_MANAGER)]
    words += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
    if rank:
        return [*words, "--block", "--address", "%s:%d" % (addresses[0], port)]
    words += ["--head", "--port", str(port), "--include-dashboard", "false"]
    return [*words, "--ray-client-server-port", str(port + _CLIENTS)] if clients else words


def ports(rank: int, port: int) -> Tuple[int, ...]:
    """Where a node listens, on every address, at ports that are known before."""
    each = (port + _NODE_MANAGER, port + _OBJECT_MANAGER)
    return each if rank else (*each, port + _CLIENTS)


def environment(addresses: List[str], port: int) -> Dict[str, str]:
    """Variables of vLLM and Ray; a node has nothing to drain, as no other cluster's work is there."""
    return {
        "RAY_ADDRESS": "%s:%d" % (addresses[0], port),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }


def token(api_key: str) -> str:
    """What the nodes ask of each other where clients must send a key; not the key, as more processes know it."""
    return hashlib.sha256(b"ray:" + api_key.encode()).hexdigest()
