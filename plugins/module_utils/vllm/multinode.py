# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One model on several hosts: the proof of each of them, so that all keep a change or none does.

Node 0 serves, and is proven as on a single host. On the others the process must run and hold the memory once node 0
serves. Each then signals the supervisor that started it (programs/supervisor.py), and waits for its state to say that
all are proven. Where the proof of one host fails, it is stopped and rolled back; so every other supervisor ends, and
the proofs of those hosts fail, too.
"""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

from ..converge.model import Fault, Running
from ..serving.gate import Proof
from ..serving.stop import Stop

_POLL = 0.3  # seconds between two looks at the supervisor's state
_LEADER_STOPS = 15  # seconds that node 0 needs to end when its requests have ended


def leader_serves(proof: Proof) -> None:
    """A node that serves no API is up once node 0 serves; verdicts ``peer_lost``, ``not_ready``."""
    running = proof.running
    if not running.alive():
        raise proof.died()
    if proof.started:
        _wait(proof, "serving")
        proof.figures["ready_seconds"] = round(time.monotonic() - running.started_monotonic, 1)


def all_proven(proof: Proof) -> None:
    """A host that has just started is proven, and waits until all are; verdicts ``peer_lost``, ``not_ready``."""
    if not proof.started:
        return
    try:
        os.kill(proof.running.main_pid, signal.SIGUSR1)
    except ProcessLookupError:
        raise proof.died() from None
    _wait(proof, "proven")


def _wait(proof: Proof, state: str) -> None:
    """Until the supervisor is in this state."""
    running = proof.running
    while True:
        if not running.alive():
            raise proof.died()
        status = running.system.show(running.unit).get("StatusText", "")
        if state_of(status) == state:
            return
        if time.monotonic() > running.deadline:
            raise Fault(
                "not_ready",
                "it runs, but the hosts did not all get ready within %.0f s; its supervisor reports: %s. Run on "
                "all hosts of the model at a time (--forks)"
                % (time.monotonic() - running.started_monotonic, status or "nothing"),
            )
        # systemd sends no signal when a unit's status text changes
        time.sleep(_POLL)


def state_of(status: str) -> str:
    """The state in a supervisor's status, ``state=WORD TEXT``; empty where it is not one. The text may say anything."""
    found = re.match(r"state=([a-z]+) ", status)
    return found.group(1) if found else ""


class WorkerStop(Stop):
    """A node without an API ends when node 0 does, which first lets its requests end."""

    def before_stop(self, running: Running) -> None:
        self.pids = running.pids
        process: Any = running.process
        process.ended_within(self.drain + _LEADER_STOPS if self.drain > 0 else 0)
