# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens around a stop: running requests end before it, and the GPU memory is free after it."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Mapping, Optional

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Running, Verdict
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint, EndpointError
from ansible_collections.gpufleet.inference.plugins.module_utils.placement.memory import gib


class Drain:
    """Lets requests end before the process is stopped, and waits for its GPU memory afterwards.

    :param endpoint_of: gives the endpoint of the running process from its environment, as its key may be about to
        change; None where there is nothing to drain.
    :param gather: reads the GPU facts.
    :param gpus: whether the service uses GPUs.
    :param drain: seconds for which requests are waited for; then they are cut.
    :param release: seconds for which memory is waited for.
    """

    def __init__(
        self,
        *,
        endpoint_of: Callable[[Mapping[str, str]], Optional[Endpoint]],
        gather: Callable[[], Dict[str, Any]],
        gpus: bool,
        drain: float,
        release: float,
        warn: Callable[[str], None],
    ) -> None:
        self.endpoint_of, self.gather, self.gpus = endpoint_of, gather, gpus
        self.drain, self.release, self.warn = drain, release, warn
        self.pids: List[int] = []

    def before_stop(self, running: Running) -> None:
        self.pids = running.pids
        endpoint = self.endpoint_of(running.environ)
        if not endpoint or self.drain <= 0:
            return
        try:
            endpoint.wait_idle(self.drain)
        except EndpointError as error:
            if error.name == "busy":
                self.warn("%s: %s; they were cut" % (running.unit, error))

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
        return [
            "PID %d (%s) %s on GPU %s"
            % (process["pid"], process["name"], gib(process["used_bytes"] or 0), device["index"])
            for device in self.gather()["devices"]
            for process in device["processes"] or ()
            if process["pid"] in self.pids
        ]
