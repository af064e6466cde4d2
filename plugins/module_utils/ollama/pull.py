# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pull through the server, watched: the server itself tries a connection that stalls again for ever."""

from __future__ import annotations

import functools
import json
import os
import time
from typing import Any, Callable, Dict, Optional, Tuple, TypeVar, cast

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.api import Api, ApiError, ApiTimeout
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed

_Pull = TypeVar("_Pull", bound=Callable[..., None])

_WRITE_EVERY = 0.5  # seconds between two states of the progress file
_RESUMES = "; what was downloaded stays, and the next run goes on from there"
_BROKE_OFF = "; the connection to the registry broke off"
_REMEDIES = (
    ("no space left on device", "free space on the disk of the store, or move it; the next run goes on from there"),
    (
        "digest mismatch",
        "the file was removed; if this comes again, the registry's copy of it, or what a proxy makes of it, is damaged",
    ),
    ("file does not exist", "the registry has no such model: correct the name or the tag"),
    ("insecure protocol http", "a registry without TLS needs insecure: true"),
    ("certificate", "have the host trust its issuer, or declare insecure: true"),
)


class _Cancelled(Failed):
    """The server says that it was cancelled, which this run has not done."""


class Progress:
    """How far a pull is, kept in a file for whoever watches; without a path nowhere."""

    def __init__(self, path: Optional[str]) -> None:
        self.path, self.written = path, 0.0
        self.began = time.monotonic()
        self.from_bytes: Optional[int] = None

    def tell(self, name: str, status: str, completed: int, total: int) -> None:
        """Bytes of all layers seen so far; what was there at the start does not count into the rate."""
        now = time.monotonic()
        if self.from_bytes is None:
            self.began, self.from_bytes = now, completed
        if not self.path or now - self.written < _WRITE_EVERY:
            return
        self.written = now
        rate = (completed - self.from_bytes) / max(0.001, now - self.began)
        state = {
            "name": name,
            "status": status,
            "completed": completed,
            "total": total,
            "rate": int(rate),
            "seconds_left": int((total - completed) / rate) if rate > 0 else None,
        }
        try:
            with open(self.path + ".new", "w", encoding="utf-8") as file:
                json.dump(state, file)
            os.replace(self.path + ".new", self.path)
        except OSError:
            self.path = None  # a pull does not fail for its progress


def _anew_when_cancelled(pull: _Pull) -> _Pull:
    """Pull twice at most: the server goes on for up to half a minute with the download of a pull that has ended, and
    has one that begins meanwhile end along with it; what comes after that is a download of its own."""

    @functools.wraps(pull)
    def twice(*args: Any, **more: Any) -> None:
        try:
            pull(*args, **more)
        except _Cancelled:
            pull(*args, **more)

    return cast(_Pull, twice)


@_anew_when_cancelled
def pull(
    api: Api,
    name: str,
    *,
    source: str,
    insecure: bool,
    stall_timeout: float,
    finish_timeout: float,
    expected: int,
    room: Callable[[int], None],
    progress: Progress,
) -> None:
    """Pull a model.

    :param name: as whoever watches knows it.
    :param source: its name at the registry that it comes from.
    :param stall_timeout: seconds after which a download without a new byte is given up.
    :param finish_timeout: seconds for what comes after the download: the digest of all of it, in silence.
    :param expected: bytes altogether, 0 when not known.
    :param room: called with the bytes that a layer still needs, before it is downloaded; may raise.
    :raises Failed: it stalled, failed, or ended without success.
    """
    layers: Dict[str, Tuple[int, int]] = {}
    most, since, loading, status = 0, time.monotonic(), True, ""

    def kept() -> str:
        return _RESUMES if layers else ""

    def stalled() -> Failed:
        total = max(expected, sum(layer[1] for layer in layers.values()))
        return Failed(
            "%s: no byte more for %.0f s (stall_timeout) at %d of %d bytes, status %r: the registry or the network "
            "stalls%s" % (name, stall_timeout, most, total, status, kept())
        )

    def silence() -> float:
        return max(0.0, since + stall_timeout - time.monotonic()) if loading else finish_timeout

    try:
        for event in api.events("/api/pull", {"model": source, "insecure": insecure, "stream": True}, silence):
            if "error" in event:
                words = str(event["error"]).partition("\n")[0]  # a registry may say it in HTML
                kind = _Cancelled if "context canceled" in words else Failed
                raise kind("%s: %s%s" % (name, words, _advice(words) or _broken(words) + kept()))
            status, digest = str(event.get("status", "")), event.get("digest")
            loading = status.startswith("pulling")
            if not digest:
                continue
            completed, total = int(event.get("completed") or 0), int(event.get("total") or 0)
            if digest not in layers:
                room(total - completed)
            layers[digest] = (completed, total)
            done = sum(layer[0] for layer in layers.values())
            if done > most:
                most, since = done, time.monotonic()
            elif time.monotonic() - since >= stall_timeout:
                raise stalled()
            progress.tell(name, status, done, max(expected, sum(layer[1] for layer in layers.values())))
    except ApiTimeout:
        if loading:
            raise stalled() from None
        raise Failed("%s: silent for %.0f s (timeout) at %r" % (name, finish_timeout, status)) from None
    except ApiError as error:
        raise Failed("%s: %s%s" % (name, error, kept())) from None
    if status != "success":
        raise Failed("%s: the server ended the pull at %r, without success%s" % (name, status, kept()))


def _broken(words: str) -> str:
    """What the server leaves unsaid when its connections break: of several at a time it tells any one's end."""
    return _BROKE_OFF if any(known in words for known in ("EOF", "context canceled", "connection re")) else ""


def _advice(words: str) -> str:
    """What to do about an error of the server; empty when it is not known."""
    return next(("; " + advice for known, advice in _REMEDIES if known in words), "")
