# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens around a stop of any engine: its GPU memory is free before another process is started."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List

from ..converge.model import Running, Verdict


class AwaitMemory:
    """Waits for the GPU memory of a stopped process.

    :param gather: reads the GPU facts.
    :param gpus: whether the service uses GPUs.
    :param release: seconds for which memory is waited for.
    """

    def __init__(self, *, gather: Callable[[], Dict[str, Any]], gpus: bool, release: float) -> None:
        self.gather, self.gpus, self.release = gather, gpus, release
        self.pids: List[int] = []

    def before_stop(self, running: Running) -> None:
        self.pids = running.pids

    def after_stop(self) -> Verdict:
        if not (self.gpus and self.pids):
            return Verdict("ok")
        until = time.monotonic() + self.release
        while True:
            held = self._still_held()
            if not held:
                return Verdict("ok")
            if time.monotonic() >= until:
                return Verdict(
                    "vram_held",
                    "its process is gone, but %.0f s later its previous processes still hold GPU memory: %s. This "
                    "collection does not kill them" % (self.release, ", ".join(held)),
                    {"holders": held},
                )
            # the driver frees memory some time after a process ended, and sends no word
            time.sleep(0.25)

    def _still_held(self) -> List[str]:
        from ..placement.memory import gib

        return [
            "PID %d (%s) %s on GPU %s"
            % (process["pid"], process["name"], gib(process["used_bytes"] or 0), device["index"])
            for device in self.gather()["devices"]
            for process in device["processes"] or ()
            if process["pid"] in self.pids
        ]
