# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads models: whether one must be, from where, and what a run that was killed left of it."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional

from ..systemd.manager import ManagerError
from ..toolbox.errors import Failed
from . import names, registry
from .api import ApiError
from .catalog import Catalog, succeeded
from .pull import Progress, Pull
from .wanted import key

_WAIT = 24 * 3600.0  # seconds to wait for the pulls of other runs; one that stalls ends by itself
_UNVERIFIED = ".unverified"  # record of the blobs of a running pull; not a valid name of a model
_LENT = re.compile(r"[^/]+/gpufleet-[0-9a-f]{32}/")  # names by which seeding hosts have their models


class Puller:
    """Pulls models into the store of one server."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog, self.api = catalog, catalog.api
        self.manifests: Dict[str, Optional[registry.Manifest]] = {}

    def must_pull(self, item: Dict[str, Any]) -> bool:
        if item["state"] not in ("present", "loaded") or "copy_of" in item or "recipe" in item:
            return False
        stored = self.catalog.store.get(key(item["name"]))
        if stored is None:
            return True
        digest = str(stored.get("digest"))
        if "digest" in item:
            return not digest.startswith(item["digest"])
        if not self.catalog.params["update"]:
            return False
        offered = self._manifest(item)
        if offered is None:
            self.catalog.warn(
                "%s: the registry cannot be reached to check for an update; the model is kept as it is" % item["name"]
            )
        return offered is not None and offered.digest != digest

    def _source(self, item: Dict[str, Any]) -> str:
        """Its name at the registry or the mirror."""
        mirror = self.catalog.params["registry_mirror"]
        return names.at(mirror, item["name"]) if mirror else item["name"]

    def _manifest(self, item: Dict[str, Any]) -> Optional[registry.Manifest]:
        """The registry's manifest; None when it cannot be reached from here, as the server may still reach it."""
        if item["name"] not in self.manifests:
            try:
                self.manifests[item["name"]] = registry.manifest(
                    self._source(item), insecure=self.catalog.params["insecure"], environ=self.catalog.server.environ
                )
            except Failed:
                self.manifests[item["name"]] = None
        return self.manifests[item["name"]]

    def fetch(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        """Pull a model, from a host that seeds it or from the registry, unless another run has just done so."""
        before = self.catalog.store.get(key(item["name"]))
        if self.catalog.check_mode:
            self._from_registry(item, entry)
        else:
            progress = self._progress()

            def waiting(process: str) -> None:
                progress.report(item["name"], "waits for process %s of another run to pull" % process, 0, 0)

            with self._turn(_WAIT, waiting):
                if not self.must_pull(item):
                    return
                if not self._from_seed(item, entry):
                    self._from_registry(item, entry)
        self.catalog.note(item, entry, before, "pulled")

    def _from_registry(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        self._pull(item, self._source(item), self.catalog.params["insecure"], self._manifest(item))
        entry["pulled_from"] = names.full(self._source(item)).partition("/")[0]

    def _from_seed(self, item: Dict[str, Any], entry: Dict[str, Any]) -> bool:
        """Pull from a host that seeds the model; False, with a warning, where that fails."""
        known = self.manifests.get(item["name"])  # asked for by update
        for seed in self.catalog.params["seeds"] or ():
            offered = {key(name): digest for name, digest in seed["models"].items()}.get(key(item["name"]), "")
            if not offered or not offered.startswith(item.get("digest", "")) or (known and known.digest != offered):
                continue
            source = "%s/gpufleet-%s/%s:seed" % (seed["url"], seed["token"], offered)
            try:
                found = registry.manifest(source, insecure=True, environ={}, timeout=5)
                self._pull(dict(item, digest=offered), source, True, found)
            except (Failed, ApiError) as error:
                self.catalog.warn(
                    "%s: cannot be pulled from %s, so the registry is used: %s" % (item["name"], seed["url"], error)
                )
                self.catalog.refresh()
                continue
            entry["pulled_from"] = seed["url"].partition("//")[2]
            return True
        return False

    def _pull(self, item: Dict[str, Any], source: str, insecure: bool, offered: Optional[registry.Manifest]) -> None:
        """Pull from a source that may have the model by another name."""
        wanted = item.get("digest", "")
        if offered and not offered.digest.startswith(wanted):
            raise Failed("the registry offers digest %s; declared is %s" % (offered.digest, wanted))
        if offered:
            missing = {digest: size for digest, size in offered.layers.items() if not self.api.has_blob(digest[7:])}
            self.catalog.check_room(sum(missing.values()))
        if self.catalog.check_mode:
            return
        had, borrowed = key(source) in self.catalog.store, key(source) != key(item["name"])
        self.catalog.records.write(_UNVERIFIED, {"blobs": sorted(missing) if offered else []})
        try:
            Pull(
                self.api,
                item["name"],
                source=source,
                insecure=insecure,
                stall_timeout=self.catalog.limits.stall,
                finish_timeout=self.catalog.limits.timeout,
                expected=sum(offered.layers.values()) if offered else 0,
                room=self.catalog.check_room,
                progress=self._progress(),
            ).run()
        except BaseException:
            self._drop_unverified()
            raise
        self.catalog.records.forget(_UNVERIFIED)
        digest = str(self.catalog.stored_after(source).get("digest"))
        right = digest.startswith(wanted)
        if right and borrowed:
            succeeded(self.api.copy(names.full(source), item["full"]), "cannot be copied from %s" % source)
        if not had and (borrowed or not right):
            self.api.delete(names.full(source))
        self.catalog.refresh()
        if not right:
            raise Failed("was pulled with digest %s; declared is %s" % (digest, wanted))

    def _progress(self) -> Progress:
        return Progress(self.catalog.params["progress_file"] or None)

    def tidy(self) -> None:
        """Remove what a killed run left."""
        if self.catalog.records.read(_UNVERIFIED) or self._lent():
            try:
                with self._turn(0):
                    pass
            except ManagerError:
                pass  # it belongs to a run that is pulling now

    def _lent(self) -> List[str]:
        return [entry["name"] for entry in self.catalog.store.values() if _LENT.match(entry["name"])]

    @contextmanager
    def _turn(self, limit: float, waiting: Optional[Callable[[str], None]] = None) -> Iterator[None]:
        """Be the only run that pulls to this server; what an earlier one left is removed first.

        :raises ManagerError: another run pulls for longer than the limit, in seconds.
        """
        with self.catalog.system.lock("models-%s-%d" % (self.api.address, self.api.port), limit, waiting):
            self.catalog.refresh()
            self._drop_unverified()
            for name in self._lent():
                self.api.delete(names.full(name))
                del self.catalog.store[key(name)]
            yield

    def _drop_unverified(self) -> None:
        """Remove what a pull left that ended between download and check: the server would trust it."""
        digests, store = self.catalog.records.read(_UNVERIFIED).get("blobs") or (), self.catalog.server.store
        if digests and store:
            try:
                self.catalog.as_server_user(lambda: _remove_broken(store, digests))
            except (Failed, OSError):
                return  # the server has ended: the record is for the next run
        self.catalog.records.forget(_UNVERIFIED)


def _remove_broken(store: str, digests: List[str]) -> Iterator[None]:
    """Remove the blobs of a store whose content does not match their name."""
    from ..toolbox.files import chunks, follow

    for digest in digests:
        path = os.path.join(store, "blobs", digest.replace(":", "-"))
        try:
            found = hashlib.sha256()
            with follow(path) as file:
                for piece in chunks(file.read):
                    found.update(piece)
                    yield
            if found.hexdigest() != digest[7:]:
                os.unlink(path)
        except OSError:
            pass  # it is not there
