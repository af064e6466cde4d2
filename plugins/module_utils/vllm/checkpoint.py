# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's files on this host: where they are, what they weigh, what their config.json says."""

from __future__ import annotations

import glob
import json
import os
from typing import Any, Dict, Mapping, Optional


def locate(model: str, cache: str, revision: Optional[str] = None) -> Optional[str]:
    """The directory of a model on this host; None when it is not there yet.

    :param model: a path, or a name such as ``org/model``.
    :param cache: where Hugging Face's cache is, with folders such as ``models--org--model``.
    """
    if model.startswith("/"):
        return model if os.path.isdir(model) else None
    folder = os.path.join(cache, "models--" + model.replace("/", "--"))
    commit = revision or "main"
    try:
        with open(os.path.join(folder, "refs", commit), encoding="utf-8") as file:
            commit = file.read().strip()
    except OSError:
        pass  # a revision may be a commit itself
    path = os.path.join(folder, "snapshots", commit)
    return path if os.path.isdir(path) else None


def cache_of(options: Mapping[str, Any], environment: Mapping[str, str], home: str) -> str:
    """Where vLLM keeps what it fetches from Hugging Face."""
    if options.get("download_dir"):
        return str(options["download_dir"])
    if environment.get("HF_HUB_CACHE"):
        return environment["HF_HUB_CACHE"]
    return os.path.join(environment.get("HF_HOME") or os.path.join(home, ".cache", "huggingface"), "hub")


def config(path: str) -> Dict[str, Any]:
    """What config.json says; empty when there is none that can be read."""
    try:
        with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def weight_bytes(path: str) -> int:
    """Bytes of the weights: what an index of safetensors says, else the sizes of the files; 0 when there are none."""
    for index in glob.glob(os.path.join(glob.escape(path), "*.safetensors.index.json")):
        try:
            with open(index, encoding="utf-8") as file:
                return int(json.load(file)["metadata"]["total_size"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for pattern in ("*.safetensors", "*.bin", "*.pt", "*.gguf"):
        files = glob.glob(os.path.join(glob.escape(path), pattern))
        if files:
            return sum(os.path.getsize(file) for file in files)
    return 0
