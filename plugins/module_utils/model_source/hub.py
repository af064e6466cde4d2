# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model hub offers: its listings as files with sizes and checksums, and which of them a server needs. Pure."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from typing import Any, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import quote

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
    "*.onnx_data",
    "*.gguf",
    "original/*",
)


class HubError(Exception):
    """What a hub says is not what was expected, or the declaration is wrong."""


class File(NamedTuple):
    """A file of a model as a hub lists it. One of the checksums is there, unless the hub gives none."""

    path: str
    size: int
    sha256: Optional[str] = None
    blob: Optional[str] = None
    """Git's checksum of a small file."""


def listing_url(source: str, endpoint: str, name: str, revision: str) -> str:
    """Where a hub tells the files of a revision."""
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


def headers(source: str, token: Optional[str]) -> Mapping[str, str]:
    """How a hub is told who asks."""
    if not token:
        return {}
    return {"Authorization": "Bearer " + token} if source == "huggingface" else {"Cookie": "m_session_id=" + token}


def read_listing(source: str, text: bytes) -> Tuple[str, List[File]]:
    """The commit and the files.

    ModelScope tells no commit of the whole; a hash of all its files stands for it.

    :raises HubError: it is no listing, or names a file outside of the model.
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
        raise HubError("its answer is no listing of files (%s: %s)" % (type(error).__name__, error)) from None
    check(commit, files)
    return commit, files


def check(commit: str, files: Sequence[File]) -> None:
    """:raises HubError: something would lie outside of the model's folders."""
    if not re.match(r"[0-9a-f]{40,64}\Z", commit):
        raise HubError("it names %r as the commit; expected hexadecimal digits" % commit)
    for file in files:
        if file.path.startswith("/") or ".." in file.path.split("/") or "\0" in file.path or not file.path:
            raise HubError("it lists the unsafe name %r" % file.path)


def wanted(files: Sequence[File], include: Iterable[str], exclude: Iterable[str]) -> List[File]:
    """The files to have: those that match, less weights in other formats where there are safetensors.

    :raises HubError: none is left.
    """
    include, exclude = list(include), list(exclude)
    if not include and any(file.path.endswith(".safetensors") for file in files):
        exclude += OTHER_FORMATS
    kept = [
        file for file in files if (not include or _matches(file.path, include)) and not _matches(file.path, exclude)
    ]
    if not kept:
        raise HubError("of its %d files none matches include and exclude" % len(files))
    return sorted(kept)


def check_name(name: str) -> None:
    """:raises HubError: it is no ``ORGANISATION/NAME``."""
    if not re.match(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z", name):
        raise HubError("name is %r; expected ORGANISATION/NAME as the hub writes it" % name)


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _huggingface(one: Mapping[str, Any]) -> File:
    lfs = one.get("lfs") or {}
    return File(one["rfilename"], int(lfs.get("size") or one["size"]), lfs.get("sha256"), one.get("blobId"))


def _modelscope(one: Mapping[str, Any]) -> File:
    return File(one["Path"], int(one["Size"]), one.get("Sha256"))
