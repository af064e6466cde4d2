# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a model lies on a host: a directory for each revision, whole or not there.

ROOT/SOURCE/ORGANISATION/NAME/COMMIT/           whole, as gpufleet.json in it says, which is written last
ROOT/SOURCE/ORGANISATION/NAME/refs/REVISION     the commit that a branch or tag was when it was asked for
ROOT/SOURCE/ORGANISATION/NAME/.COMMIT.part/     unfinished; the next run goes on from there
"""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import Any, Dict, Mapping, Optional
from urllib.parse import quote

from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import hub
from ansible_collections.gpufleet.inference.plugins.module_utils.model_source.hub import HubError

MARKER = "gpufleet.json"


class SourceError(Exception):
    """The model cannot be had; what was there before is untouched."""


class Place:
    """Where a model lies on this host."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.source, self.name = params["source"], params["name"]
        if self.source == "git":
            if not params["url"]:
                raise SourceError("source is git: give url, what git clone takes")
            self.revision = params["revision"] or "HEAD"
        else:
            self.revision = params["revision"] or hub.BRANCHES[self.source]
        try:
            hub.check_name(self.name)
        except HubError as error:
            raise SourceError(str(error)) from None
        self.folder = os.path.join(params["root"], self.source, *self.name.split("/"))
        self.shown = "%s of %s" % (self.revision, self.name)
        self.key = "%s %s %s" % (self.source, self.name, self.revision)
        """Its name among hosts."""

    def path(self, commit: str) -> str:
        return os.path.join(self.folder, commit)

    def part(self, commit: str) -> str:
        return os.path.join(self.folder, ".%s.part" % commit)

    def _ref(self) -> str:
        return os.path.join(self.folder, "refs", quote(self.revision, safe=""))

    def commit(self) -> Optional[str]:
        """The commit that the revision is or was found to be; nothing when it was never asked for."""
        if re.match(r"[0-9a-f]{40}\Z", self.revision):
            return self.revision
        try:
            with open(self._ref(), encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            return None

    def whole(self, commit: str) -> bool:
        """Whether all files are there, in their sizes."""
        files: Any = self.record(commit).get("files")
        try:
            return bool(files) and all(
                os.stat(os.path.join(self.path(commit), name)).st_size == size for name, size in files.items()
            )
        except OSError:
            return False

    def record(self, commit: str) -> Dict[str, Any]:
        try:
            with open(os.path.join(self.path(commit), MARKER), encoding="utf-8") as file:
                record = json.load(file)
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def finish(self, commit: str, files: Mapping[str, int], sha256: Optional[Mapping[str, str]] = None) -> None:
        """What was loaded becomes the model, at one stroke. Known checksums are kept for others."""
        part, path = self.part(commit), self.path(commit)
        record = {"name": self.name, "source": self.source, "commit": commit, "files": dict(files)}
        if sha256:
            record["sha256"] = dict(sha256)
        with open(os.path.join(part, MARKER), "w", encoding="utf-8") as file:
            json.dump(record, file, sort_keys=True, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if os.path.isdir(path):  # damaged
            shutil.rmtree(path)
        os.rename(part, path)

    def remember(self, commit: str) -> None:
        """Note what the revision is, so that the next run need not ask."""
        ref = self._ref()
        os.makedirs(os.path.dirname(ref), exist_ok=True)
        with open(ref + ".new", "w", encoding="ascii") as file:
            file.write(commit + "\n")
        os.rename(ref + ".new", ref)


def check_space(folder: str, needed: int, margin: int) -> None:
    """:raises SourceError: with the figures, when a file system has not enough left."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if needed + margin > free:
        raise SourceError(
            "the file system of %s has %s free; needed are %s, and %s shall be left (free_space_margin)"
            % (folder, gib(free), gib(needed), gib(margin))
        )


def margin_of(text: str) -> int:
    """Bytes of ``2GiB``, ``500MB`` or a number.

    :raises SourceError: it is none.
    """
    found = re.match(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?)?\Z", text.strip())
    if not found:
        raise SourceError("free_space_margin is %r; expected a size such as 2GiB" % text)
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" KMGT".index(unit) if unit else 0))


def gib(number: int) -> str:
    return "%.1f GiB" % (number / 2.0**30) if number >= 2**28 else "%.1f MiB" % (number / 2.0**20)


def result(place: Place, commit: str, changed: bool, said: str, size: int = 0) -> Dict[str, Any]:
    path = place.path(commit)
    return {
        "changed": changed,
        "msg": said,
        "path": path,
        "commit": commit,
        "bytes": size,
        "diff": {"before": "", "after": path + "\n"} if changed else {},
    }
