# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates models: from a GGUF file, from a Modelfile, or as a copy."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Dict

from ..toolbox.errors import Failed
from . import gguf, names
from .catalog import Catalog, succeeded
from .records import fingerprint
from .wanted import key


class Creator:
    """Creates models in the store of one server."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog, self.api = catalog, catalog.api

    def copy(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        before, source = self.catalog.store.get(key(item["name"])), self.catalog.store.get(key(item["copy_of"]))
        if source is None:
            raise Failed("copy_of %s: the store has no such model; declare it before its copy" % item["copy_of"])
        if before and source.get("digest") and before.get("digest") == source["digest"]:
            return
        if not self.catalog.check_mode:
            succeeded(self.api.copy(names.full(item["copy_of"]), item["full"]), "cannot be copied")
            self.catalog.stored_after(item["name"])
        self.catalog.note(item, entry, before, "copied")

    def create(self, item: Dict[str, Any], entry: Dict[str, Any]) -> None:
        recipe, before = item["recipe"], self.catalog.store.get(key(item["name"]))
        record = self.catalog.records.read(item["full"])
        body, source = dict(recipe.body), {}  # type: Dict[str, Any], Dict[str, Any]
        if recipe.from_file:
            try:
                source = fingerprint(recipe.source, record.get("file") or {})
            except OSError as error:
                raise Failed("%s: %s; expected a GGUF file on this host" % (recipe.source, error.strerror)) from None
            body["files"] = {os.path.basename(recipe.source): "sha256:" + source["sha256"]}
            told = dict(body)
        else:
            base = self.catalog.store.get(key(recipe.source))
            if base is None:
                raise Failed("FROM %s: the store has no such model; declare it before" % recipe.source)
            body["from"] = recipe.source
            told = dict(body, digest=base.get("digest"))
        request = hashlib.sha256(json.dumps(told, sort_keys=True).encode("utf-8")).hexdigest()
        if before and record.get("request") == request and record.get("digest") == before.get("digest"):
            return
        if recipe.from_file:
            from ..toolbox.files import follow

            with follow(recipe.source) as file:
                try:
                    gguf.read(file)
                except ValueError as error:
                    raise Failed("%s %s" % (recipe.source, error)) from None
                if not self.catalog.check_mode:
                    self._upload(source, file)
        if not self.catalog.check_mode:
            self._build(item, body)
            made = self.catalog.stored_after(item["name"])
            self.catalog.records.write(item["full"], {"request": request, "file": source, "digest": made.get("digest")})
        self.catalog.note(item, entry, before, "created")

    def _upload(self, source: Dict[str, Any], file: Any) -> None:
        there = self.api.has_blob(source["sha256"])
        self.catalog.check_room(source["size"] * (1 if there else 2))  # as it is, and as the server rewrites it
        if not there:
            file.seek(0)
            succeeded(
                self.api.upload(source["sha256"], file, self.catalog.limits.timeout), "the file cannot be uploaded"
            )

    def _build(self, item: Dict[str, Any], body: Dict[str, Any]) -> None:
        status = ""
        for event in self.api.events(
            "/api/create", dict(body, model=item["full"]), lambda: self.catalog.limits.timeout
        ):
            if "error" in event:
                raise Failed("cannot be created: %s" % event["error"])
            status = str(event.get("status", ""))
        if status != "success":
            raise Failed("cannot be created: the server ended at %r, without success" % status)
