# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models of one Ollama server, from the declared list to the memory that NVML shows."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional

from ..gpu import facts as gpu_facts
from ..systemd.manager import System
from ..systemd.unit import unit_name
from ..toolbox.errors import Failed, Refused
from ..toolbox.values import size
from . import server, wanted
from .api import ApiError
from .catalog import Catalog, Limits, succeeded
from .creator import Creator
from .loader import Loader
from .puller import Puller
from .wanted import key


def converge(
    params: Mapping[str, Any],
    check_mode: bool,
    warn: Callable[[str], None],
    system: Optional[Any] = None,
    gather: Optional[Callable[[], Dict[str, Any]]] = None,
) -> Dict[str, Any]:
    """Converge all models to their declared states, in their order.

    :param params: the module's parameters.
    :param check_mode: read and compare only.
    :param warn: called with each warning.
    :returns: the module's result.
    :raises Refused: a declaration is wrong, or there is no server; nothing was changed.
    :raises Failed: at one model; those before it are in their declared states.
    """
    unit, declared = unit_name(params["name"]), wanted.read(params["models"])
    margin = size(params["free_space_margin"], "free_space_margin")
    if params["registry_mirror"]:
        wanted.check_mirror(params["registry_mirror"], params["insecure"])
    system = system or System()
    try:
        found = server.find(unit, params["host"], system)
    except Failed as error:
        if check_mode and params["host"] is None:  # what would start it may have been skipped in check mode, too
            said = "not compared, as %s does not run yet: %s" % (unit, ", ".join(item["name"] for item in declared))
            return {"changed": bool(declared), "unit": unit, "models": [], "msg": said}
        raise Refused(str(error)) from None
    limits = Limits(float(params["timeout"]), float(params["stall_timeout"]), margin)
    catalog = Catalog(found, system, params, limits, check_mode, warn)
    run = _Run(catalog, declared, gather or partial(gpu_facts.gather_for, params["facts_timeout"]))
    try:
        run.begin()
        deferred = run.deferred() if params["defer_downloads"] and not check_mode else None
        if deferred:
            return deferred
        if not check_mode:
            run.puller.tidy()
    except ApiError as error:
        raise Refused("%s; expected Ollama's API at %s" % (error, found.api.url)) from None
    for item in declared:
        try:
            run.one(item)
        except (Refused, Failed, ApiError, OSError) as error:
            message = "%s: %s" % (item["name"], _without_name(str(error), item["name"]))
            raise Failed(message, run.result()) from error
    return run.result()


def _without_name(message: str, name: str) -> str:
    return message[len(name) + 2 :] if message.startswith(name + ": ") else message


class _Run:
    """One run over the declared models."""

    def __init__(self, catalog: Catalog, declared: List[Dict[str, Any]], gather: Callable[[], Dict[str, Any]]) -> None:
        self.catalog, self.declared = catalog, declared
        self.puller, self.creator, self.loader = Puller(catalog), Creator(catalog), Loader(catalog, gather)
        self.before: List[str] = []
        self.results: List[Dict[str, Any]] = []

    def begin(self) -> None:
        """Ask the server what it has.

        :raises ApiError: it gives no usable answer.
        """
        self.catalog.refresh()
        self.before = self.catalog.lines(self.declared)

    def result(self) -> Dict[str, Any]:
        changed = [entry for entry in self.results if entry["changed"]]
        would = "would be " if self.catalog.check_mode else ""
        parts = ["%s %s%s" % (entry["name"], would, " and ".join(entry["actions"])) for entry in changed]
        unchanged = len(self.results) - len(changed)
        if unchanged:
            parts.append("%d unchanged" % unchanged)
        return {
            "changed": bool(changed),
            "unit": self.catalog.server.unit,
            "models": self.results,
            "msg": "; ".join(parts) or "no model is declared",
            "diff": {"before": "".join(self.before), "after": "".join(self.catalog.lines(self.declared))},
        }

    def deferred(self) -> Optional[Dict[str, Any]]:
        """The result that only names what must be pulled; None when nothing must."""
        needed = {item["name"]: item for item in self.declared if self.puller.must_pull(item)}
        if not needed:
            return None
        stored = {
            item["name"]: self.catalog.store.get(key(item["name"]))
            for item in self.declared
            if item["name"] not in needed
        }
        return {
            "changed": False,
            "msg": "to be pulled: %s" % ", ".join(needed),
            "unit": self.catalog.server.unit,
            "needs": [
                "%s@sha256:%s" % (name, item["digest"]) if "digest" in item else name for name, item in needed.items()
            ],
            "models": [{"name": name, "digest": entry.get("digest")} for name, entry in stored.items() if entry],
        }

    def one(self, item: Dict[str, Any]) -> None:
        entry: Dict[str, Any] = {"name": item["name"], "state": item["state"], "changed": False, "actions": []}
        self.results.append(entry)
        try:
            if item["state"] == "absent":
                self._absent(item, entry)
            elif item["state"] == "unloaded":
                self.loader.unload(item, entry)
            else:
                self._present(item, entry)
                if item["state"] == "loaded":
                    self.loader.load(item, entry)
        finally:
            stored = self.catalog.store.get(key(item["name"])) or {}
            entry["changed"] = bool(entry["actions"])
            entry["digest"], entry["size_bytes"] = stored.get("digest"), stored.get("size")
            entry["loaded"] = key(item["name"]) in self.catalog.loaded

    def _absent(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        if key(item["name"]) not in self.catalog.store:
            return
        self.loader.unload(item, entry)  # the server would keep serving a deleted model
        if not self.catalog.check_mode:
            succeeded(self.catalog.api.delete(item["full"]), "cannot be deleted")
            self.catalog.records.forget(item["full"])
        entry["actions"].append("deleted")
        del self.catalog.store[key(item["name"])]

    def _present(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        if "copy_of" in item:
            self.creator.copy(item, entry)
        elif "recipe" in item:
            self.creator.create(item, entry)
        elif self.puller.must_pull(item):
            self.puller.fetch(item, entry)
        digest = (self.catalog.store.get(key(item["name"])) or {}).get("digest")
        if "digest" in item and digest and not digest.startswith(item["digest"]):
            raise Failed("has digest %s; declared is %s" % (digest, item["digest"]))
