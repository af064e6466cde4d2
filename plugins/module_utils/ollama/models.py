# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models of one Ollama server, from the list that is declared to the memory that NVML shows."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import (
    gguf,
    modelfile,
    names,
    pull,
    registry,
    server,
    settings,
    sizing,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.api import Answer, ApiError, number
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.records import Records, fingerprint
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import ManagerError, System
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import unit_name
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.values import size

_GIB = float(1 << 30)
_MEMORY_DELAY = 3.0  # seconds that NVML may need to name a process
_UNLOADS = 20.0  # seconds that the worker of a large model may need to end; /api/ps does not answer meanwhile
_PULL = 24 * 3600.0  # seconds to wait for the pulls of other runs; one that stalls ends by itself
_UNVERIFIED = ".unverified"  # record of the blobs of a pull that runs; no model's name
_LENT = re.compile(r"[^/]+/gpufleet-[0-9a-f]{32}/")  # names by which seeding hosts have their models
_FOREVER_FROM = 2200  # year from which an expiry means never; the server says 2319


class Limits(NamedTuple):
    """Seconds, and the bytes to keep free on the disk."""

    timeout: float
    stall: float
    margin: int


def bring(
    params: Mapping[str, Any],
    check_mode: bool,
    warn: Callable[[str], None],
    system: Optional[Any] = None,
    gather: Optional[Callable[[], Dict[str, Any]]] = None,
) -> Dict[str, Any]:
    """Bring all models to their declared states, in their order.

    :param params: the module's parameters.
    :param check_mode: read and compare only.
    :param warn: called with each warning.
    :returns: the module's result.
    :raises Refused: a declaration is wrong, or there is no server; nothing was touched.
    :raises Failed: at one model; those before it are in their declared states.
    """
    unit = unit_name(params["name"])
    declared = [_checked(item) for item in params["models"]]
    _one_each(declared)
    margin = size(params["free_space_margin"], "free_space_margin")
    mirror = params["registry_mirror"]
    if mirror and not re.match(r"(http://)?[A-Za-z0-9_.-]+(:[0-9]+)?\Z", mirror):
        raise Refused("registry_mirror: %s; expected [http://]HOST[:PORT]" % mirror)
    if (mirror or "").startswith("http://") and not params["insecure"]:
        raise Refused("registry_mirror: %s has no TLS; expected insecure: true with it" % mirror)
    system = system or System()
    try:
        found = server.find(unit, params["host"], system)
    except Failed as error:
        if check_mode and params["host"] is None:  # what would start it may have been left out for the same reason
            return {"changed": bool(declared), "unit": unit, "models": [], "msg": "not compared: %s" % error}
        raise Refused(str(error)) from None

    run = _Run(
        found,
        system,
        params,
        Limits(float(params["timeout"]), float(params["stall_timeout"]), margin),
        check_mode,
        warn,
        gather or partial(gpu_facts.gather_for, params),
    )
    try:
        run.look()
        before = run.lines(declared)
        deferred = None if check_mode or not params["defer_pulls"] else run.deferred(declared)
        if deferred:
            return deferred
        if not check_mode:
            run.tidy()
    except ApiError as error:
        raise Refused("%s; expected Ollama's API at %s" % (error, found.api.url)) from None
    for item in declared:
        try:
            run.one(item)
        except (Refused, Failed, ApiError, OSError) as error:
            message = "%s: %s" % (item["name"], _without_name(str(error), item["name"]))
            raise Failed(message, run.result(before, declared)) from error
    return run.result(before, declared)


def _without_name(message: str, name: str) -> str:
    return message[len(name) + 2 :] if message.startswith(name + ": ") else message


def _checked(item: Mapping[str, Any]) -> Dict[str, Any]:
    """A declaration without what it leaves out, held to what Ollama understands."""
    found = {key: value for key, value in item.items() if value is not None}
    name = found["name"]
    try:
        found["full"] = names.full(name)
        if "copy_of" in found:
            names.full(found["copy_of"])
    except ValueError as error:
        raise Refused("models: %s" % error) from None
    sources = [key for key in ("from_file", "modelfile", "copy_of") if key in found]
    if len(sources) > 1:
        raise Refused("%s: %s are given; expected one of them at most" % (name, " and ".join(sources)))
    if found["state"] in ("absent", "unloaded") and (sources or "digest" in found):
        raise Refused("%s: %s means nothing with state %s" % (name, (sources + ["digest"])[0], found["state"]))
    if found["state"] != "loaded" and ("keep_alive" in found or "options" in found):
        raise Refused("%s: keep_alive and options mean something with state loaded only" % name)
    if "digest" in found:
        found["digest"] = found["digest"].lower().replace("sha256:", "", 1)
        if not re.match(r"[0-9a-f]{12,64}\Z", found["digest"]):
            raise Refused(
                "%s: digest %s; expected 12 to 64 hexadecimal digits, as `ollama list` shows them"
                % (name, found["digest"])
            )
    if "keep_alive" in found:
        try:
            settings.keep_alive(found["keep_alive"])
        except ValueError as error:
            raise Refused("%s: keep_alive: %s" % (name, error)) from None
    if "from_file" in found:
        found["recipe"] = modelfile.Modelfile(found["from_file"], {})
        if not found["recipe"].from_file:
            raise Refused("%s: from_file %s; expected an absolute path on the host" % (name, found["from_file"]))
    elif "modelfile" in found:
        try:
            found["recipe"] = modelfile.parse(found["modelfile"])
        except Refused as error:
            raise Refused("%s: modelfile: %s" % (name, error)) from None
    return found


def _one_each(declared: List[Dict[str, Any]]) -> None:
    seen = set()
    for item in declared:
        if item["full"].lower() in seen:
            raise Refused("%s: is declared twice; expected each model once" % item["name"])
        seen.add(item["full"].lower())


class _Run:
    def __init__(
        self,
        found: server.Server,
        system: Any,
        params: Mapping[str, Any],
        limits: Limits,
        check_mode: bool,
        warn: Callable[[str], None],
        gather: Callable[[], Dict[str, Any]],
    ) -> None:
        self.server, self.api, self.system, self.params, self.limits = found, found.api, system, params, limits
        self.check_mode, self.warn, self.gather = check_mode, warn, gather
        self.records = Records("%s:%d" % (self.api.address, self.api.port))
        self.store = {}  # type: Dict[str, Dict[str, Any]]
        self.loaded = {}  # type: Dict[str, Dict[str, Any]]
        self.results = []  # type: List[Dict[str, Any]]
        self.manifests = {}  # type: Dict[str, Optional[registry.Manifest]]

    # --- what there is

    def look(self) -> None:
        """The models of the store and those in memory, by full name in small letters."""
        self.store = {_key(entry["name"]): entry for entry in self.api.tags() if "name" in entry}
        self.loaded = {_key(entry["name"]): entry for entry in self.api.loaded() if "name" in entry}

    def lines(self, declared: List[Dict[str, Any]]) -> List[str]:
        """A line for each declared model, for the diff."""
        found = []
        for item in declared:
            entry = self.store.get(_key(item["name"]))
            state = "absent" if entry is None else (entry.get("digest") or "made in this run")
            resident = self.loaded.get(_key(item["name"]))
            found.append("%s: %s%s\n" % (item["name"], state, ", loaded" if resident else ""))
        return found

    def result(self, before: List[str], declared: List[Dict[str, Any]]) -> Dict[str, Any]:
        changed = [entry for entry in self.results if entry["changed"]]
        would = "would be " if self.check_mode else ""
        told = ["%s %s%s" % (entry["name"], would, " and ".join(entry["actions"])) for entry in changed]
        rest = len(self.results) - len(changed)
        if rest:
            told.append("%d as declared" % rest)
        return {
            "changed": bool(changed),
            "unit": self.server.unit,
            "models": self.results,
            "msg": "; ".join(told) or "nothing declared",
            "diff": {"before": "".join(before), "after": "".join(self.lines(declared))},
        }

    def deferred(self, declared: List[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
        """The result that only names what must be pulled; None when nothing must."""
        needed = {item["name"]: item for item in declared if self.must_pull(item)}
        if not needed:
            return None
        stored = {item["name"]: self.store.get(_key(item["name"])) for item in declared if item["name"] not in needed}
        return {
            "changed": False,
            "msg": "to be pulled: %s" % ", ".join(needed),
            "unit": self.server.unit,
            "needs": [
                "%s@sha256:%s" % (name, item["digest"]) if "digest" in item else name for name, item in needed.items()
            ],
            "models": [{"name": name, "digest": entry.get("digest")} for name, entry in stored.items() if entry],
        }

    def tidy(self) -> None:
        """Take away what a run that was killed has left."""
        if self.records.read(_UNVERIFIED) or self._lent():
            try:
                with self._turn(0):
                    pass
            except ManagerError:
                pass  # it belongs to a run that pulls now

    def _lent(self) -> List[str]:
        return [entry["name"] for entry in self.store.values() if _LENT.match(entry["name"])]

    @contextmanager
    def _turn(self, limit: float, waiting: Optional[Callable[[str], None]] = None) -> Iterator[None]:
        """Be the only run that pulls to this server; what a former one has left by its end is taken away first.

        :raises ManagerError: another run pulls for longer than the limit, in seconds.
        """
        with self.system.lock("models-%s-%d" % (self.api.address, self.api.port), limit, waiting):
            self.look()
            self._drop_unverified()
            for name in self._lent():
                self.api.delete(names.full(name))
                del self.store[_key(name)]
            yield

    # --- one model

    def one(self, item: Dict[str, Any]) -> None:
        entry = {"name": item["name"], "state": item["state"], "changed": False, "actions": []}  # type: Dict[str, Any]
        self.results.append(entry)
        try:
            if item["state"] == "absent":
                self._absent(item, entry)
            elif item["state"] == "unloaded":
                self._unload(item, entry)
            else:
                self._present(item, entry)
                if item["state"] == "loaded":
                    self._load(item, entry)
        finally:
            stored = self.store.get(_key(item["name"])) or {}
            entry["changed"] = bool(entry["actions"])
            entry["digest"], entry["size_bytes"] = stored.get("digest"), stored.get("size")
            entry["loaded"] = _key(item["name"]) in self.loaded

    def _absent(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        if _key(item["name"]) not in self.store:
            return
        self._unload(item, entry)  # the server would go on serving a deleted model
        if not self.check_mode:
            _succeeded(self.api.delete(item["full"]), "cannot be deleted")
            self.records.forget(item["full"])
        entry["actions"].append("deleted")
        del self.store[_key(item["name"])]

    def _unload(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        if _key(item["name"]) not in self.loaded:
            return
        if not self.check_mode:
            _succeeded(self.api.unload(item["full"]), "cannot be unloaded")
            until = time.monotonic() + _UNLOADS
            while any(_key(str(one.get("name"))) == _key(item["name"]) for one in self.api.loaded(_UNLOADS)):
                if time.monotonic() > until:
                    raise Failed("is still loaded after it was asked to go: a request keeps it busy; try again")
                # the server answers before the model is gone, and sends no word
                time.sleep(0.05)
        entry["actions"].append("unloaded")
        del self.loaded[_key(item["name"])]

    # --- present

    def _present(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        if "copy_of" in item:
            self._copied(item, entry)
        elif "recipe" in item:
            self._created(item, entry)
        elif self.must_pull(item):
            self._pulled(item, entry)
        digest = (self.store.get(_key(item["name"])) or {}).get("digest")
        if "digest" in item and digest and not digest.startswith(item["digest"]):
            raise Failed("has digest %s; declared is %s" % (digest, item["digest"]))

    def must_pull(self, item: Dict[str, Any]) -> bool:
        if item["state"] not in ("present", "loaded") or "copy_of" in item or "recipe" in item:
            return False
        stored = self.store.get(_key(item["name"]))
        if stored is None:
            return True
        digest = str(stored.get("digest"))
        if "digest" in item:
            return not digest.startswith(item["digest"])
        if not self.params["update"]:
            return False
        offered = self._manifest(item)
        if offered is None:
            self.warn("%s: the registry cannot be asked whether it has a newer one; it stays as it is" % item["name"])
        return offered is not None and offered.digest != digest

    def _source(self, item: Dict[str, Any]) -> str:
        """The name by which the registry, or its mirror, has it."""
        mirror = self.params["registry_mirror"]
        return names.at(mirror, item["name"]) if mirror else item["name"]

    def _manifest(self, item: Dict[str, Any]) -> Optional[registry.Manifest]:
        """What the registry offers; None when it cannot be asked: then the server may still reach it."""
        if item["name"] not in self.manifests:
            try:
                self.manifests[item["name"]] = registry.manifest(
                    self._source(item), insecure=self.params["insecure"], environ=self.server.environ
                )
            except Failed:
                self.manifests[item["name"]] = None
        return self.manifests[item["name"]]

    def _pulled(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        """From a host that has it where one is named, else from the registry; unless another run has just done so."""
        former = self.store.get(_key(item["name"]))
        if self.check_mode:
            self._from_registry(item, entry)
        else:
            progress = self._progress()

            def waiting(process: str) -> None:
                progress.tell(item["name"], "waits for process %s, of another run, to pull" % process, 0, 0)

            with self._turn(_PULL, waiting):
                if not self.must_pull(item):
                    return
                if not self._from_seed(item, entry):
                    self._from_registry(item, entry)
        self._made(item, entry, former, "pulled")

    def _from_registry(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        self._pull(item, self._source(item), self.params["insecure"], self._manifest(item))
        entry["pulled_from"] = names.full(self._source(item)).partition("/")[0]

    def _from_seed(self, item: Dict[str, Any], entry: Dict[str, Any]) -> bool:
        """From a host that seeds it; False, with a warning, where one is named and does not give it."""
        known = self.manifests.get(item["name"])  # asked for by update
        for seed in self.params["seeds"] or ():
            offered = {_key(name): digest for name, digest in seed["models"].items()}.get(_key(item["name"]), "")
            if not offered or not offered.startswith(item.get("digest", "")) or (known and known.digest != offered):
                continue
            source = "%s/gpufleet-%s/%s:seed" % (seed["url"], seed["token"], offered)
            try:
                found = registry.manifest(source, insecure=True, environ={}, timeout=5)
                self._pull(dict(item, digest=offered), source, True, found)
            except (Failed, ApiError) as error:
                self.warn(
                    "%s: cannot be had from %s, so the registry is asked: %s" % (item["name"], seed["url"], error)
                )
                self.look()
                continue
            entry["pulled_from"] = seed["url"].partition("//")[2]
            return True
        return False

    def _pull(self, item: Dict[str, Any], source: str, insecure: bool, offered: Optional[registry.Manifest]) -> None:
        """Pull it from a source that may have it by another name."""
        wanted = item.get("digest", "")
        if offered and not offered.digest.startswith(wanted):
            raise Failed("the registry offers digest %s; declared is %s" % (offered.digest, wanted))
        if offered:
            missing = {digest: size for digest, size in offered.layers.items() if not self.api.has_blob(digest[7:])}
            self._room(sum(missing.values()))
        if self.check_mode:
            return
        had, borrowed = _key(source) in self.store, _key(source) != _key(item["name"])
        self.records.write(_UNVERIFIED, {"blobs": sorted(missing) if offered else []})
        try:
            pull.pull(
                self.api,
                item["name"],
                source=source,
                insecure=insecure,
                stall_timeout=self.limits.stall,
                finish_timeout=self.limits.timeout,
                expected=sum(offered.layers.values()) if offered else 0,
                room=self._room,
                progress=self._progress(),
            )
        except BaseException:
            self._drop_unverified()
            raise
        self.records.forget(_UNVERIFIED)
        digest = str(self._stored_after(source).get("digest"))
        right = digest.startswith(wanted)
        if right and borrowed:
            _succeeded(self.api.copy(names.full(source), item["full"]), "cannot be taken from %s" % source)
        if not had and (borrowed or not right):
            self.api.delete(names.full(source))
        self.look()
        if not right:
            raise Failed("was pulled with digest %s; declared is %s" % (digest, wanted))

    def _progress(self) -> pull.Progress:
        return pull.Progress(self.params["progress_file"] or None)

    def _drop_unverified(self) -> None:
        """Remove what a pull that ended between download and check has left: the server would take it as good."""
        digests, store = self.records.read(_UNVERIFIED).get("blobs") or (), self.server.store
        if digests and store:
            try:
                self._as_its_user(lambda: _remove_broken(store, digests))
            except (Failed, OSError):
                return  # the server has ended: the record is for the next run
        self.records.forget(_UNVERIFIED)

    def _as_its_user(self, work: Callable[[], Any]) -> Any:
        """The result of work in the store, done with the rights of the server's process.

        :raises Failed: it takes too long.
        :raises OSError: the process ended, or may not do it.
        """
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import users

        ids = users.STRANGERS  # a server that is known by its address alone may be anybody's
        if self.server.environ:
            ids = users.ids_of_process(int(self.system.show(self.server.unit).get("MainPID") or 0))
        return users.as_user(ids, work)

    def _room(self, needed: int) -> None:
        """Refuse what would fill the disk of the store."""
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
                "needs %.1f GiB on the disk of %s, and %.1f GiB shall stay free (free_space_margin), but only %.1f GiB "
                "are free; delete models, or move the store"
                % (needed / _GIB, folder, self.limits.margin / _GIB, free / _GIB)
            )

    def _copied(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        former, source = self.store.get(_key(item["name"])), self.store.get(_key(item["copy_of"]))
        if source is None:
            raise Failed("copy_of %s: the store has no such model; declare it before its copy" % item["copy_of"])
        if former and source.get("digest") and former.get("digest") == source["digest"]:
            return
        if not self.check_mode:
            _succeeded(self.api.copy(names.full(item["copy_of"]), item["full"]), "cannot be copied")
            self._stored_after(item["name"])
        self._made(item, entry, former, "copied")

    def _created(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        recipe, former = item["recipe"], self.store.get(_key(item["name"]))
        record = self.records.read(item["full"])
        body, source = dict(recipe.body), {}  # type: Dict[str, Any], Dict[str, Any]
        if recipe.from_file:
            try:
                source = fingerprint(recipe.source, record.get("file") or {})
            except OSError as error:
                raise Failed("%s: %s; expected a GGUF file on this host" % (recipe.source, error.strerror)) from None
            body["files"] = {os.path.basename(recipe.source): "sha256:" + source["sha256"]}
            told = dict(body)
        else:
            base = self.store.get(_key(recipe.source))
            if base is None:
                raise Failed("FROM %s: the store has no such model; declare it before" % recipe.source)
            body["from"] = recipe.source
            told = dict(body, digest=base.get("digest"))
        request = hashlib.sha256(json.dumps(told, sort_keys=True).encode("utf-8")).hexdigest()
        if former and record.get("request") == request and record.get("digest") == former.get("digest"):
            return
        if recipe.from_file:
            from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.files import follow

            with follow(recipe.source) as file:
                try:
                    gguf.read(file)
                except ValueError as error:
                    raise Failed("%s %s" % (recipe.source, error)) from None
                if not self.check_mode:
                    self._uploaded(source, file)
        if not self.check_mode:
            self._build(item, body)
            made = self._stored_after(item["name"])
            self.records.write(item["full"], {"request": request, "file": source, "digest": made.get("digest")})
        self._made(item, entry, former, "created")

    def _uploaded(self, source: Dict[str, Any], file: Any) -> None:
        there = self.api.has_blob(source["sha256"])
        self._room(source["size"] * (1 if there else 2))  # as it is, and as the server rewrites it
        if not there:
            file.seek(0)
            _succeeded(self.api.upload(source["sha256"], file, self.limits.timeout), "the file cannot be uploaded")

    def _build(self, item: Dict[str, Any], body: Dict[str, Any]) -> None:
        status = ""
        for event in self.api.events("/api/create", dict(body, model=item["full"]), lambda: self.limits.timeout):
            if "error" in event:
                raise Failed("cannot be created: %s" % event["error"])
            status = str(event.get("status", ""))
        if status != "success":
            raise Failed("cannot be created: the server ended at %r, without success" % status)

    def _stored_after(self, name: str) -> Dict[str, Any]:
        self.look()
        found = self.store.get(_key(name))
        if found is None:
            raise Failed("the server reported success, but its store has no such model")
        return found

    def _made(self, item: Dict[str, Any], entry: Dict[str, Any], former: Optional[Dict[str, Any]], action: str) -> None:
        if self.check_mode:
            self.store[_key(item["name"])] = {"name": item["name"], "digest": None}
        now = self.store[_key(item["name"])]
        if former is None or now.get("digest") is None or former.get("digest") != now.get("digest"):
            entry["actions"].append(action)

    # --- loaded

    def _load(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        if self.check_mode and not (self.store.get(_key(item["name"])) or {}).get("digest"):
            entry["actions"].append("loaded")
            return
        shown = self.api.show(item["full"])
        _succeeded(shown, "cannot be shown")
        facts = self.gather()
        blob = _weights(shown)
        resident = self.loaded.get(_key(item["name"]))
        reason = self._why_load(item, resident, shown, facts, blob)
        if reason is None:
            self._report(entry, resident or {}, facts, blob)
            return
        entry["reason"] = reason
        if self.params["fit"] != "ignore" and (item.get("options") or {}).get("num_gpu") != 0:
            entry["estimate"] = self._estimate(item, shown, facts, blob)
        if not self.check_mode:
            resident = self._loaded_now(item, shown)
            self._proven(item, entry, resident, blob)
            self.look()
        else:
            self.loaded[_key(item["name"])] = {"name": item["name"]}
        entry["actions"].append("loaded")

    def _why_load(
        self, item: Dict[str, Any], resident: Optional[Dict[str, Any]], shown: Answer, facts: Dict[str, Any], blob: str
    ) -> Optional[str]:
        if resident is None:
            return "is not loaded"
        wanted, has = (item.get("options") or {}).get("num_ctx"), resident.get("context_length")
        # the server gives no more than the model was trained with
        if wanted and has and has != int(wanted) and not has == _trained(shown) < int(wanted):
            return "is loaded with a context of %d, declared is %d" % (has, int(wanted))
        if str(item.get("keep_alive", "")).startswith("-") and not _stays(resident):
            return "would be unloaded at %s" % resident.get("expires_at")
        return self._dead(resident, facts, blob)

    def _dead(self, resident: Dict[str, Any], facts: Dict[str, Any], blob: str) -> Optional[str]:
        """Why the server's word is not true: it goes on naming a model whose worker is gone."""
        claimed = int(resident.get("size_vram") or 0)
        if not claimed or facts["source"] not in ("nvml", "nvidia-smi") or not self.server.environ:
            return None
        held, told = server.held_by_worker(facts, self.server.unit, blob)
        if not told or sum(held.values()) >= claimed:
            return None
        return "its worker is dead: the server says that it holds %.1f GiB of GPU memory, NVML shows %.1f GiB" % (
            claimed / _GIB,
            sum(held.values()) / _GIB,
        )

    def _estimate(
        self, item: Dict[str, Any], shown: Answer, facts: Dict[str, Any], blob: str
    ) -> Optional[Dict[str, Any]]:
        """What the load will take; refused or warned of when the GPUs have not so much free."""
        if not facts["count"]:
            return None
        try:
            devices = self.server.devices(facts)
            header = self._header(_weights_path(shown))
        except (Failed, OSError, ValueError) as error:
            self.warn("%s: its need of GPU memory cannot be estimated: %s" % (item["name"], error))
            return None
        free = [int(device["memory"]["free_bytes"] or 0) for device in devices]
        total = sum(int(device["memory"]["total_bytes"] or 0) for device in devices)
        contexts = self._contexts(item, shown, header, total)

        def estimate(room: List[int]) -> sizing.Estimate:
            return sizing.estimate(
                header,
                room,
                contexts,
                parallel=self.server.parallel,
                spread=self.server.spread,
                cache_type=self.server.cache_type,
                flash_attention=self.server.flash_attention,
            )

        # what this model holds itself goes when it is loaded anew
        own = server.held_by_worker(facts, self.server.unit, blob)[0]
        free = [room + own.get(device["uuid"], 0) for room, device in zip(free, devices)]
        found = estimate(free)
        others = [_held(device, self.server.unit) - own.get(device["uuid"], 0) for device in devices]
        if not found.fits and any(others):
            emptied = estimate([room + other for room, other in zip(free, others)])
            if emptied.fits:
                self.warn("%s: fits only when Ollama unloads models that are loaded now" % item["name"])
                found = emptied
        if not found.fits:
            self._does_not_fit(item, header, found, free)
        return sizing.describe(found, [device["index"] for device in devices])

    def _header(self, path: str) -> gguf.Header:
        """The header of a file of weights, of which the server says where it lies."""
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.files import follow

        def read() -> gguf.Header:
            with follow(path) as file:
                return gguf.read(file)

        fields = self._as_its_user(read)
        return gguf.Header._make(tuple(field) if isinstance(field, list) else field for field in fields)

    def _does_not_fit(self, item: Dict[str, Any], header: gguf.Header, found: sizing.Estimate, free: List[int]) -> None:
        message = (
            sizing.shortage(header, found, free)
            + ". Free GPU memory, shorten options.num_ctx, or load it with fit: warn, partly on the CPU"
        )
        if self.params["fit"] == "refuse":
            raise Refused(message)
        self.warn("%s: %s" % (item["name"], message))

    def _contexts(self, item: Dict[str, Any], shown: Answer, header: gguf.Header, total: int) -> List[int]:
        """Tokens of context, by the order in which Ollama looks: request, model, server, GPU memory."""
        own = re.search(r"^num_ctx\s+([0-9]+)\s*$", str(shown.body.get("parameters") or ""), re.MULTILINE)
        wanted = int((item.get("options") or {}).get("num_ctx") or 0)
        return sizing.contexts(wanted or (int(own.group(1)) if own else 0) or self.server.context, header, total)

    def _loaded_now(self, item: Dict[str, Any], shown: Answer) -> Dict[str, Any]:
        capabilities = shown.body.get("capabilities") or ()
        more = {}  # type: Dict[str, Any]
        if "keep_alive" in item:
            written = str(item["keep_alive"])
            more["keep_alive"] = int(written) if re.match(r"[+-]?[0-9]+\Z", written) else written
        if "options" in item:
            more["options"] = item["options"]
        embedding = "embedding" in capabilities and "completion" not in capabilities
        answer = self.api.load(item["full"], self.limits.timeout, embedding, **more)
        if answer.status == 200 and not embedding and answer.body.get("done") is not True:
            raise Failed("cannot be loaded: HTTP 200, but done is %s" % answer.body.get("done"))
        _succeeded(answer, "cannot be loaded")
        self.look()
        resident = self.loaded.get(_key(item["name"]))
        if resident is None:
            raise Failed(
                "was loaded, and is gone again: /api/ps does not name it; keep_alive %s, or other models need its room"
                % item.get("keep_alive", "of the server")
            )
        return resident

    def _proven(self, item: Dict[str, Any], entry: Dict[str, Any], resident: Dict[str, Any], blob: str) -> None:
        """The memory is truly there, and all of it on the GPUs."""
        until = time.monotonic() + _MEMORY_DELAY
        while True:
            facts = self.gather()
            dead = self._dead(resident, facts, blob)
            if dead is None:
                break
            if time.monotonic() >= until:
                raise Failed("was loaded, but " + dead)
            # NVML names a process some time after it took memory, and sends no word
            time.sleep(0.1)
        self._report(entry, resident, facts, blob)
        size, on_gpu = int(resident.get("size") or 0), int(resident.get("size_vram") or 0)
        asked = (item.get("options") or {}).get("num_gpu") is not None
        if not facts["count"] or on_gpu >= size or asked or self.params["fit"] == "ignore":
            return
        message = "has %.1f of its %.1f GiB on GPUs, the rest runs on the CPU" % (on_gpu / _GIB, size / _GIB)
        if self.params["fit"] == "refuse":
            self.api.unload(item["full"])
            raise Failed(message + "; it was unloaded again (fit: refuse)")
        self.warn("%s: %s" % (item["name"], message))

    def _report(self, entry: Dict[str, Any], resident: Dict[str, Any], facts: Dict[str, Any], blob: str) -> None:
        """The engine's own figures and NVML's beside the estimate."""
        held = server.held_by_worker(facts, self.server.unit, blob)[0]
        entry["reported"] = {
            "size_bytes": resident.get("size"),
            "size_vram_bytes": resident.get("size_vram"),
            "context": resident.get("context_length"),
            "expires_at": resident.get("expires_at"),
        }
        entry["held_bytes"] = {
            str(device["index"]): held[device["uuid"]] for device in facts["devices"] if device["uuid"] in held
        }
        estimate = entry.get("estimate")
        if estimate and estimate["held_bytes"] and held:
            entry["ratio"] = round(sum(held.values()) / float(estimate["held_bytes"]), 3)


def _remove_broken(store: str, digests: List[str]) -> Iterator[None]:
    """Remove the blobs of a store whose content is not what their name says."""
    from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.files import chunks, follow

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


def _key(name: str) -> str:
    """One model by any of its names; the server ignores case."""
    return names.full(name).lower()


def _succeeded(answer: Answer, what: str) -> None:
    if answer.status not in (200, 201):
        raise Failed("%s: HTTP %d: %s" % (what, answer.status, answer.error or "no reason given"))


def _weights_path(shown: Answer) -> str:
    """The file of the weights, as the server's own Modelfile has it."""
    found = re.search(r"^FROM (/.*)$", str(shown.body.get("modelfile") or ""), re.MULTILINE)
    if not found:
        raise ValueError("the server does not say where its weights lie")
    return found.group(1).strip()


def _weights(shown: Answer) -> str:
    try:
        return os.path.basename(_weights_path(shown))
    except ValueError:
        return ""


def _trained(shown: Answer) -> int:
    """Tokens of context that a model was trained with; 0 when the server does not say."""
    known = shown.body.get("model_info")
    items = known.items() if isinstance(known, dict) else ()
    return next((number(value) for key, value in items if key.endswith(".context_length")), 0)


def _held(device: Dict[str, Any], unit: str) -> int:
    return sum(process["used_bytes"] or 0 for process in device["processes"] or () if process["unit"] == unit)


def _stays(resident: Dict[str, Any]) -> bool:
    year = str(resident.get("expires_at") or "")[:4]
    return year.isdigit() and int(year) >= _FOREVER_FROM
