# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's config.json as far as it says what the model needs of GPUs. Pure."""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional

ELEMENT = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
"""Bytes of a number, by the names of types."""


_NESTED = ("thinker_config", "text_config", "llm_config", "language_config")
"""Where a model of several parts keeps what describes its language model, outermost first."""
_LEFT_OUT = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    }
}
"""By model type, defaults of transformers that files on the hub leave out."""
_UNLIKE = (
    *("ssm", "mamba", "linear_attn", "linear_num_", "attn_type_list", "layers_block_type", "block_configs"),
    *("full_attention_interval", "attention_chunk_size", "hybrid"),
)
"""Parts of keys of models whose layers do not all cache every token."""


class Shape(NamedTuple):
    """Dimensions of a model; None: its config.json does not tell."""

    layers: Optional[int]
    heads: Optional[int]
    kv_heads: Optional[int]
    head_size: Optional[int]
    element: int
    """Bytes of a number as it lies in the files."""
    latent: int
    """Numbers that a layer caches for a token where all heads share them (multi-head latent attention); else 0."""
    plain: bool
    """Whether every layer caches every token: no sliding window, no recurrent layer."""
    quantized: bool
    cache_dtype: str
    """Data type of the cache that comes with the weights; ``auto``: that of the model."""
    experts: bool
    """Whether it is a mixture of experts."""
    inner_size: Optional[int]
    """Width of an expert, or of the multi-layer perceptron of a model without experts."""
    block: int
    """Side of the blocks that share a scale in quantised weights; 1: none are known."""


def text_of(config: Mapping[str, Any]) -> Dict[str, Any]:
    """The language model's part of a config.json; keys that it lacks are taken from the whole."""
    inner = dict(config)
    for name in _NESTED:
        part = inner.get(name)
        if isinstance(part, dict):
            inner.update(part)
    return {**_LEFT_OUT.get(str(inner.get("model_type")), {}), **inner}


def read(config: Mapping[str, Any]) -> Shape:
    """The shape in a config.json; a multimodal model's is that of its text part."""
    inner = text_of(config)

    def number(*names: str) -> Optional[int]:
        for name in names:
            value = inner.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    heads = number("num_attention_heads", "n_head", "num_heads")
    kv_heads = number("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num") or heads
    if inner.get("multi_query") and not inner.get("new_decoder_architecture"):
        kv_heads = 1
    hidden = number("hidden_size", "n_embd", "d_model")
    head_size = number("head_dim") or (hidden // heads if hidden and heads else None)
    kinds = inner.get("layer_types")
    window = inner.get("sliding_window") and inner.get("use_sliding_window") is not False
    plain = not window and not any(part in key for part in _UNLIKE for key in inner if inner[key])
    if isinstance(kinds, list):
        plain = all(kind in ("attention", "full_attention") for kind in kinds)
    rank = number("kv_lora_rank")
    quantization = inner.get("quantization_config")
    experts = (number("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts") or 1) > 1
    return Shape(
        layers=number("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        element=ELEMENT.get(str(inner.get("dtype") or inner.get("torch_dtype") or ""), 2),
        latent=(rank + (number("qk_rope_head_dim") or 0)) if rank else 0,
        plain=plain,
        quantized=isinstance(quantization, dict),
        cache_dtype=_cache_dtype(quantization) if isinstance(quantization, dict) else "auto",
        experts=experts,
        inner_size=number(
            "moe_intermediate_size" if experts and "moe_intermediate_size" in inner else "intermediate_size"
        ),
        block=_block(quantization) if isinstance(quantization, dict) else 1,
    )


def _cache_dtype(quantization: Mapping[str, Any]) -> str:
    """The data type of the cache in a quantization_config of ModelOpt."""
    if not str(quantization.get("quant_method")).startswith("modelopt"):
        return "auto"
    inner = quantization.get("quantization")
    for place in (inner if isinstance(inner, dict) else {}, quantization):
        named = place.get("kv_cache_scheme") or place.get("kv_cache_quant_algo")
        if isinstance(named, dict):
            return "fp8" if (named.get("type"), named.get("num_bits")) == ("float", 8) else "other"
        if named:
            return str(named).lower()
    return "auto"


def _block(quantization: Mapping[str, Any]) -> int:
    sides = quantization.get("weight_block_size")
    if isinstance(sides, list) and sides and isinstance(sides[0], int) and sides[0] > 0:
        return sides[0]
    return 1
