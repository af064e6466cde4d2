#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of Ollama on a lab host.

    faults.py HOST worker slow-load:20,deaf    the worker's own (listed in llama-server)
    faults.py HOST server crash-loop:1 [A=b]   the server's, by a wrapper (listed in serverwrap), from its next start
    faults.py HOST port | store                made for real: port 11434 taken; the store owned by root, 0700
    faults.py HOST memory 30720 [1]            another process holds all but so many MiB of each GPU, or of one
    faults.py HOST clear                       none of these any more

Those that a setting makes need no help: CUDA_VISIBLE_DEVICES=0,9, OLLAMA_LLM_LIBRARY=cuda_v99.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable, Dict

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import hostsetup  # noqa: E402
import models  # noqa: E402

LISTENER = "import socket, time; s = socket.create_server(('127.0.0.1', 11434)); time.sleep(1 << 20)"


def worker(host: str, faults: str = "", discovery: str = "") -> None:
    """Tell the host's workers, from now on, to misbehave; `discovery`: seconds until they have listed the GPUs."""
    lines = "".join("%s=%s\n" % pair for pair in (("fault", faults), ("discovery", discovery)) if pair[1])
    hostsetup.sh(host, "mkdir -p /etc/nvidia-sim; cat >/etc/nvidia-sim/worker", lines)


def server(host: str, fault: str, only: str = "") -> None:
    """Put the wrapper in place of the host's ollama and name its fault; `only`: of a server with this NAME=VALUE."""
    hostsetup.sh(
        host,
        "here=$(readlink -f /usr/local/bin/ollama); [ -e $here.real ] || mv $here $here.real\n"
        "cat >$here.new; chmod 755 $here.new; mv $here.new $here\n"
        "mkdir -p /etc/nvidia-sim; echo %s >/etc/nvidia-sim/server" % " ".join((fault, only)),
        (HERE / "serverwrap").read_bytes(),
    )


def port(host: str) -> None:
    """Somebody else listens on Ollama's port; the running Ollama is stopped first and not started again."""
    hostsetup.sh(host, 'systemctl stop ollama || :; systemd-run --quiet --unit=port-taker python3 -c "%s"' % LISTENER)
    hostsetup.sh(host, "until ss -Hltn 'sport = :11434' | grep -q .; do sleep 0.05; done")


def store(host: str) -> None:
    """The store belongs to root, as after a copy made by root."""
    hostsetup.sh(host, "chown root: {0} && chmod 700 {0}".format(models.STORE))


def memory(host: str, free: str, only: str = "") -> None:
    """A foreign process holds all but `free` MiB of each GPU, or of the GPU `only`."""
    hostsetup.sh(
        host,
        "systemctl stop --quiet memory-holder 2>/dev/null || :\n"
        "systemd-run --quiet --unit=memory-holder sleep infinity\n"
        "pid=$(systemctl show -p MainPID --value memory-holder)\n"
        "nvidia-smi %s --query-gpu=index,memory.free --format=csv,noheader,nounits | while IFS=', ' read gpu has; do\n"
        "  nvidia-sim claim --pid $pid --gpu $gpu --mib $((has - %d)); done" % (only and "-i " + only, int(free)),
    )


def clear(host: str) -> None:
    """No fault of these any more; what is running keeps the fault it started with."""
    hostsetup.sh(
        host,
        "rm -f /etc/nvidia-sim/worker /etc/nvidia-sim/server\n"
        "systemctl stop --quiet port-taker memory-holder 2>/dev/null || :\n"
        "here=$(readlink -f /usr/local/bin/ollama || :); [ ! -e $here.real ] || mv $here.real $here\n"
        "[ ! -d {0} ] || {{ chown ollama: {0}; chmod 755 {0}; }}".format(models.STORE),
    )


FAULTS: Dict[str, Callable[..., None]] = {
    "worker": worker,
    "server": server,
    "port": port,
    "store": store,
    "memory": memory,
    "clear": clear,
}

if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[2] not in FAULTS:
        sys.exit(__doc__)
    FAULTS[sys.argv[2]](sys.argv[1], *sys.argv[3:])
