# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model from a hub, by git, or as it lies there."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from ..toolbox.errors import Failed, Refused
from ..toolbox.values import gib, size
from . import hub
from .hub import File
from .place import Place, check_space, result


class Offer(NamedTuple):
    """What a hub offers of a revision."""

    commit: str
    files: List[File]


def converge(params: Mapping[str, Any], check_mode: bool, warn: Any) -> Dict[str, Any]:
    """Ensure that the declared revision of a model is in a directory.

    :param params: the module's parameters.
    :returns: the module's result.
    :raises Refused: the declaration is wrong, or cannot be met on this host.
    :raises Failed: it cannot be loaded. Existing files are unchanged; what was loaded is kept for the next run.
    """
    if params["source"] == "directory":
        return _directory(params)
    place = Place(params)
    commit = place.commit()
    if commit and place.whole(commit) and not (params["update"] and not params["offline"]):
        found = result(place, commit, False, "%s is there" % place.shown)
        return found if params["defer_downloads"] else _tidied(place, found, check_mode)
    if params["defer_downloads"]:
        said = "%s is not there yet" % place.shown
        return dict(result(place, commit or "", False, said), path=None, needs=[place.key])
    _check_token(params["token"])
    with _errors(place):
        return _tidied(place, _load(place, params, check_mode, warn), check_mode)


def secrets(params: Mapping[str, Any]) -> List[str]:
    """What must not be shown of parameters that are not secret as a whole."""
    return hub.secrets(params.get("url"))


def _tidied(place: Place, found: Dict[str, Any], check_mode: bool) -> Dict[str, Any]:
    """A result, and what killed runs left is removed."""
    stale = place.stale()
    if stale and not check_mode:
        with _errors(place), place.opened():
            stale = place.remove_stale()
    if not stale:
        return found
    paths = [os.path.join(place.folder, name) for name in stale]
    verb = "would remove" if check_mode else "removed"
    said = "%s; %s what runs that were killed have left: %s" % (found["msg"], verb, ", ".join(paths))
    diff = {"before": "\n".join(paths) + "\n", "after": found["diff"].get("after", "")}
    return dict(found, changed=True, msg=said, diff=diff)


@contextmanager
def _errors(place: Place) -> Iterator[None]:
    """Files that a server reads as a user of its own, and errors in words."""
    umask = os.umask(0o022)
    try:
        yield
    except OSError as error:
        raise Failed("%s: %s: %s" % (place.shown, error.filename or place.folder, error.strerror or error)) from None
    finally:
        os.umask(umask)


def _load(place: Place, params: Mapping[str, Any], check_mode: bool, warn: Any) -> Dict[str, Any]:
    given = _from_seeds(place, params, check_mode, warn)
    if given:
        return given
    if params["offline"]:
        raise Refused(
            "%s is not in %s, and offline is true: nothing is asked of the network" % (place.shown, place.folder)
        )
    if params["source"] == "git":
        from . import git

        return git.fetch(place, params, check_mode)
    return _from_hub(place, params, check_mode)


def _check_token(token: Optional[str]) -> None:
    if token and not all("!" <= letter <= "~" for letter in token):
        raise Refused("token: holds a blank, a line end or a letter that no token has; give it without")


def _directory(params: Mapping[str, Any]) -> Dict[str, Any]:
    path = params["name"]
    names = os.listdir(path) if os.path.isabs(path) and os.path.isdir(path) else []
    if not any(name in ("config.json", "adapter_config.json") or name.endswith(".gguf") for name in names):
        raise Refused(
            "name: there is no model in %s on this host; expected a directory with config.json, adapter_config.json or "
            "a GGUF file" % path
        )
    return {"changed": False, "msg": "%s is there" % path, "path": path, "commit": None, "bytes": 0, "diff": {}}


def _from_seeds(place: Place, params: Mapping[str, Any], check_mode: bool, warn: Any) -> Optional[Dict[str, Any]]:
    """The model from the first host that has it, by the checksums that this host reported; None where none has it."""
    for seed in () if check_mode else params["seeds"]:
        told = seed["models"].get(place.key)
        if not told:
            continue

        try:
            offer = _told(place, told)
            loaded, changed = _have(place, offer, params, partial(_seed_url, seed), {})
        except Failed as error:
            said = str(error).replace(seed["token"], "…")
            warn("%s cannot be loaded from %s, so the hub is used: %s" % (place.shown, seed["url"], said))
            continue
        if loaded:
            size = sum(file.size for file in offer.files)
            said = "loaded %s from %s, %d files, %s" % (place.shown, seed["url"], len(offer.files), gib(size))
            return result(place, offer.commit, True, said, size)
        return result(place, offer.commit, changed, "%s is there" % place.shown)
    return None


def _told(place: Place, told: Mapping[str, Any]) -> Offer:
    """What another host offers.

    :raises Failed: it is nothing that could be taken.
    """
    try:
        offer = Offer(told["commit"], [File(**file) for file in told["files"]])
        hub.check(*offer)
    except (KeyError, TypeError, AttributeError) as error:
        raise Failed("its answer is not a list of files (%s: %s)" % (type(error).__name__, error)) from None
    if not all(file.sha256 for file in offer.files):
        raise Failed("it offers files without a SHA-256")
    _check_pinned(place, offer.commit)
    return offer


def _check_pinned(place: Place, commit: str) -> None:
    if place.pinned() and commit != place.revision:
        raise Failed("it gives commit %s for revision %s" % (commit, place.revision))


def _seed_url(seed: Mapping[str, Any], file: File) -> str:
    """Where the program of the seeding host has a file."""
    return "%s/gpufleet-%s/blobs/sha256:%s" % (seed["url"], seed["token"], file.sha256)


def _from_hub(place: Place, params: Mapping[str, Any], check_mode: bool) -> Dict[str, Any]:
    from . import download

    endpoint, user, password = hub.parted((params["url"] or hub.ENDPOINTS[place.source]).rstrip("/"))
    headers = hub.headers(place.source, params["token"], user, password)
    try:
        commit, files = offer = _offer(place, endpoint, headers, params, download)
        if check_mode:
            loaded, changed = not place.whole(commit), place.commit() != commit
            if loaded:
                _check_space(place, offer, params)
        else:
            at = _at(place, commit)
            loaded, changed = _have(
                place,
                offer,
                params,
                lambda file: hub.file_url(place.source, endpoint, place.name, at, file.path),
                headers,
            )
    except Failed as error:
        raise Failed("%s: %s" % (place.shown, error)) from None
    if not loaded:
        return result(place, commit, changed, "%s is there" % place.shown)
    size = sum(file.size for file in files)
    said = "%s %s, %d files, %s" % ("would load" if check_mode else "loaded", place.shown, len(files), gib(size))
    return result(place, commit, True, said, size)


def _have(
    place: Place, offer: Offer, params: Mapping[str, Any], url_of: Callable[[File], str], headers: Mapping[str, str]
) -> Tuple[bool, bool]:
    """Load what is offered unless it is there; whether it was loaded, and whether anything was changed."""
    from . import download

    commit, files = offer
    loaded, changed = not place.whole(commit), place.commit() != commit
    if not loaded and not changed:
        return False, False
    if loaded:
        _check_space(place, offer, params)
    with place.opened():
        if loaded:
            with place.unfinished(commit):
                loaded = not place.whole(commit)  # it may be, by a run that was waited for
                if loaded:
                    for file in files:
                        download.download(url_of(file), headers, file, place.part(commit))
                    sha256 = {file.path: file.sha256 for file in files if file.sha256}
                    place.finish(place.part(commit), commit, {file.path: file.size for file in files}, sha256)
        place.remember(commit)
    return loaded, loaded or changed


def _check_space(place: Place, offer: Offer, params: Mapping[str, Any]) -> None:
    needed = sum(file.size - _loaded(place.part(offer.commit), file) for file in offer.files)
    check_space(place.folder, needed, size(params["free_space_margin"], "free_space_margin"))


def _at(place: Place, commit: str) -> str:
    """What is asked for: for ModelScope the revision, whose commit it does not report."""
    return commit if place.source == "huggingface" else place.revision


def _offer(place: Place, endpoint: str, headers: Mapping[str, str], params: Mapping[str, Any], download: Any) -> Offer:
    url = hub.listing_url(place.source, endpoint, place.name, place.revision)
    commit, files = hub.read_listing(place.source, download.listing(url, headers))
    _check_pinned(place, commit)
    return Offer(commit, hub.wanted(files, params["include"], params["exclude"]))


def _loaded(part: str, file: File) -> int:
    for path in (file.path, file.path + ".part"):
        try:
            return min(os.path.getsize(os.path.join(part, path)), file.size)
        except OSError:
            continue
    return 0
