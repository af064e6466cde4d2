# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LoRA adapters of an instance: where they are, their rank, and what keeps them from being loaded."""

from __future__ import annotations

import os
from typing import Any, List, Mapping, NamedTuple, Sequence

from ..hf_model import checkpoint
from ..serving.model import Host
from ..toolbox.errors import Refused

LORA_RANK = 16
"""vLLM's default of ``max-lora-rank``."""
_RANKS = (LORA_RANK, 32, 64, 128, 256, 512)
"""Values of it that every version knows."""
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")


class Adapter(NamedTuple):
    """An adapter, by the name that clients use."""

    name: str
    path: str
    rank: int
    """0 if it is not on this host yet."""


def read(options: Mapping[str, Any], host: Host) -> List[Adapter]:
    """The adapters of an instance, in the order of their names.

    :raises Refused: one is missing, or is not an adapter.
    """
    return [
        _adapter(name, options["model_paths"].get(path, path), options["user"], host)
        for name, path in sorted((options["lora_adapters"] or {}).items())
    ]


def rank_limit(adapters: Sequence[Adapter]) -> int:
    """The ``max-lora-rank`` that all of them need.

    :raises Refused: one has a higher rank than vLLM can serve.
    """
    highest = max(adapters, key=lambda adapter: adapter.rank)
    fitting = [rank for rank in _RANKS if rank >= highest.rank]
    if not fitting:
        raise Refused(
            "lora_adapters.%s: its rank is %d; vLLM serves ranks up to %d" % (highest.name, highest.rank, _RANKS[-1])
        )
    return fitting[0]


def check_readable(adapter: Adapter, user: str) -> None:
    """:raises Refused: the user of the instance cannot read its configuration or its weights."""
    # a converged host does not need it
    from ..serving import access

    for name in ("adapter_config.json", *_WEIGHTS):
        path = os.path.join(adapter.path, name)
        if os.path.exists(path):
            access.check_readable("lora_adapters.%s" % adapter.name, path, user)


def _adapter(name: str, path: Any, user: str, host: Host) -> Adapter:
    where = "lora_adapters.%s: " % name
    if not isinstance(path, str) or not path.startswith("/"):
        raise Refused(where + "%r is neither the path of a directory nor the name of a downloaded model" % (path,))
    if host.check_mode and not os.path.lexists(path):
        host.warn(where + "there is no directory %s on this host yet" % path)
        return Adapter(name, path, 0)
    rank = _rank(checkpoint.document(path, "adapter_config.json", user))
    if not rank:
        raise Refused(
            where + "%s has no adapter_config.json with a rank (r) that %s can read; expected a LoRA adapter as PEFT "
            "saves it" % (path, user)
        )
    if not any(os.path.isfile(os.path.join(path, weights)) for weights in _WEIGHTS):
        raise Refused(where + "%s has no weights; expected %s" % (path, " or ".join(_WEIGHTS)))
    return Adapter(name, path, rank)


def _rank(config: Mapping[str, Any]) -> int:
    patterns = config.get("rank_pattern")
    given = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    ranks = [rank for rank in given if isinstance(rank, int) and not isinstance(rank, bool) and rank > 0]
    return max(ranks, default=0)
