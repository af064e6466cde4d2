# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One model on several hosts: the proof of each of them, and that all keep a change or none does.

Node 0 serves and is proven as on one host. Of the others the process must run and hold the memory, once node 0 serves.
Each says so to the program that started it (together.py), and waits there for the word that all are proven. Where the
proof of one fails, it is stopped and put back, so the program of every other ends, and their proofs fail, too.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.engine import Running, Verdict
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.gate import Fault, VllmGate, VllmStopHooks

_LOOK = 0.3  # seconds between two looks at what the program says
_HEAD_STOPS = 15  # seconds that node 0 needs to end when its requests have ended


class HeadGate(VllmGate):
    """The proof of node 0. Beside those of one host, the verdicts are ``peer_lost`` and ``not_ready``."""

    def __call__(self, running: Running, changed: bool) -> Verdict:
        verdict = super().__call__(running, changed)
        if not verdict.ok or not changed:
            return verdict
        try:
            self._all_proven(running)
        except Fault as fault:
            return fault.verdict
        return verdict

    def _all_proven(self, running: Running) -> None:
        try:
            os.kill(running.main_pid, signal.SIGUSR1)
        except ProcessLookupError:
            raise self._died(running) from None
        self._wait(running, "all proven")

    def _wait(self, running: Running, words: str) -> None:
        """Until the program says so."""
        while True:
            if not running.alive():
                raise self._died(running)
            said = running.system.show(running.unit).get("StatusText", "")
            if words in said:
                return
            if time.monotonic() > running.deadline:
                raise Fault(
                    "not_ready",
                    "it runs, but the hosts are not at one within %.0f s: %s. Run on all of them at a time (--forks)"
                    % (time.monotonic() - running.started_monotonic, said or "its program says nothing"),
                )
            # systemd sends no word of a unit's status text
            time.sleep(_LOOK)


class WorkerGate(HeadGate):
    """The proof of a node that serves no API."""

    def _comes_up(self, running: Running, changed: bool) -> None:
        if not running.alive():
            raise self._died(running)
        if changed:
            self._wait(running, "serves")
            self.figures["ready_seconds"] = round(time.monotonic() - running.started_monotonic, 1)

    def _is_ours(self, running: Running) -> None:
        pass

    def _answers(self, running: Running) -> None:
        pass


class WorkerStopHooks(VllmStopHooks):
    """A node without an API ends when node 0 does, which lets its requests end before."""

    def before_stop(self, running: Running) -> None:
        self.pids = running.pids
        process: Any = running.process
        process.ended_within(self.drain + _HEAD_STOPS if self.drain > 0 else 0)
