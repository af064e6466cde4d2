# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pull through the server, watched: the server itself retries a stalled connection indefinitely."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Callable, Dict, Optional, Tuple

from ..toolbox.errors import Failed
from .api import Api, ApiError

_WRITE_EVERY = 0.5  # seconds between two states of the progress file
_RESUMES = "; what was downloaded is kept, and the next run resumes it"
_BROKE_OFF = "; the connection to the registry broke off"
_REMEDIES = (
    ("no space left on device", "free space on the disk of the store, or move it; the next run resumes the download"),
    (
        "digest mismatch",
        "the file was removed; if this happens again, the copy in the registry or in a proxy is damaged",
    ),
    ("file does not exist", "the registry has no such model: correct the name or the tag"),
    ("insecure protocol http", "a registry without TLS needs insecure: true"),
    ("certificate", "make the host trust its issuer, or set insecure: true"),
)


class Progress:
    """How far a pull is, written to a file for whoever watches, if there is a path."""

    def __init__(self, path: Optional[str]) -> None:
        self.path, self.written = path, 0.0
        self.began = time.monotonic()
        self.from_bytes: Optional[int] = None

    def report(self, name: str, status: str, completed: int, total: int) -> None:
        """Report the bytes of all layers seen so far; what was there at the start does not count towards the rate."""
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


class Pull:
    """One pull of a model.

    :param name: of the model, for whoever watches.
    :param source: its name at the registry that it comes from.
    :param stall_timeout: seconds after which a download without a new byte is given up.
    :param finish_timeout: seconds for what follows the download: the digest of all of it, in silence.
    :param expected: bytes altogether, 0 when not known.
    :param room: called with the bytes that a layer still needs, before it is downloaded; may raise.
    """

    def __init__(
        self,
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
        self.api, self.name, self.room, self.progress = api, name, room, progress
        self.body = {"model": source, "insecure": insecure, "stream": True}
        self.stall_timeout, self.finish_timeout, self.expected = stall_timeout, finish_timeout, expected

    def run(self) -> None:
        """Pull, a second time if the server cancels the first.

        For up to half a minute the server continues the download of a pull that has ended, and ends one that begins
        meanwhile along with it; the next one is a download of its own.

        :raises Failed: it stalled, failed, or ended without success.
        """
        cancelled = self._once() and self._once()
        if cancelled:
            raise Failed(cancelled)

    def _once(self) -> str:
        """Pull once; the error if the server cancelled it, else empty."""
        self.layers: Dict[str, Tuple[int, int]] = {}
        self.most, self.since = 0, time.monotonic()
        self.loading, self.status = True, ""
        try:
            for event in self.api.events("/api/pull", self.body, self._silence):
                if "error" in event:
                    words = str(event["error"]).partition("\n")[0]  # a registry may send HTML
                    message = "%s: %s%s" % (self.name, words, _advice(words) or _broken(words) + self._kept())
                    if "context canceled" in words:
                        return message
                    raise Failed(message)
                self._follow(event)
        except ApiError as error:
            if error.timed_out and self.loading:
                raise self._stalled() from None
            if error.timed_out:
                raise Failed(
                    "%s: silent for %.0f s (timeout) at %r" % (self.name, self.finish_timeout, self.status)
                ) from None
            raise Failed("%s: %s%s" % (self.name, error, self._kept())) from None
        if self.status != "success":
            raise Failed(
                "%s: the server ended the pull at %r, without success%s" % (self.name, self.status, self._kept())
            )
        return ""

    def _follow(self, event: Dict[str, Any]) -> None:
        self.status, digest = str(event.get("status", "")), event.get("digest")
        self.loading = self.status.startswith("pulling")
        if not digest:
            return
        completed, total = int(event.get("completed") or 0), int(event.get("total") or 0)
        if digest not in self.layers:
            self.room(total - completed)
        self.layers[digest] = (completed, total)
        done = sum(layer[0] for layer in self.layers.values())
        if done > self.most:
            self.most, self.since = done, time.monotonic()
        elif time.monotonic() - self.since >= self.stall_timeout:
            raise self._stalled()
        self.progress.report(self.name, self.status, done, self._total())

    def _total(self) -> int:
        return max(self.expected, sum(layer[1] for layer in self.layers.values()))

    def _silence(self) -> float:
        """Seconds that the server may be silent from now on."""
        return max(0.0, self.since + self.stall_timeout - time.monotonic()) if self.loading else self.finish_timeout

    def _kept(self) -> str:
        return _RESUMES if self.layers else ""

    def _stalled(self) -> Failed:
        return Failed(
            "%s: no new byte for %.0f s (stall_timeout) at %d of %d bytes, status %r: the registry or the network "
            "stalls%s" % (self.name, self.stall_timeout, self.most, self._total(), self.status, self._kept())
        )


def _broken(words: str) -> str:
    """What the server does not say when its connections break: of several it reports the end of any one."""
    return _BROKE_OFF if any(known in words for known in ("EOF", "context canceled", "connection re")) else ""


def _advice(words: str) -> str:
    """What to do about an error of the server; empty when it is not known."""
    return next(("; " + advice for known, advice in _REMEDIES if known in words), "")
