# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's files on this host: where they are, what they weigh, what their config.json says.

The user of the service may have put them there, so nothing in them is followed, waited for or believed to be small.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
from typing import Any, Dict, Mapping, Optional

from ..toolbox.errors import Failed
from ..toolbox.files import UnsafePath, read_regular

_LARGEST = 64 << 20  # bytes of an index; those of the largest models have ten million
_DIGITS = 15  # of a whole number: more is none that a model has, and Python takes minutes for millions


def locate(model: str, cache: str, user: str, revision: Optional[str] = None) -> Optional[str]:
    """The directory of a model on this host; None when it is not there yet.

    :param model: a path, or a name such as ``org/model``.
    :param cache: where Hugging Face's cache is, with folders such as ``models--org--model``.
    :param user: whose files these may be.
    """
    if model.startswith("/"):
        return model if os.path.isdir(model) else None
    folder = os.path.join(cache, "models--" + model.replace("/", "--"))
    commit = revision or "main"
    said = _read(os.path.join(folder, "refs", commit), 200, user)
    if said is not None:  # a revision may be a commit itself
        commit = said.decode("utf-8", "replace").strip()
        if not re.match(r"[A-Za-z0-9][\w.-]*\Z", commit):
            return None
    path = os.path.join(folder, "snapshots", commit)
    return path if os.path.isdir(path) else None


def cache_of(options: Mapping[str, Any], environment: Mapping[str, str], home: str) -> str:
    """Where a server keeps what it fetches from Hugging Face."""
    if options.get("download_dir"):
        return str(options["download_dir"])
    if environment.get("HF_HUB_CACHE"):
        return environment["HF_HUB_CACHE"]
    return os.path.join(environment.get("HF_HOME") or os.path.join(home, ".cache", "huggingface"), "hub")


def config(path: str, user: str) -> Dict[str, Any]:
    """What config.json says; empty when there is none that can be read."""
    return document(path, "config.json", user)


def document(path: str, name: str, user: str) -> Dict[str, Any]:
    """The object in a JSON file of a model's directory; empty if there is none that can be read."""
    return _document(os.path.join(path, name), user)


def weight_bytes(path: str, user: str) -> int:
    """Bytes of the weights: what an index of safetensors says, else the sizes of the files; 0 when there are none.

    Mistral's repositories have the same weights a second time, as ``consolidated*``; one of the two is loaded.
    """
    for index in sorted(glob.glob(os.path.join(glob.escape(path), "*.safetensors.index.json")), key=_is_second):
        metadata = _document(index, user).get("metadata")
        size = metadata.get("total_size") if isinstance(metadata, dict) else None
        if isinstance(size, (int, float)) and 0 < size < 10**_DIGITS:
            return int(size)
    for pattern in ("*.safetensors", "*.bin", "*.pt", "*.gguf"):
        files = glob.glob(os.path.join(glob.escape(path), pattern))
        first = [file for file in files if not _is_second(file)]
        if files:
            return sum(map(_size, first or files))
    return 0


def _is_second(path: str) -> bool:
    return os.path.basename(path).startswith("consolidated")


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # a link that leads nowhere
        return 0


def _document(path: str, user: str) -> Dict[str, Any]:
    """The object in a file of JSON; empty when there is none that can be read."""
    content = _read(path, _LARGEST, user)
    try:
        document = json.loads(content or b"", parse_int=_whole)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _whole(digits: str) -> Optional[int]:
    return int(digits) if len(digits) <= _DIGITS else None


def _read(path: str, limit: int, user: str) -> Optional[bytes]:
    """The beginning of a regular file; None when there is none that ``user`` may read.

    The hub's cache is made of links: one is followed with the rights of that user, to whom nothing else leads.
    """
    try:
        return read_regular(path, limit)
    except UnsafePath:
        pass
    except OSError:
        return None
    from ..toolbox import users

    ids = users.ids_of(user) or users.Ids(users.STRANGER, users.STRANGER, [])
    try:
        return bytes.fromhex(users.as_user(ids, lambda: _followed(path, limit), 20))
    except (OSError, Failed):
        return None


def _followed(path: str, limit: int) -> str:
    """The beginning of the regular file to which a path leads, as JSON can tell it."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return ""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as stream:
        return stream.read(limit).hex() if stat.S_ISREG(os.fstat(stream.fileno()).st_mode) else ""
