# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model from a hub, by git, or as it lies there."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import hub
from ansible_collections.gpufleet.inference.plugins.module_utils.model_source.hub import File, HubError
from ansible_collections.gpufleet.inference.plugins.module_utils.model_source.place import (
    Place,
    SourceError,
    check_space,
    gib,
    margin_of,
    result,
)


class Offer(NamedTuple):
    """What a hub offers of a revision."""

    commit: str
    files: List[File]


def bring(params: Mapping[str, Any], check_mode: bool, warn: Any) -> Dict[str, Any]:
    """Have the declared revision of a model in a directory.

    :param params: the module's parameters.
    :returns: the module's result.
    :raises SourceError: nothing that was there is changed; what was loaded is kept for the next run.
    """
    if params["source"] == "directory":
        return _directory(params)
    place = Place(params)
    commit = place.commit()
    if commit and place.whole(commit) and not (params["update"] and not params["offline"]):
        return result(place, commit, False, "%s is there" % place.shown)
    if params["defer"]:
        said = "%s is not there yet" % place.shown
        return dict(result(place, commit or "", False, said), path=None, missing=True)
    umask = os.umask(0o022)  # a server reads them as a user of its own
    try:
        given = _from_seeds(place, params, check_mode, warn)
        if given:
            return given
        if params["offline"]:
            raise SourceError(
                "%s is not in %s, and offline is true: nothing is asked of the network" % (place.shown, place.folder)
            )
        if params["source"] == "git":
            from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import git

            return git.bring(place, params, check_mode)
        return _from_hub(place, params, check_mode)
    except OSError as error:
        raise SourceError(
            "%s: %s: %s" % (place.shown, error.filename or place.folder, error.strerror or error)
        ) from None
    finally:
        os.umask(umask)


def _directory(params: Mapping[str, Any]) -> Dict[str, Any]:
    path = params["name"]
    if not os.path.isabs(path) or not os.path.isfile(os.path.join(path, "config.json")):
        raise SourceError("name: there is no model in %s on this host; expected a directory with config.json" % path)
    return {"changed": False, "msg": "%s is there" % path, "path": path, "commit": None, "bytes": 0, "diff": {}}


def _from_seeds(place: Place, params: Mapping[str, Any], check_mode: bool, warn: Any) -> Optional[Dict[str, Any]]:
    """The model from the first host that has it; None where none gives it. Who offers it has told the checksums."""
    for seed in () if check_mode else params["seeds"]:
        told = seed["models"].get(place.key)
        if not told:
            continue
        from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import download

        commit, files = told["commit"], [File(**file) for file in told["files"]]
        try:
            hub.check(commit, files)
            there = place.whole(commit)
            changed = not there or place.commit() != commit
            if not there:
                needed = sum(file.size - _have(place.part(commit), file) for file in files)
                check_space(place.folder, needed, margin_of(params["free_space_margin"]))
                for file in files:
                    download.download(_seed_url(seed, file), {}, file, place.part(commit))
                _finish(place, commit, files)
            place.remember(commit)
        except (HubError, download.DownloadError) as error:
            said = str(error).replace(seed["token"], "…")
            warn("%s cannot be had from %s, so the hub is asked: %s" % (place.shown, seed["url"], said))
            continue
        if there:
            return result(place, commit, changed, "%s is there" % place.shown)
        size = sum(file.size for file in files)
        said = "loaded %s from %s, %d files, %s" % (place.shown, seed["url"], len(files), gib(size))
        return result(place, commit, True, said, size)
    return None


def _seed_url(seed: Mapping[str, Any], file: File) -> str:
    """Where the program of the seeding host has a file."""
    return "%s/gpufleet-%s/blobs/sha256:%s" % (seed["url"], seed["token"], file.sha256)


def _finish(place: Place, commit: str, files: Sequence[File]) -> None:
    sha256 = {file.path: file.sha256 for file in files if file.sha256}
    place.finish(commit, {file.path: file.size for file in files}, sha256)


def _from_hub(place: Place, params: Mapping[str, Any], check_mode: bool) -> Dict[str, Any]:
    from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import download

    endpoint = (params["url"] or hub.ENDPOINTS[place.source]).rstrip("/")
    headers = hub.headers(place.source, params["token"])
    try:
        commit, files = _offer(place, endpoint, headers, params, download)
        if place.whole(commit):
            changed = place.commit() != commit
            if changed and not check_mode:
                place.remember(commit)
            return result(place, commit, changed, "%s is there" % place.shown)
        part = place.part(commit)
        needed = sum(file.size - _have(part, file) for file in files)
        check_space(place.folder, needed, margin_of(params["free_space_margin"]))
        if not check_mode:
            for file in files:
                url = hub.file_url(place.source, endpoint, place.name, _at(place, commit), file.path)
                download.download(url, headers, file, part)
            _finish(place, commit, files)
            place.remember(commit)
    except (HubError, download.DownloadError) as error:
        raise SourceError("%s: %s" % (place.shown, error)) from None
    size = sum(file.size for file in files)
    said = "%s %s, %d files, %s" % ("would load" if check_mode else "loaded", place.shown, len(files), gib(size))
    return result(place, commit, True, said, size)


def _at(place: Place, commit: str) -> str:
    """What is asked for: at ModelScope the revision, whose commit it does not tell."""
    return commit if place.source == "huggingface" else place.revision


def _offer(place: Place, endpoint: str, headers: Mapping[str, str], params: Mapping[str, Any], download: Any) -> Offer:
    url = hub.listing_url(place.source, endpoint, place.name, place.revision)
    try:
        with download.get(url, headers) as answer:
            text = answer.read()
    except OSError as error:
        raise download.DownloadError("%s is not reached: %s" % (url, getattr(error, "reason", error))) from None
    commit, files = hub.read_listing(place.source, text)
    return Offer(commit, hub.wanted(files, params["include"], params["exclude"]))


def _have(part: str, file: File) -> int:
    for path in (file.path, file.path + ".part"):
        try:
            return min(os.path.getsize(os.path.join(part, path)), file.size)
        except OSError:
            continue
    return 0
