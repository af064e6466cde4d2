# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model will take of each GPU, before it is loaded. Pure.

Rules of Ollama 0.30 and later: without spread the GPU with the most free memory takes the model when the file and its
cache fill at most 80 % of what is free there; else all GPUs share it, layer by layer, in proportion to their free
memory, and llama.cpp leaves 1024 MiB free on each. What each buffer takes was fitted to a real worker (llama.cpp
b10488, CUDA 13) on four H200s: Llama shapes of 8B, 32B and 70B, one to four GPUs, within 5 % on each GPU.

Layers with a sliding window are counted with the whole context, as Ollama's own prediction does: the truth is less.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from .gguf import Header

MIB = 1 << 20
GIB = 1 << 30

CONTEXT_BYTES = 528 * MIB  # a CUDA context, on every GPU that the worker opens
KERNEL_BYTES = 62 * MIB  # kernels and cuBLAS, on every GPU that computes
MARGIN_BYTES = 1024 * MIB  # that llama.cpp leaves free on each GPU (LLAMA_ARG_FIT_TARGET)
SINGLE_SHARE = 0.8  # of one GPU's free memory, up to which Ollama puts a model there
BATCH = 512  # tokens computed at once; more where a long context has room for it
# tokens of context above which Ollama computes more at once, how many, the share of the free memory that cache and
# weights may have then, and the room that it needs in addition
_LARGER_BATCHES = ((32768, 2048, 0.60, 2 * GIB), (4096, 1024, 0.75, 768 * MIB))

# bytes of one element of the cache, by type
_ELEMENTS = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32}
_ELEMENTS.update({"q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32})


class Serving(NamedTuple):
    """How a server loads and serves a model."""

    parallel: int = 1
    spread: bool = False
    cache_type: str = "f16"
    flash_attention: bool = True
    """Whether it may use it."""


_DEFAULTS = Serving()


class Share(NamedTuple):
    """What one GPU takes, in bytes."""

    gpu: int
    """Position in the list of GPUs that was given."""
    layers: int
    weights: int
    cache: int
    compute: int

    @property
    def buffers(self) -> int:
        """What the engine itself reports."""
        return self.weights + self.cache + self.compute

    @property
    def held(self) -> int:
        """What NVML will show."""
        return self.buffers + CONTEXT_BYTES + (KERNEL_BYTES if self.buffers else 0)


class Estimate(NamedTuple):
    fits: bool
    """Whether every layer finds room on the GPUs; otherwise a part runs on the CPU, or the load fails."""
    spread: bool
    context: int
    parallel: int
    cache: int
    """Bytes of the KV cache on all GPUs."""
    shares: Tuple[Share, ...]
    missing: int
    """Bytes that are too few on the GPU that lacks most; 0 when it fits."""

    @property
    def buffers(self) -> int:
        return sum(share.buffers for share in self.shares)

    @property
    def held(self) -> int:
        return sum(share.held for share in self.shares)


def automatic_contexts(total_bytes: int, trained: int) -> List[int]:
    """The contexts that Ollama tries in turn when none is set, by the memory of all its GPUs (since 0.15.5)."""
    steps = [262144, 32768, 4096]
    first = 0 if total_bytes >= 47 * GIB else 1 if total_bytes >= 23 * GIB else 2
    return sorted({min(step, trained or step) for step in steps[first:]}, reverse=True)


def contexts(wanted: int, header: Header, total_bytes: int) -> List[int]:
    """The contexts to try in turn.

    :param wanted: tokens that the request, the model or the server names, the first of them that does; 0: none.
    :param total_bytes: memory of all GPUs of the server.
    """
    if not wanted:
        return automatic_contexts(total_bytes, header.context)
    return [min(wanted, header.context or wanted)]


def cache_bytes(header: Header, context: int, parallel: int = 1, cache_type: str = "f16") -> List[int]:
    """Bytes of the KV cache by layer.

    :param context: tokens of one sequence.
    :param parallel: sequences at a time; each has its own context.
    :param cache_type: of keys and values, as in OLLAMA_KV_CACHE_TYPE.
    """
    per_head = (header.key_length + header.value_length) * _ELEMENTS.get(cache_type or "f16", 2.0)
    return [int(context * parallel * per_head * heads) for heads in header.kv_heads]


def estimate(header: Header, free: Sequence[int], contexts: Sequence[int], serving: Serving = _DEFAULTS) -> Estimate:
    """Where the model will go.

    :param free: free bytes of each GPU that the server may use; at least one.
    :param contexts: tokens of context to try in turn, at least one; the first that fits is taken, else the last.
    """
    for context in contexts:
        found = _estimate(header, list(free), context, serving)
        if found.fits or context == contexts[-1]:
            break
    return found


def _estimate(header: Header, free: List[int], context: int, serving: Serving) -> Estimate:
    parallel, spread, cache_type, flash_attention = serving
    cache = cache_bytes(header, context, parallel, cache_type)
    least_heads = min([heads for heads in header.kv_heads if heads] or [0])
    # Ollama's own prediction: always f16, always the smallest number of heads
    predicted = header.file_bytes + int(
        2 * header.layers * least_heads * (header.embedding // header.heads) * context * parallel * 2
    )
    roomiest = max(range(len(free)), key=lambda index: (free[index], -index))
    if len(free) == 1 or (not spread and predicted <= SINGLE_SHARE * free[roomiest]):
        places = [roomiest]
    else:
        places = list(range(len(free)))
    # the worker opens its context before it looks at what is free
    room = [max(0, free[index] - CONTEXT_BYTES) for index in places]
    cells = context * parallel
    batch = _batch(cells, predicted, sum(free[index] for index in places)) if flash_attention else BATCH
    shares = _split(header, cache, cells, batch, places, room)
    missing = max([share.buffers + MARGIN_BYTES - left for share, left in zip(shares, room)] + [0])
    return Estimate(
        fits=missing <= 0,
        spread=len(places) > 1,
        context=context,
        parallel=parallel,
        cache=sum(cache),
        shares=tuple(shares),
        missing=missing,
    )


def _batch(cells: int, predicted: int, available: int) -> int:
    """Tokens that the worker computes at once, as Ollama chooses where no request or model sets it."""
    for above, batch, share, besides in _LARGER_BATCHES:
        room = SINGLE_SHARE * available - predicted
        if cells > above and predicted <= share * available and besides <= room:
            return batch
    return BATCH


def _split(header: Header, cache: List[int], cells: int, batch: int, places: List[int], room: List[int]) -> List[Share]:
    """Layers, the output counted as one, in proportion to the room on each GPU, in their order."""
    count, whole = header.layers + 1, float(sum(room) or 1)
    bounds = [sum(room[: position + 1]) / whole for position in range(len(room))]
    of_gpu = [min(bisect_right(bounds, layer / count), len(places) - 1) for layer in range(count)]
    several = len(places) > 1
    shares = []
    for position, index in enumerate(places):
        mine = [layer for layer in range(count) if of_gpu[layer] == position]
        repeating = [layer for layer in mine if layer < header.layers]
        weights = sum(header.layer_bytes[layer] for layer in repeating)
        last = header.layers in mine
        if last:
            weights += header.output_bytes
        shares.append(
            Share(
                gpu=index,
                layers=len(mine),
                weights=weights,
                cache=sum(cache[layer] for layer in repeating),
                compute=_compute(header, cells, batch, several, last) if mine or not position else 0,
            )
        )
    return shares


def _compute(header: Header, cells: int, batch: int, several: bool, last: bool) -> int:
    """The compute buffer of one GPU; on several GPUs the worker keeps four copies of input and mask."""
    row = batch * 4  # one number for each token of a batch
    hidden, mask = header.embedding * row, cells * batch * 2
    size = 3 * (header.forward * row + hidden) + mask
    if last:
        size = max(size, header.vocabulary * row + hidden)  # the logits
    return size + (4 * hidden + 3 * mask if several else 0)


def describe(found: Estimate, names: Sequence[Any]) -> Dict[str, Any]:
    """The estimate for a module's result.

    :param names: what stands for each GPU of the list that was given, such as its index.
    """
    return {
        "fits": found.fits,
        "spread": found.spread,
        "context": found.context,
        "parallel": found.parallel,
        "cache_bytes": found.cache,
        "buffer_bytes": found.buffers,
        "held_bytes": found.held,
        "missing_bytes": found.missing,
        "gpus": [
            {
                "index": names[share.gpu],
                "layers": share.layers,
                "weight_bytes": share.weights,
                "cache_bytes": share.cache,
                "compute_bytes": share.compute,
                "held_bytes": share.held,
            }
            for share in found.shares
        ],
    }


def shortage(header: Header, found: Estimate, free: Sequence[int]) -> str:
    """Why a model does not fit, in figures."""
    parameters = header.parameters
    return (
        "does not fit: %s, %s, %d layers and %.1f GiB of cache (context %d × %d) take %.1f GiB of GPU memory; "
        "free are %s GiB on %d GPUs, of which 1 GiB each stays free; the fullest lacks %.1f GiB"
        % (
            "%.1f billion parameters" % (parameters / 1e9) if parameters >= 1e8 else "%d parameters" % parameters,
            header.quantization,
            header.layers,
            found.cache / GIB,
            found.context,
            found.parallel,
            found.held / GIB,
            " + ".join("%.1f" % (room / GIB) for room in free),
            len(free),
            found.missing / GIB,
        )
    )
