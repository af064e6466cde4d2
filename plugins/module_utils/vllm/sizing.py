# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model will take of each GPU, before it is started. Pure.

vLLM takes a share of each GPU's memory (gpu_memory_utilization), and gives what weights and computing leave of it to
the cache, which must hold one request of the longest context. Only what is certain to fail is refused: weights and that
cache alone. Buffers for computing, CUDA graphs and what torch takes besides depend on the version; ``RESERVE`` stands
for them where tokens are predicted.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

from ..hf_model.parallel import Parallel
from ..hf_model.shape import ELEMENT, Shape
from ..placement.memory import GIB, gib
from ..toolbox.errors import Refused

RESERVE = 2 * GIB
_CACHED = {**ELEMENT, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1}
"""Bytes of a cached number, by vLLM's names; what others take is not predicted."""


class Fit(NamedTuple):
    """What is known of one GPU, in bytes."""

    budget: int
    weights: int
    token: int
    """Of the cache, for one token; 0 where it is not known."""
    request: int
    """Of the cache, for one request of the longest context; 0 where that is not known."""

    @property
    def missing(self) -> int:
        return max(0, self.weights + self.request - self.budget)

    @property
    def tokens(self) -> Optional[int]:
        """About so many tokens will find room in the cache."""
        if not self.token:
            return None
        return max(0, self.budget - self.weights - RESERVE) // self.token


def budget(total: int, utilization: float) -> int:
    """Bytes that vLLM claims of a GPU."""
    return math.ceil(total * utilization)


def weights_loaded(stored: int, shape: Optional[Shape], dtype: str = "auto", quantization: Optional[str] = None) -> int:
    """Bytes that the weights take once they are loaded, at least."""
    if shape is None or shape.quantized:
        return stored
    if quantization:
        return stored // 4  # 4 bits of 16; more is not certain
    to = ELEMENT.get(dtype, min(shape.element, 2))  # "auto" halves what is stored as float32
    return stored * to // shape.element


def fit(
    shape: Optional[Shape],
    weights: int,
    total: int,
    parallel: Parallel,
    *,
    utilization: float,
    context: Optional[int] = None,
    dtype: str = "auto",
    cache_dtype: str = "auto",
    offload: int = 0,
) -> Fit:
    """How a model fits on GPUs of ``total`` bytes.

    Data parallel divides experts among all GPUs and copies the rest, whose size is not known: then the weights are the
    least that they can be.

    :param weights: bytes of all weights, loaded.
    :param context: tokens of the longest request; None: not known, or fitted by vLLM itself.
    :param offload: bytes of weights for each GPU that go to the host's memory.
    """
    token = _token(shape, parallel, dtype, cache_dtype) if shape else 0
    parts = parallel.world if shape and shape.experts else parallel.tensor * parallel.pipeline
    return Fit(
        budget=budget(total, utilization),
        weights=max(0, weights // parts - offload),
        token=token,
        request=token * (context or 0),
    )


def _token(shape: Shape, parallel: Parallel, dtype: str, cache_dtype: str) -> int:
    """Bytes of one token in the cache of one GPU; 0 where layers differ, or that is not known."""
    if not (shape.plain and shape.layers):
        return 0
    kind = shape.cache_dtype if cache_dtype == "auto" else cache_dtype
    element = _CACHED.get(kind, 0) if kind != "auto" else ELEMENT.get(dtype) or min(shape.element, 2)
    layers = -(-shape.layers // parallel.pipeline)
    if shape.latent:
        return layers * shape.latent * element
    if not (shape.kv_heads and shape.head_size):
        return 0
    return 2 * layers * max(1, shape.kv_heads // parallel.tensor) * shape.head_size * element


def check_fit(found: Fit, label: str, utilization: float, context: Optional[int]) -> None:
    """:raises Refused: with all numbers, and the longest context that would fit."""
    if not found.missing:
        return
    said = "GPU %s: vLLM takes %s of its memory, %s; the weights need %s of it" % (
        label,
        "%.4g" % utilization,
        gib(found.budget),
        gib(found.weights),
    )
    if found.request:
        said += " and the cache for one request of %d tokens %s" % (context or 0, gib(found.request))
    said += ": %s too little" % gib(found.missing)
    if found.tokens:
        advice = "about %d tokens would fit (max_model_len), or" % found.tokens
    else:
        advice = "choose"
    raise Refused("%s; %s more GPUs, a quantised model, or kv_cache_dtype: fp8" % (said, advice))
