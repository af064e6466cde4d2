# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model hub offers: its listings as files with sizes and checksums, and which of them a server needs. Pure."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
from typing import Any, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ..toolbox.errors import Failed, Refused

MARKER = "gpufleet.json"
"""File in the folder of a whole revision; no file of a model may have this name."""
ENDPOINTS = {"huggingface": "https://huggingface.co", "modelscope": "https://modelscope.cn"}
BRANCHES = {"huggingface": "main", "modelscope": "master"}

#: The same weights in formats that are not used where there are safetensors.
OTHER_FORMATS = (
    "*.bin",
    "*.pth",
    "*.pt",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.onnx_data*",
    "*.ot",
    "*.gguf",
    "original/*",
)


_MODULE = re.compile(r"[0-9]+_[A-Za-z]+/")
"""Folder of a module of sentence-transformers, whose weights may be in another format than the model's."""
_PRINTED = re.compile(r"[^\x00-\x1f\x7f]+\Z")
_REVISION = re.compile(r"(?![-./])(?!.*(?:\.\.|//|@\{))[^\s~^:?*\[\\\x00-\x1f\x7f]+\Z")
"""What git takes as the name of a branch or tag, and a commit."""


class File(NamedTuple):
    """A file of a model as a hub lists it. One of the checksums is there, unless the hub gives none."""

    path: str
    size: int
    sha256: Optional[str] = None
    blob: Optional[str] = None
    """Git's checksum of a small file."""


def listing_url(source: str, endpoint: str, name: str, revision: str) -> str:
    """The URL at which a hub lists the files of a revision."""
    if source == "huggingface":
        return "%s/api/models/%s/revision/%s?blobs=true" % (endpoint, quote(name), quote(revision, safe=""))
    return "%s/api/v1/models/%s/repo/files?Recursive=true&Revision=%s" % (
        endpoint,
        quote(name),
        quote(revision, safe=""),
    )


def file_url(source: str, endpoint: str, name: str, revision: str, path: str) -> str:
    """Where a file is."""
    if source == "huggingface":
        return "%s/%s/resolve/%s/%s" % (endpoint, quote(name), quote(revision, safe=""), quote(path))
    return "%s/api/v1/models/%s/repo?Revision=%s&FilePath=%s" % (
        endpoint,
        quote(name),
        quote(revision, safe=""),
        quote(path, safe=""),
    )


def parted(url: str) -> Tuple[str, str, str]:
    """An http or https URL without its user and password, and these two; any other URL as it is."""
    parts = urlsplit(url)
    who, at, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not at:
        return url, "", ""
    user, _colon, password = who.partition(":")
    return urlunsplit(parts._replace(netloc=host)), unquote(user), unquote(password)


def secrets(url: Optional[str]) -> List[str]:
    """What of a URL must not be shown: its password, or a token in place of a user."""
    who, at, _host = urlsplit(url or "").netloc.rpartition("@")
    password = who.partition(":")[2]
    if password:
        return sorted({password, unquote(password)})
    return [who + "@"] if at and (url or "").startswith(("http://", "https://")) else []


def headers(source: str, token: Optional[str], user: str = "", password: str = "") -> Mapping[str, str]:
    """The credentials sent to a hub: a token, or the user and password in its URL."""
    if not token:
        who = ("%s:%s" % (user, password)).encode()
        return {"Authorization": "Basic " + base64.b64encode(who).decode()} if user or password else {}
    return {"Authorization": "Bearer " + token} if source == "huggingface" else {"Cookie": "m_session_id=" + token}


def read_listing(source: str, text: bytes) -> Tuple[str, List[File]]:
    """The commit and the files.

    ModelScope reports no commit; a hash of all files is used instead.

    :raises Failed: it is not a listing, or names a file outside of the model.
    """
    try:
        told = json.loads(text.decode("utf-8"))
        if source == "huggingface":
            commit, files = str(told["sha"]), [_huggingface(one) for one in told["siblings"]]
        else:
            files = [_modelscope(one) for one in told["Data"]["Files"] if one.get("Type") != "tree"]
            lines = sorted("%s %d %s" % (file.path, file.size, file.sha256) for file in files)
            commit = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:40]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed("its answer is not a listing of files (%s: %s)" % (type(error).__name__, error)) from None
    check(commit, files)
    return commit, files


def check(commit: str, files: Sequence[File]) -> None:
    """:raises Failed: something would lie outside of the model's folders."""
    if not re.match(r"[0-9a-f]{40,64}\Z", commit):
        raise Failed("it names %r as the commit; expected hexadecimal digits" % commit)
    names = {file.path for file in files}
    for file in files:
        parts = file.path.split("/")
        if (
            not _PRINTED.match(file.path)
            or any(part in ("", ".", "..", ".git") for part in parts)
            or parts[0] == MARKER
            or (file.path.endswith(".part") and file.path[:-5] in names)  # the name of an unfinished file
        ):
            raise Failed("it lists the unsafe name %r" % file.path)
        if file.size < 0 or not re.match(r"[0-9a-f]{64}\Z", file.sha256 or "0" * 64):
            raise Failed(
                "it lists %r with size %d and SHA-256 %r; expected no negative size and 64 hexadecimal digits"
                % (file.path, file.size, file.sha256)
            )


def wanted(files: Sequence[File], include: Iterable[str], exclude: Iterable[str]) -> List[File]:
    """The files to download: those that match, without weights in other formats where there are safetensors.

    :raises Failed: none is left.
    """
    include, exclude = list(include), list(exclude)
    safe = {_module(file.path) for file in files if file.path.endswith(".safetensors")} if not include else ()
    kept = [
        file
        for file in files
        if (not include or _matches(file.path, include))
        and not _matches(file.path, exclude)
        and not (_module(file.path) in safe and _matches(file.path, OTHER_FORMATS))
    ]
    if not kept:
        raise Failed("of its %d files none matches include and exclude" % len(files))
    return sorted(kept)


def check_name(name: str) -> None:
    """:raises Refused: it is not ``ORGANISATION/NAME``."""
    if not re.match(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z", name):
        raise Refused("name is %r; expected ORGANISATION/NAME as the hub writes it" % name)


def check_revision(revision: str) -> None:
    """:raises Refused: it cannot be the name of a branch or tag, nor a commit."""
    if not _REVISION.match(revision):
        raise Refused("revision is %r; expected a commit, or the name of a branch or tag" % revision)


def _module(path: str) -> str:
    """The module of sentence-transformers to which a file belongs; empty for the model itself."""
    found = _MODULE.match(path)
    return found.group() if found else ""


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _huggingface(one: Mapping[str, Any]) -> File:
    lfs = one.get("lfs") or {}
    return File(one["rfilename"], int(lfs.get("size") or one["size"]), lfs.get("sha256"), one.get("blobId"))


def _modelscope(one: Mapping[str, Any]) -> File:
    return File(one["Path"], int(one["Size"]), one.get("Sha256"))
