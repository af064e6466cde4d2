# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running Ollama as its process has it: where it listens, where its models are, which GPUs it may use."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from ..gpu.select import select
from ..placement.choice import visible_list
from ..systemd.manager import ManagerError, main_environ
from ..toolbox.errors import Failed, Refused
from . import settings
from .api import Api

_PASSING = 5.0  # seconds for which a process may be not yet executed, or gone and systemd not know it


class Server(NamedTuple):
    api: Api
    unit: str
    environ: Mapping[str, str]
    """Of the running process; empty when the unit does not run."""

    @property
    def store(self) -> Optional[str]:
        """The directory of its models; None when the process does not show it."""
        home = self.environ.get("HOME")
        return self.environ.get("OLLAMA_MODELS") or (os.path.join(home, ".ollama", "models") if home else None)

    @property
    def serving(self) -> Tuple[int, bool, str, bool]:
        """How it loads and serves models, for sizing.Serving."""
        return (
            self._number("OLLAMA_NUM_PARALLEL") or 1,
            self._flag("OLLAMA_SCHED_SPREAD", False),
            self.environ.get("OLLAMA_KV_CACHE_TYPE") or "f16",
            self._flag("OLLAMA_FLASH_ATTENTION", True),
        )

    @property
    def context(self) -> int:
        """Tokens where neither request nor model name them; 0: chosen by the memory of the GPUs."""
        return self._number("OLLAMA_CONTEXT_LENGTH")

    def devices(self, facts: Dict[str, Any]) -> List[Dict[str, Any]]:
        """The GPUs that it may use, out of the facts.

        :raises ValueError: its CUDA_VISIBLE_DEVICES names GPUs that are not there, or none answers.
        """
        visible = self.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            answering = [device for device in facts["devices"] if not device["health"]["lost"]]
            if not answering:
                raise ValueError("no GPU of this host answers")
            return answering
        try:
            return select(facts["devices"], visible_list(visible))
        except Refused as error:
            raise ValueError(str(error)) from None

    def _flag(self, variable: str, default: bool) -> bool:
        written = self.environ.get(variable, "").strip().lower()
        return written not in ("0", "f", "false") if written else default

    def _number(self, variable: str) -> int:
        written = self.environ.get(variable, "").strip()
        return int(written) if re.match(r"[0-9]{1,15}\Z", written) else 0


def find(unit: str, host: Optional[str], system: Any) -> Server:
    """The server of a unit, or the one that listens at ``host``.

    :param host: ADDRESS:PORT; None: as the unit's process has it in OLLAMA_HOST.
    :raises Failed: the unit does not run and no host is given, or the host is none.
    """
    environ = {}  # type: Dict[str, str]
    try:
        environ = main_environ(system, unit, _PASSING)[1]
    except ManagerError as error:
        if host is None:
            raise Failed("%s, or name the server by host" % error) from None
    if not environ and host is None:
        others = running_instances(unit, system)
        what = "name one of those that do: %s" % ", ".join(others) if others else "start it (ollama_service)"
        raise Failed(
            "%s does not run on this host; expected a running Ollama: %s, or name the server by host" % (unit, what)
        )
    listens = environ.get("OLLAMA_HOST", "").strip().strip("\"'") or settings.DEFAULT_HOST
    try:
        address, port = settings.reachable_at(host or listens)
        own = settings.reachable_at(listens)
    except ValueError as error:
        raise Failed("host: %s" % error) from None
    return Server(Api(address, port), unit, environ if own == (address, port) else {})


def running_instances(unit: str, system: Any) -> List[str]:
    """The instances that run in place of a unit."""
    beginning = unit.rpartition(".")[0].partition("@")[0] + "@"
    names = sorted(name[: -len(".d")] for name in system.names("/etc/systemd/system") if name.endswith(".service.d"))
    try:
        return [name for name in names if name.startswith(beginning) and system.show(name).get("MainPID", "0") != "0"]
    except ManagerError:
        return []


def held_by_worker(facts: Dict[str, Any], unit: str, blob: str, proc: str = "/proc") -> "Tuple[Dict[str, int], bool]":
    """GPU memory of the processes that serve one model: the worker's command line names the file of the weights.

    :param unit: the processes must belong to it.
    :param blob: name of the file in the store, ``sha256-…``.
    :returns: bytes per GPU UUID, and whether the driver reported the memory of every such process.
    """
    held = {}  # type: Dict[str, int]
    known = True
    for device in facts["devices"]:
        for process in device["processes"] or ():
            if process["unit"] == unit and blob in _files_named(proc, process["pid"]):
                known = known and process["used_bytes"] is not None
                held[device["uuid"]] = held.get(device["uuid"], 0) + (process["used_bytes"] or 0)
    return held, known


def _files_named(proc: str, pid: int) -> List[str]:
    try:
        with open("%s/%d/cmdline" % (proc, pid), "rb") as file:
            words = file.read().decode("utf-8", "replace").split("\0")
    except OSError:
        return []
    return [os.path.basename(word) for word in words]
