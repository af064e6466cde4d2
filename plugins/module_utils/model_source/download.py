# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads files into a directory: checked by checksum, continued after an interruption, never half there."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Mapping, Optional
from urllib.parse import urlsplit

from ..toolbox.errors import Failed
from ..toolbox.files import chunks
from .hub import File

ATTEMPTS = 5  # in a row without a byte
SILENCE = 60  # seconds without a byte
HEAD = 120  # seconds for all header fields of an answer
PERIOD, SLOWEST = 300, 1024
"""Seconds, and the bytes per second below which a server is given up after them."""
LISTING = 64 << 20
"""Bytes of the largest listing."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, never back from https; only the first host learns who asks."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("https", old.scheme):
            raise Failed(
                "%s redirects %s to %s, which is not followed; expected %s"
                % (old.netloc, req.full_url, new.scheme or "an address without a scheme", old.scheme)
            )
        request: Any = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new.netloc == old.netloc:
            for name, value in req.unredirected_hdrs.items():
                request.add_unredirected_header(name, value)
        return request


class _Answer(http.client.HTTPResponse):
    """Waits for a limited time until its header has come, however often a byte of it does."""

    def __init__(self, sock: socket.socket, *words: Any, **more: Any) -> None:
        super().__init__(sock, *words, **more)
        self._socket = sock

    def begin(self) -> None:
        late = threading.Timer(HEAD, self._socket.shutdown, (socket.SHUT_RDWR,))
        late.daemon = True
        late.start()
        try:
            super().begin()
        finally:
            late.cancel()


class _Connection(http.client.HTTPConnection):
    response_class = _Answer


class _SafeConnection(http.client.HTTPSConnection):
    response_class = _Answer


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> Any:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        return self.do_open(_SafeConnection, req)


def get(url: str, headers: Mapping[str, str], first_byte: int = 0) -> Any:
    """The open answer of a server.

    :raises Failed: with the server's answer, in terms of the options.
    :raises OSError: it is not reached.
    :raises http.client.HTTPException: its answer is not HTTP.
    """
    request = urllib.request.Request(url)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    if first_byte:
        request.add_header("Range", "bytes=%d-" % first_byte)
    try:
        return urllib.request.build_opener(_Redirects(), _Http(), _Https()).open(request, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        host = urlsplit(url).netloc
        if error.code in (401, 403):
            said = (
                "give a token that may read it"
                if not headers
                else "the token may not read it, or its terms are not accepted"
            )
            raise Failed("%s answers %d for %s: %s" % (host, error.code, url, said)) from None
        if error.code == 404:
            raise Failed("%s knows no %s: correct name and revision" % (host, url)) from None
        raise Failed("%s answers %d %s for %s" % (host, error.code, error.reason, url)) from error


def listing(url: str, headers: Mapping[str, str]) -> bytes:
    """The whole of a small answer.

    :raises Failed: it is not had, or is larger than a listing can be.
    """
    text, pace = bytearray(), _Pace(url)
    try:
        with get(url, headers) as answer:
            for chunk in chunks(answer.read1):
                text += chunk
                pace.count(len(chunk))
                if len(text) > LISTING:
                    raise Failed("%s answers with more than %d MiB" % (url, LISTING >> 20))
    except (OSError, http.client.HTTPException) as error:
        raise Failed("%s is not reached: %s" % (url, getattr(error, "reason", error))) from None
    return bytes(text)


def download(url: str, headers: Mapping[str, str], file: File, folder: str) -> None:
    """Download one file into a folder, unless it is already there.

    :raises Failed: nothing wrong is left under the file's name.
    """
    path = os.path.join(folder, file.path)
    if os.path.exists(path) and os.path.getsize(path) == file.size:
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = path + ".part"
    digest = _Digest(file)
    with open(part, "ab+") as target:
        target.seek(0)
        have = 0
        for chunk in chunks(target.read):
            digest.update(chunk)
            have += len(chunk)
        if have > file.size:
            target.truncate(0)
            digest, have = _Digest(file), 0
        left, pace = ATTEMPTS, _Pace(url)
        while have < file.size:
            try:
                with get(url, headers, have) as answer:
                    if answer.status != 206:  # the server sends all of it
                        target.truncate(0)
                        digest, have = _Digest(file), 0
                    for chunk in chunks(answer.read1):
                        target.write(chunk)
                        pace.count(len(chunk))
                        digest.update(chunk)
                        have, left = have + len(chunk), ATTEMPTS
                        if have > file.size:
                            raise Failed("%s is longer than the %d bytes that are listed" % (url, file.size))
                if have < file.size:
                    raise http.client.IncompleteRead(b"", file.size - have)
            except Failed as error:
                if not isinstance(error.__cause__, urllib.error.HTTPError) or error.__cause__.code < 500:
                    if have > file.size:
                        os.unlink(part)
                    raise
                left = _again(left, url, have, file, error)
            except (OSError, http.client.HTTPException) as error:
                left = _again(left, url, have, file, error)
        target.flush()
        os.fsync(target.fileno())
    if digest.wrong():
        os.unlink(part)
        raise Failed("%s has %s; expected %s" % (url, digest.found(), digest.expected))
    os.rename(part, path)


def _again(left: int, url: str, have: int, file: File, error: Exception) -> int:
    """One attempt less; a broken connection is met with patience."""
    if left <= 1:
        raise Failed(
            "%s: %s, after %d of %d bytes and %d attempts; run it again to resume"
            % (url, error, have, file.size, ATTEMPTS)
        ) from None
    # a hub that is overloaded is not asked again at once
    time.sleep(0.1 * 2 ** (ATTEMPTS - left))
    return left - 1


class _Pace:
    """Gives up a server that sends something all the time, but hardly anything."""

    def __init__(self, url: str) -> None:
        self.url, self._since, self._bytes = url, time.monotonic(), 0

    def count(self, more: int) -> None:
        self._bytes += more
        passed = time.monotonic() - self._since
        if passed < PERIOD:
            return
        if self._bytes < passed * SLOWEST:
            raise Failed(
                "%s: %d bytes came in %d s; expected at least %d a second" % (self.url, self._bytes, passed, SLOWEST)
            )
        self._since, self._bytes = time.monotonic(), 0


class _Digest:
    """The checksum that the hub lists for a file: SHA-256, or git's own."""

    def __init__(self, file: File) -> None:
        self.expected = file.sha256 or file.blob
        self._digest: Any = hashlib.sha256() if file.sha256 else hashlib.sha1()
        if not file.sha256:
            self._digest.update(b"blob %d\0" % file.size)

    def update(self, chunk: bytes) -> None:
        self._digest.update(chunk)

    def found(self) -> str:
        return self._digest.hexdigest()

    def wrong(self) -> Optional[bool]:
        return self.expected is not None and self.found() != self.expected
