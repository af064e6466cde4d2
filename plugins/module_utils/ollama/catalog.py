# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models of one Ollama server: in its store and in memory, as it reports them, and the disk that they are on."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional

from ..toolbox.errors import Failed, Refused
from ..toolbox.values import gib
from .api import Answer
from .records import Records
from .server import Server
from .wanted import key


class Limits(NamedTuple):
    """Limits of a run."""

    timeout: float
    """Seconds for one answer of the server."""
    stall: float
    """Seconds without a new byte after which a pull is given up."""
    margin: int
    """Bytes to keep free on the disk of the store."""


class Catalog:
    """What the server has, and what every step of a run needs to change it.

    :param params: the module's parameters.
    :param check_mode: read and compare only.
    :param warn: called with each warning.
    """

    def __init__(
        self,
        server: Server,
        system: Any,
        params: Mapping[str, Any],
        limits: Limits,
        check_mode: bool,
        warn: Callable[[str], None],
    ) -> None:
        self.server, self.api, self.system, self.params, self.limits = server, server.api, system, params, limits
        self.check_mode, self.warn = check_mode, warn
        self.records = Records("%s:%d" % (self.api.address, self.api.port))
        self.store: Dict[str, Dict[str, Any]] = {}
        """The models of the store, by key."""
        self.loaded: Dict[str, Dict[str, Any]] = {}
        """The models in memory, by key."""

    def refresh(self) -> None:
        """Ask the server again.

        :raises ApiError: it gives no usable answer.
        """
        self.store = {key(entry["name"]): entry for entry in self.api.tags() if "name" in entry}
        self.loaded = {key(entry["name"]): entry for entry in self.api.loaded() if "name" in entry}

    def lines(self, declared: List[Dict[str, Any]]) -> List[str]:
        """A line for each declared model, for the diff."""
        lines = []
        for item in declared:
            entry = self.store.get(key(item["name"]))
            state = "absent" if entry is None else (entry.get("digest") or "created in this run")
            lines.append("%s: %s%s\n" % (item["name"], state, ", loaded" if key(item["name"]) in self.loaded else ""))
        return lines

    def stored_after(self, name: str) -> Dict[str, Any]:
        """The entry of a model that the server has just stored.

        :raises Failed: there is none.
        """
        self.refresh()
        found = self.store.get(key(name))
        if found is None:
            raise Failed("the server reported success, but its store has no such model")
        return found

    def note(self, item: Dict[str, Any], entry: Dict[str, Any], before: Optional[Dict[str, Any]], action: str) -> None:
        """Add an action to a model's result, if the model is another one than before."""
        if self.check_mode:
            self.store[key(item["name"])] = {"name": item["name"], "digest": None}
        now = self.store[key(item["name"])]
        if before is None or now.get("digest") is None or before.get("digest") != now.get("digest"):
            entry["actions"].append(action)

    def as_server_user(self, work: Callable[[], Any]) -> Any:
        """The result of work in the store, done with the rights of the server's process.

        :raises Failed: it takes too long.
        :raises OSError: the process ended, or may not do it.
        """
        from ..toolbox import users

        ids = users.STRANGERS  # a server that is known by its address alone may be anybody's
        if self.server.environ:
            ids = users.ids_of_process(int(self.system.show(self.server.unit).get("MainPID") or 0))
        return users.as_user(ids, work)

    def check_room(self, needed: int) -> None:
        """:raises Refused: these bytes would fill the disk of the store."""
        if not self.server.store or not needed:
            return
        folder = self.server.store
        while not os.path.isdir(folder) and folder != "/":
            folder = os.path.dirname(folder)
        try:
            status = os.statvfs(folder)
        except OSError:
            return
        free = status.f_bavail * status.f_frsize
        if free < needed + self.limits.margin:
            raise Refused(
                "needs %s on the disk of %s and must leave %s free (free_space_margin), but only %s are free; delete "
                "models, or move the store" % (gib(needed), folder, gib(self.limits.margin), gib(free))
            )


def succeeded(answer: Answer, failure: str) -> None:
    """:raises Failed: the server refused a request.

    :param failure: what failed, such as ``cannot be deleted``.
    """
    if answer.status not in (200, 201):
        raise Failed("%s: HTTP %d: %s" % (failure, answer.status, answer.error or "no reason given"))
