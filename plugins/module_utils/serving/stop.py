# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens around a stop of any engine: its requests end before it, its GPU memory is free after it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Type

from ..converge.model import Running, Verdict

if TYPE_CHECKING:
    from ..endpoint.client import Endpoint
    from .model import Host


class Stop:
    """Lets the requests of a process end before it is stopped, and waits for its GPU memory afterwards.

    :param gather: reads the GPU facts.
    :param gpus: whether the service uses GPUs.
    :param drain: seconds for which requests are waited for; then they are cut. 0: it is not drained.
    :param release: seconds for which memory is waited for.
    :param command: argv that takes the service out of another load balancer; empty for none.
    :param endpoint_of: gives the endpoint of the running process from its environment, as its key may be about to
        change; None where it does not report its requests.
    :param port_of: gives the port of such a process from its environment; 0 if it is not known.
    :param warn: called with each warning.
    """

    def __init__(
        self,
        *,
        gather: Callable[[], Dict[str, Any]],
        gpus: bool,
        drain: float,
        release: float,
        warn: Callable[[str], None],
        command: Sequence[str] = (),
        endpoint_of: Callable[[Mapping[str, str]], "Optional[Endpoint]"] = lambda environ: None,
        port_of: Callable[[Mapping[str, str]], int] = lambda environ: 0,
    ) -> None:
        self.gather, self.gpus, self.drain, self.release, self.warn = gather, gpus, drain, release, warn
        self.command, self.endpoint_of, self.port_of = command, endpoint_of, port_of
        self.pids: List[int] = []
        self.draining = False
        """Whether a drain was begun."""
        self.drained: Dict[str, Any] = {}
        """What came of the drain, for the result."""

    def before_stop(self, running: Running) -> None:
        self.pids = running.pids
        if self.drain > 0:
            # a converged host does not need it
            from . import drain

            endpoint, self.draining = self.endpoint_of(running.environ), True
            port = endpoint.port if endpoint else self.port_of(running.environ)
            self.drained = drain.drain(running, endpoint, port, self.command, self.drain, self.warn)

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


def hook(
    options: Mapping[str, Any],
    host: "Host",
    endpoint_of: Callable[[Mapping[str, str]], "Optional[Endpoint]"] = lambda environ: None,
    *,
    port_of: Callable[[Mapping[str, str]], int] = lambda environ: 0,
    gpus: Optional[bool] = None,
    release: Optional[float] = None,
    kind: Type[Stop] = Stop,
) -> Stop:
    """What happens around a stop of a service, by its options.

    :param gpus: whether it uses GPUs, where its options do not say.
    :param release: for an engine without the option ``release_timeout``.
    :param kind: for an engine whose requests end in another way.
    """
    return kind(
        endpoint_of=endpoint_of,
        port_of=port_of,
        gather=host.gather,
        gpus=options["visible_devices"] != "none" if gpus is None else gpus,
        drain=options["drain_timeout"],
        command=options["drain_command"],
        release=options["release_timeout"] if release is None else release,
        warn=host.warn,
    )
