# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of a program: fetched or taken from this host, checked against their checksum, unpacked."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from contextlib import contextmanager
from typing import Any, BinaryIO, Callable, Iterator, Optional

from ..converge.model import StepError
from ..toolbox.errors import Failed
from .sources import UNVERIFIED, Source, is_url, without_secrets

LARGEST = 32 << 30
"""Bytes of an archive."""
STALL = 60.0
"""Seconds within which at least ``LEAST`` bytes must come."""
LEAST = 1 << 20
_CHUNK = 1 << 20


def lay(source: Source, folder: str) -> None:
    """Unpack an archive into a folder, over what is there; only once its checksum is right.

    :raises StepError: it cannot be fetched, differs from its checksum, or is not a release.
    """
    from ..toolbox.trusted import intruder

    archive, download = source.place, folder + ".download"
    try:
        if is_url(archive):
            fetch(archive, download, source.checksum)
            archive = download
        elif intruder(os.path.abspath(archive)):  # it could be another one by the time it is unpacked
            _copy(archive, download)
            archive = download
            _compare(source.place, sha256_of(archive), source.checksum)
        else:
            _compare(archive, sha256_of(archive), source.checksum)
        extract(archive, folder, without_secrets(source.place))
    finally:
        if os.path.lexists(download):
            os.unlink(download)


def sha256_of(path: str) -> str:
    """:raises StepError: the file cannot be read."""
    import hashlib

    digest = hashlib.sha256()
    with _reading(path) as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _reading(path: str) -> Iterator[BinaryIO]:
    """A regular file, opened to be read; a pipe is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise StepError("The archive %s is not a file" % path)
            yield file
    except OSError as error:
        raise StepError("The archive %s cannot be read: %s" % (path, error.strerror)) from None


def _copy(path: str, to: str) -> None:
    with _reading(path) as file:
        try:
            _check_size(os.fstat(file.fileno()).st_size, to)
            with _created(to) as copy:
                for chunk in iter(lambda: file.read(_CHUNK), b""):
                    copy.write(chunk)
        except OSError as error:
            raise StepError("%s cannot be copied to %s: %s" % (path, os.path.dirname(to), _words(error))) from None


@contextmanager
def _created(path: str) -> Iterator[BinaryIO]:
    if os.path.lexists(path):
        os.unlink(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        yield file


def _compare(place: str, found: str, expected: Optional[str]) -> None:
    if expected not in (UNVERIFIED, found):
        raise StepError(
            "%s has the SHA-256 %s; expected %s (archive_checksum)" % (without_secrets(place), found, expected)
        )


# --- over the network


def fetch(url: str, path: str, checksum: Optional[str]) -> None:
    """Download to a file, and keep it only with the right digest. A name and password in the URL go to its host alone.

    :raises StepError: the server refuses, cannot be reached, is too slow, or sends something else.
    """
    import http.client
    import urllib.error

    said = without_secrets(url)
    try:
        digest = _download(url, path)
    except urllib.error.HTTPError as error:
        hint = "; check whether that mirror has this version" if error.code == 404 else ""
        raise StepError("%s cannot be fetched: %s%s" % (said, error, hint)) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise StepError("%s cannot be fetched: %s" % (said, _words(error))) from None
    _compare(url, digest, checksum)


def _download(url: str, path: str) -> str:
    """The SHA-256 of what came."""
    import hashlib
    import urllib.request  # 46 ms, paid only when a release is fetched

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            if not may_redirect(req.full_url, newurl):
                raise OSError("the server redirects to %s; expected https" % without_secrets(newurl))
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    digest, got = hashlib.sha256(), 0
    with _no_stall() as alive, urllib.request.build_opener(Redirects()).open(_request(url), timeout=STALL) as source:
        length = int(source.headers.get("Content-Length") or -1)
        _check_size(length, path)
        with _created(path) as file:
            for chunk in iter(lambda: source.read1(_CHUNK), b""):
                got += len(chunk)
                if got > LARGEST:
                    _check_size(got, path)
                digest.update(chunk)
                file.write(chunk)
                alive(len(chunk))
    if 0 <= length != got:
        raise OSError("it ended after %d of %d bytes" % (got, length))
    return digest.hexdigest()


def may_redirect(url: str, to: str) -> bool:
    """Whether a server may send us elsewhere: not from https to anything that others can read and change."""
    return to.startswith("https://") or (to.startswith("http://") and url.startswith("http://"))


def _words(error: Exception) -> str:
    hint = "; free space on its file system" if getattr(error, "errno", 0) == errno.ENOSPC else ""
    said = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return (str(said) or type(error).__name__) + hint


def _check_size(size: int, path: str) -> None:
    if size > LARGEST:
        raise OSError("it has %d bytes or more; expected a release, of %d bytes at most" % (size, LARGEST))
    space = os.statvfs(os.path.dirname(path))
    if size > space.f_bavail * space.f_frsize:
        free = space.f_bavail * space.f_frsize
        words = "%s: it has %d bytes, and %d are free" % (os.strerror(errno.ENOSPC), size, free)
        raise OSError(errno.ENOSPC, words)


def _request(url: str) -> Any:
    """Name and password go into a header, which is not sent to where the server redirects."""
    import base64
    from urllib.parse import unquote, urlsplit, urlunsplit
    from urllib.request import Request

    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host)))
    if at:
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(unquote(login).encode()).decode())
    return request


@contextmanager
def _no_stall() -> Iterator[Callable[[int], None]]:
    """Call what it gives with the bytes that came; where too few come in time, whatever waits is interrupted.

    A time limit of the socket would not do: a byte now and then keeps it open.
    """
    import signal
    import threading

    def late(_number: int, _frame: Any) -> None:
        raise OSError(errno.ETIMEDOUT, "less than %d bytes came within %g s" % (LEAST, STALL))

    came = 0

    def alive(size: int) -> None:
        nonlocal came
        came += size
        if came >= LEAST:
            came = 0
            signal.setitimer(signal.ITIMER_REAL, STALL)

    if threading.current_thread() is not threading.main_thread():  # only there signals can be handled
        yield lambda size: None
        return
    former = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, STALL)
    try:
        yield alive
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


# --- unpacking


def without_zstd(archive: str) -> Optional[str]:
    """What keeps this host from unpacking an archive, as it is packed with zstd; None where the program is there."""
    if shutil.which("zstd"):
        return None
    managers = [name for name in ("apt-get", "dnf", "yum", "zypper") if shutil.which(name)]
    return (
        "%s is packed with zstd, and this host has no program zstd: %s; where that is not possible, repack it "
        "elsewhere, zstd -dc FILE.tar.zst | gzip >FILE.tgz, and declare that file as archive"
    ) % (without_secrets(archive), "%s install zstd" % managers[0] if managers else "install the package zstd")


def extract(archive: str, folder: str, origin: str) -> None:
    """Unpack a ``.tgz`` or ``.tar.zst``, owned by root, nothing outside ``folder``.

    :param origin: where it came from, for messages.
    :raises StepError: it is neither, is damaged, needs a program that is not there, or holds something unsafe.
    """
    import tarfile
    import zlib

    from ..toolbox import unpack

    with _reading(archive) as file:
        try:
            with _decompressed(file, origin) as stream:
                unpack.unpack(stream, folder)
        except Failed as error:
            raise StepError("%s %s: it is not a release" % (origin, error)) from None
        except (tarfile.TarError, EOFError, ValueError, zlib.error) as error:
            raise StepError("%s is damaged: %s" % (origin, error)) from None
        except OSError as error:
            if error.errno is None:  # gzip's own
                raise StepError("%s is damaged: %s" % (origin, error)) from None
            raise StepError(
                "%s cannot be unpacked to %s: %s" % (origin, os.path.dirname(folder), _words(error))
            ) from None


@contextmanager
def _decompressed(file: BinaryIO, origin: str) -> Iterator[Any]:
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        import gzip

        with gzip.GzipFile(fileobj=file) as stream:
            yield stream
        return
    if magic != b"\x28\xb5\x2f\xfd":
        raise StepError("%s is neither a .tgz nor a .tar.zst archive" % origin)
    missing = without_zstd(origin)
    if missing:
        raise StepError(missing)
    with subprocess.Popen(["zstd", "-dcq"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as zstd:
        try:
            yield zstd.stdout
            if zstd.wait():
                raise StepError("%s is damaged: zstd ends with status %d" % (origin, zstd.returncode))
        finally:
            zstd.kill()
