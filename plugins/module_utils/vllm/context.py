# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a request may be: a model's config.json, read by vLLM's own rules. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional

from ..hf_model.shape import text_of
from .releases import Release, yarn_is_applied

_LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
_ROPE = ("rope_parameters", "rope_scaling")
_NOT_SCALED = ("su", "longrope", "llama3", "deepseek_yarn", "deepseek_llama_scaling")


class Context(NamedTuple):
    """Tokens; None if config.json does not say."""

    longest: Optional[int]
    """The most that vLLM accepts without being forced."""
    default: Optional[int]
    """What it uses if ``max_model_len`` is left out."""


def overridden(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Dict[str, Any]:
    """A config.json with ``hf-overrides`` applied: sub-configs are merged, everything else is replaced."""
    merged = dict(config)
    for key, value in overrides.items():
        if key in _ROPE:  # two names of one thing
            for name in _ROPE:
                merged.pop(name, None)
        inner = merged.get(key)
        if key.endswith("_config") and isinstance(inner, dict) and isinstance(value, dict):
            value = overridden(inner, value)
        merged[key] = value
    return merged


def read(config: Mapping[str, Any], release: Release = ()) -> Context:
    """The context of a model.

    :param release: of vLLM; of an unknown one, the longer context is taken.
    """
    inner = text_of(config)
    named = [inner[name] for name in _LENGTHS if _length(inner.get(name))]
    if not named:
        return Context(None, None)
    longest = min(named)
    if _length(inner.get("model_max_length")):
        longest = inner["model_max_length"]
    scalings = _scalings(inner)
    if "gemma3" not in str(inner.get("model_type")):
        longest = _scaled(longest, scalings, release)
    original = inner.get("original_max_position_embeddings")
    if _length(original) and any(_kind(scaling) == "longrope" for scaling in scalings):
        return Context(longest, min(longest, int(original)))  # type: ignore[arg-type]
    return Context(longest, longest)


def _scaled(longest: int, scalings: List[Dict[str, Any]], release: Release) -> int:
    """The context, longer by the factor of a rope scaling whose factor is not yet in it."""
    found: float = longest
    factor: float = 1
    for scaling in scalings:
        kind, named = _kind(scaling), scaling.get("factor")
        if kind in _NOT_SCALED or (kind == "yarn" and not yarn_is_applied(release)):
            continue
        if isinstance(named, (int, float)) and 1 < named < 1e6:  # nor is it NaN
            factor = named
        original = scaling.get("original_max_position_embeddings")
        if kind == "yarn" and _length(original):
            found = original  # type: ignore[assignment]
    scaled = int(found * factor)
    return scaled if release else max(longest, scaled)


def _scalings(inner: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """The rope scalings of a model; some have one for each kind of layer."""
    for name in _ROPE:
        given = inner.get(name)
        if isinstance(given, dict) and given:
            nested = [value for value in given.values() if isinstance(value, dict)]
            return nested or [given]
    return []


def _kind(scaling: Dict[str, Any]) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
