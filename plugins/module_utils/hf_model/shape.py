# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's config.json as far as it says what the model needs of GPUs. Pure."""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional

ELEMENT = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
"""Bytes of a number, by the names of types."""


class Shape(NamedTuple):
    """Dimensions of a model; None: its config.json does not tell."""

    layers: Optional[int]
    heads: Optional[int]
    kv_heads: Optional[int]
    head_size: Optional[int]
    context: Optional[int]
    """The longest context that vLLM takes without being forced."""
    element: int
    """Bytes of a number as it lies in the files."""
    latent: int
    """Numbers that a layer caches for a token where all heads share them (multi-head latent attention); else 0."""
    plain: bool
    """Whether every layer caches every token: no sliding window, no recurrent layer."""
    quantized: bool


def read(config: Mapping[str, Any]) -> Shape:
    """The shape in a config.json; a multimodal model's is that of its text part."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else None
    inner: Dict[str, Any] = dict(config, **(text or {}))

    def number(*names: str) -> Optional[int]:
        for name in names:
            value = inner.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    heads = number("num_attention_heads", "n_head", "num_heads")
    kv_heads = number("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num") or heads
    if inner.get("multi_query"):
        kv_heads = 1
    hidden = number("hidden_size", "n_embd", "d_model")
    head_size = number("head_dim") or (hidden // heads if hidden and heads else None)
    kinds = inner.get("layer_types")
    window = inner.get("sliding_window") and inner.get("use_sliding_window") is not False
    plain = not window and not any("ssm" in key or "mamba" in key for key in inner)
    if isinstance(kinds, list):
        plain = all(kind in ("attention", "full_attention") for kind in kinds)
    rank = number("kv_lora_rank")
    return Shape(
        layers=number("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        context=_context(inner, number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")),
        element=ELEMENT.get(str(inner.get("dtype") or inner.get("torch_dtype") or ""), 2),
        latent=(rank + (number("qk_rope_head_dim") or 0)) if rank else 0,
        plain=plain,
        quantized=isinstance(inner.get("quantization_config"), dict),
    )


def _context(inner: Mapping[str, Any], trained: Optional[int]) -> Optional[int]:
    """The trained context, longer by the factor of a rope scaling whose factor is not yet in it."""
    scaling = inner.get("rope_scaling") or inner.get("rope_parameters")
    if trained is None or not isinstance(scaling, dict):
        return trained
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    factor = scaling.get("factor")
    if kind in ("default", "su", "longrope", "llama3", "mrope") or not isinstance(factor, (int, float)):
        return trained
    if not 1 < factor < 1e6:  # nor is it NaN
        return trained
    original = scaling.get("original_max_position_embeddings")
    if kind == "yarn" and isinstance(original, int) and original > 0:
        trained = original
    return int(trained * factor)
