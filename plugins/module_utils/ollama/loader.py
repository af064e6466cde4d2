# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads models, and proves from NVML that they are on the GPUs; unloads them."""

from __future__ import annotations

import os
import re
import time
from typing import Any, Callable, Dict, List, Optional

from ..toolbox.errors import Failed, Refused
from . import gguf, server, sizing
from .api import Answer, number
from .catalog import Catalog, succeeded
from .wanted import key

_GIB = float(1 << 30)
_MEMORY_DELAY = 3.0  # seconds that NVML may need to name a process
_UNLOADS = 20.0  # seconds that the worker of a large model may need to end; /api/ps does not answer meanwhile
_NEVER_FROM = 2200  # year from which an expiry means never; the server uses 2319


class Loader:
    """Loads and unloads models of one server.

    :param gather: reads the facts of the host's GPUs.
    """

    def __init__(self, catalog: Catalog, gather: Callable[[], Dict[str, Any]]) -> None:
        self.catalog, self.api, self.gather = catalog, catalog.api, gather

    def unload(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        if key(item["name"]) not in self.catalog.loaded:
            return
        if not self.catalog.check_mode:
            succeeded(self.api.unload(item["full"]), "cannot be unloaded")
            until = time.monotonic() + _UNLOADS
            while any(key(str(one.get("name"))) == key(item["name"]) for one in self.api.loaded(_UNLOADS)):
                if time.monotonic() > until:
                    raise Failed("is still loaded after the request to unload it: a request keeps it busy; try again")
                # the server answers before the model is gone, and sends no word
                time.sleep(0.05)
        entry["actions"].append("unloaded")
        del self.catalog.loaded[key(item["name"])]

    def load(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        if self.catalog.check_mode and not (self.catalog.store.get(key(item["name"])) or {}).get("digest"):
            entry["actions"].append("loaded")
            return
        shown = self.api.show(item["full"])
        succeeded(shown, "cannot be shown")
        facts = self.gather()
        blob = _weights(shown)
        resident = self.catalog.loaded.get(key(item["name"]))
        reason = self._why_load(item, resident, shown, facts, blob)
        if reason is None:
            self._report(entry, resident or {}, facts, blob)
            return
        entry["reason"] = reason
        if self.catalog.params["fit"] != "ignore" and (item.get("options") or {}).get("num_gpu") != 0:
            entry["estimate"] = self._estimate(item, shown, facts, blob)
        if not self.catalog.check_mode:
            resident = self._loaded_now(item, shown)
            self._prove(item, entry, resident, blob)
            self.catalog.refresh()
        else:
            self.catalog.loaded[key(item["name"])] = {"name": item["name"]}
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
        """Why the server's report is not true: it keeps listing a model whose worker is gone."""
        claimed = int(resident.get("size_vram") or 0)
        if not claimed or facts["source"] not in ("nvml", "nvidia-smi") or not self.catalog.server.environ:
            return None
        held, told = server.held_by_worker(facts, self.catalog.server.unit, blob)
        if not told or sum(held.values()) >= claimed:
            return None
        return "its worker is dead: the server reports that it holds %.1f GiB of GPU memory, NVML shows %.1f GiB" % (
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
            devices = self.catalog.server.devices(facts)
            header = self._header(_weights_path(shown))
        except (Failed, OSError, ValueError) as error:
            self.catalog.warn("%s: its need of GPU memory cannot be estimated: %s" % (item["name"], error))
            return None
        free = [int(device["memory"]["free_bytes"] or 0) for device in devices]
        total = sum(int(device["memory"]["total_bytes"] or 0) for device in devices)
        contexts = self._contexts(item, shown, header, total)

        def estimate(room: List[int]) -> sizing.Estimate:
            return sizing.estimate(header, room, contexts, sizing.Serving(*self.catalog.server.serving))

        # what this model itself holds is freed when it is loaded again
        own = server.held_by_worker(facts, self.catalog.server.unit, blob)[0]
        free = [room + own.get(device["uuid"], 0) for room, device in zip(free, devices)]
        found = estimate(free)
        others = [_held(device, self.catalog.server.unit) - own.get(device["uuid"], 0) for device in devices]
        if not found.fits and any(others):
            emptied = estimate([room + other for room, other in zip(free, others)])
            if emptied.fits:
                self.catalog.warn("%s: fits only when Ollama unloads models that are loaded now" % item["name"])
                found = emptied
        if not found.fits:
            self._does_not_fit(item, header, found, free)
        return sizing.describe(found, [device["index"] for device in devices])

    def _header(self, path: str) -> gguf.Header:
        """The header of a file of weights, at the path that the server reports."""
        from ..toolbox.files import follow

        def read() -> gguf.Header:
            with follow(path) as file:
                return gguf.read(file)

        fields = self.catalog.as_server_user(read)
        return gguf.Header._make(tuple(field) if isinstance(field, list) else field for field in fields)

    def _does_not_fit(self, item: Dict[str, Any], header: gguf.Header, found: sizing.Estimate, free: List[int]) -> None:
        message = (
            sizing.shortage(header, found, free)
            + ". Free GPU memory, shorten options.num_ctx, or load it with fit: warn, partly on the CPU"
        )
        if self.catalog.params["fit"] == "refuse":
            raise Refused(message)
        self.catalog.warn("%s: %s" % (item["name"], message))

    def _contexts(self, item: Dict[str, Any], shown: Answer, header: gguf.Header, total: int) -> List[int]:
        """Tokens of context, by the order in which Ollama looks: request, model, server, GPU memory."""
        own = re.search(r"^num_ctx\s+([0-9]+)\s*$", str(shown.body.get("parameters") or ""), re.MULTILINE)
        wanted = int((item.get("options") or {}).get("num_ctx") or 0)
        return sizing.contexts(
            wanted or (int(own.group(1)) if own else 0) or self.catalog.server.context, header, total
        )

    def _loaded_now(self, item: Dict[str, Any], shown: Answer) -> Dict[str, Any]:
        capabilities = shown.body.get("capabilities") or ()
        more = {}  # type: Dict[str, Any]
        if "keep_alive" in item:
            written = str(item["keep_alive"])
            more["keep_alive"] = int(written) if re.match(r"[+-]?[0-9]+\Z", written) else written
        if "options" in item:
            more["options"] = item["options"]
        embedding = "embedding" in capabilities and "completion" not in capabilities
        answer = self.api.load(item["full"], self.catalog.limits.timeout, embedding, **more)
        if answer.status == 200 and not embedding and answer.body.get("done") is not True:
            raise Failed("cannot be loaded: HTTP 200, but done is %s" % answer.body.get("done"))
        succeeded(answer, "cannot be loaded")
        self.catalog.refresh()
        resident = self.catalog.loaded.get(key(item["name"]))
        if resident is None:
            raise Failed(
                "was loaded, but /api/ps no longer lists it: keep_alive is %s, or other models needed its memory"
                % item.get("keep_alive", "of the server")
            )
        return resident

    def _prove(self, item: Dict[str, Any], entry: Dict[str, Any], resident: Dict[str, Any], blob: str) -> None:
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
        if not facts["count"] or on_gpu >= size or asked or self.catalog.params["fit"] == "ignore":
            return
        message = "has %.1f of its %.1f GiB on GPUs, the rest runs on the CPU" % (on_gpu / _GIB, size / _GIB)
        if self.catalog.params["fit"] == "refuse":
            self.api.unload(item["full"])
            raise Failed(message + "; it was unloaded again (fit: refuse)")
        self.catalog.warn("%s: %s" % (item["name"], message))

    def _report(self, entry: Dict[str, Any], resident: Dict[str, Any], facts: Dict[str, Any], blob: str) -> None:
        """The engine's figures and NVML's, next to the estimate."""
        held = server.held_by_worker(facts, self.catalog.server.unit, blob)[0]
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
            entry["estimate_ratio"] = round(sum(held.values()) / float(estimate["held_bytes"]), 3)


def _weights_path(shown: Answer) -> str:
    """The file of the weights, from the server's own Modelfile."""
    found = re.search(r"^FROM (/.*)$", str(shown.body.get("modelfile") or ""), re.MULTILINE)
    if not found:
        raise ValueError("the server does not report where its weights are")
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
    return year.isdigit() and int(year) >= _NEVER_FROM
