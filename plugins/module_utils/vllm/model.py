# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the files of an instance's model say before its start: its shape, its weights, its context, whether it fits."""

from __future__ import annotations

import os
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence

from ..gpu.select import label
from ..hf_model import checkpoint, shape
from ..hf_model.parallel import Parallel
from ..placement.memory import GIB
from ..serving.model import Host
from ..toolbox.errors import Refused
from . import context, releases, settings, sizing, unit


class Model(NamedTuple):
    """What is known about a model before its start."""

    dimensions: Optional[shape.Shape]
    """None if its config.json is not on this host."""
    weights: int
    """Bytes, once loaded."""
    context: context.Context = context.Context(None, None)


def read(options: Mapping[str, Any], host: Host, release: releases.Release) -> Model:
    """The model of an instance, as far as its files are on this host."""
    name = options["model"]
    path = _locate(options, name, options["revision"])
    if name.startswith("/") and path is None and not os.path.isfile(name):
        said = "model: there is no directory %s on this host" % name
        if not host.check_mode:
            raise Refused("%s; expected one with a config.json" % said)
        host.warn("%s yet" % said)
    overrides = settings.extra(options, "hf-overrides")
    return _read(options, path, overrides if isinstance(overrides, dict) else {}, release)


def draft(options: Mapping[str, Any], release: releases.Release) -> Optional[Model]:
    """The draft model of speculative decoding; None if there is none with files of its own."""
    speculative = settings.extra(options, "speculative-config")
    name = speculative.get("model") if isinstance(speculative, dict) else None
    if not isinstance(name, str):
        return None
    revision = speculative.get("revision")
    path = _locate(options, name, None if revision is None else str(revision))
    return _read(dict(options, quantization=None), path, {}, release)


def _locate(options: Mapping[str, Any], name: str, revision: Optional[str]) -> Optional[str]:
    return checkpoint.locate(name, unit.hub_cache(options), options["user"], revision)


def _read(
    options: Mapping[str, Any], path: Optional[str], overrides: Mapping[str, Any], release: releases.Release
) -> Model:
    user = options["user"]
    document = context.overridden(checkpoint.config(path, user), overrides) if path else {}
    dimensions = shape.read(document) if document else None
    stored = checkpoint.weight_bytes(path, user) if path else 0
    loaded = sizing.weights_loaded(stored, dimensions, options["dtype"] or "auto", options["quantization"])
    return Model(dimensions, loaded, context.read(document, release))


def rules(options: Mapping[str, Any], model: Model, release: releases.Release) -> Dict[str, Any]:
    """What ``choose`` must know about how the model may be split."""
    whole = settings.extra(options, "enable-expert-parallel") is True
    dimensions = model.dimensions
    if not dimensions or dimensions.block == 1:
        return {"whole_experts": whole}
    part = releases.expert_part(release, dimensions.block) if dimensions.experts else dimensions.block
    return {"whole_experts": whole, "part": part}


def fit(
    options: Mapping[str, Any],
    devices: Sequence[Dict[str, Any]],
    model: Model,
    parallel: Parallel,
    utilization: float,
    release: releases.Release,
) -> Optional[sizing.Fit]:
    """What the model will take of each GPU; None without a GPU.

    :raises Refused: it does not fit, or its longest request is longer than the model allows.
    """
    tokens = _tokens(options, model.context)
    if not devices:
        return None
    found = sizing.fit(
        model.dimensions,
        model.weights,
        min(device["memory"]["total_bytes"] for device in devices),
        parallel,
        utilization=utilization,
        context=tokens,
        dtype=options["dtype"] or "auto",
        cache_dtype=options["kv_cache_dtype"] or "auto",
        offload=int((options["cpu_offload_gb"] or 0) * GIB),
    )
    beside = draft(options, release)
    if beside:
        found = found._replace(weights=found.weights + beside.weights // parallel.tensor)
    if settings.extra(options, "kv-cache-memory-bytes") is None:
        sizing.check_fit(found, label(devices[0]), utilization, tokens)
    return found


def _tokens(options: Mapping[str, Any], known: context.Context) -> Optional[int]:
    """Tokens of the longest request; None if they are not known before the start."""
    if options["max_model_len"] is None:
        return known.default
    wanted = settings.tokens(options["max_model_len"])
    forced = str(options["environment"].get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0")).strip().lower() in ("1", "true")
    if wanted and known.longest and wanted > known.longest and not forced:
        raise Refused(
            "max_model_len: %d tokens, but the model's config.json allows %d at most; lower it, or extend the context "
            "by hf-overrides in extra_args (vLLM would end with an error; VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 in "
            "environment forces it, at the price of wrong answers)" % (wanted, known.longest)
        )
    return wanted
