# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""config.json → shape, parallel sizes, memory: by tables, and vLLM's own rules."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.hf_model import shape
from ansible_collections.gpufleet.inference.plugins.module_utils.hf_model.parallel import Parallel, choose
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import sizing

GIB = 1 << 30
LLAMA8 = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
LLAMA70 = dict(LLAMA8, num_hidden_layers=80, num_attention_heads=64, hidden_size=8192)
DEEPSEEK = {
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "dtype": "bfloat16",
}
QWEN30 = {
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "torch_dtype": "bfloat16",
}
"""Qwen3-30B-A3B."""
QWEN235 = dict(QWEN30, num_attention_heads=64, num_hidden_layers=94, moe_intermediate_size=1536)
FP8_BLOCKS = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
MODELOPT = {"quantization_config": {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}}
GEMMA = dict(LLAMA8, sliding_window=1024, layer_types=["sliding_attention", "full_attention"])


def test_the_shape_of_a_llama():
    found = shape.read(LLAMA8)
    assert (found.layers, found.heads, found.kv_heads, found.head_size) == (32, 32, 8, 128)
    assert (found.element, found.latent, found.plain, found.quantized) == (2, 0, True, False)


@pytest.mark.parametrize(
    "config, key, value",
    [
        ({"n_head": 8, "n_embd": 512, "n_layer": 4, "n_positions": 99}, "head_size", 64),
        ({"num_attention_heads": 8}, "kv_heads", 8),
        ({"num_attention_heads": 8, "multi_query": True}, "kv_heads", 1),
        ({"text_config": {"num_attention_heads": 16}, "num_attention_heads": 3}, "heads", 16),
        ({"dtype": "float32"}, "element", 4),
        ({}, "heads", None),
        ({"num_attention_heads": True}, "heads", None),
        (DEEPSEEK, "latent", 576),
        (GEMMA, "plain", False),
        ({"sliding_window": 4096}, "plain", False),
        ({"sliding_window": 4096, "use_sliding_window": False}, "plain", True),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized", True),
        ({"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 8}, "kv_heads", 8),
        ({"llm_config": {"num_attention_heads": 40}}, "heads", 40),
        ({"thinker_config": {"text_config": {"num_attention_heads": 28}}}, "heads", 28),
        ({"text_config": {"model_type": "gemma3_text", "num_hidden_layers": 34}}, "heads", 8),
        ({"linear_attn_config": {"kda_layers": [1]}}, "plain", False),
        ({"attn_type_list": [0, 1]}, "plain", False),
        ({"attention_chunk_size": None}, "plain", True),
        (QWEN30, "experts", True),
        (QWEN30, "inner_size", 768),
        ({"num_experts": 0, "intermediate_size": 9}, "experts", False),
        (FP8_BLOCKS, "block", 128),
        (MODELOPT, "cache_dtype", "fp8"),
    ],
)
def test_what_config_json_tells(config, key, value):
    assert getattr(shape.read(config), key) == value


@pytest.mark.parametrize(
    "gpus, config, wanted, sizes",
    [
        (4, LLAMA8, (None, None, None), (4, 1, 1)),
        (4, LLAMA8, ("auto", "auto", "auto"), (4, 1, 1)),
        (1, LLAMA8, (None, None, None), (1, 1, 1)),
        (0, LLAMA8, (None, None, None), (1, 1, 1)),
        (0, LLAMA8, (None, "2", None), (1, 2, 1)),
        (3, LLAMA8, (None, None, None), (1, 3, 1)),
        (6, LLAMA8, (None, None, None), (2, 3, 1)),
        (16, LLAMA8, (None, None, None), (16, 1, 1)),  # heads of keys and values are copied
        (8, LLAMA70, ("4", None, None), (4, 2, 1)),
        (8, LLAMA70, (None, "2", None), (4, 2, 1)),
        (8, LLAMA70, (None, None, "2"), (4, 1, 2)),
        (6, None, (None, None, None), (6, 1, 1)),
        (6, {"num_hidden_layers": 4}, (None, None, None), (6, 1, 1)),
        (6, {"num_attention_heads": 2}, (None, "3", None), (2, 3, 1)),  # how many layers is not known
        (4, dict(LLAMA8, num_hidden_layers=4), ("1", "4", None), (1, 4, 1)),
        (16, dict(LLAMA8, num_attention_heads=24), (None, None, None), (8, 2, 1)),
        (12, dict(LLAMA8, num_attention_heads=48), (None, None, None), (4, 3, 1)),  # 8 of keys and values, not 48
        (12, dict(DEEPSEEK, num_attention_heads=48, num_key_value_heads=8), (None, None, None), (12, 1, 1)),
        (6, dict(LLAMA8, num_key_value_heads=6, num_attention_heads=12), (None, None, None), (6, 1, 1)),
    ],
)
def test_sizes(gpus, config, wanted, sizes):
    found = choose(gpus, shape.read(config) if config else None, *wanted)
    assert found[:3] == sizes


@pytest.mark.parametrize(
    "gpus, config, wanted, why",
    [
        (1, LLAMA8, (None, None, None), "1 GPU, 32 heads split over all of them"),
        (4, LLAMA8, (None, None, None), "4 GPUs, 32 heads split over all of them"),
        (6, LLAMA8, (None, None, None), "6 GPUs, 32 heads (8 of keys and values) split over 2"),
        (8, LLAMA8, (None, None, "2"), "4 GPUs for each of 2 copies, 32 heads split over all of them"),
        (2, None, (None, None, None), "2 GPUs, config.json not known before the start"),
        (2, {"num_hidden_layers": 4}, (None, None, None), "2 GPUs, config.json not known before the start"),
        (0, LLAMA8, (None, None, None), "no GPU"),
    ],
)
def test_why_these_sizes(gpus, config, wanted, why):
    assert choose(gpus, shape.read(config) if config else None, *wanted).why == why


@pytest.mark.parametrize(
    "gpus, config, wanted, words",
    [
        (
            3,
            LLAMA8,
            ("3", None, None),
            "32 attention heads (8 of keys and values) do not split over 3 GPUs; possible are 1, 2, 4",
        ),
        (3, {"num_attention_heads": 4}, ("3", None, None), "4 attention heads do not split"),
        (4, LLAMA8, ("2", "1", None), "tensor 2 × pipeline 1 × data 1 = 2 GPUs, but 4 are chosen (visible_devices);"),
        (6, LLAMA8, (None, "4", None), "tensor 1 × pipeline 4 × data 1 = 4 GPUs, but 6 are chosen"),
        (2, LLAMA8, (None, "4", None), "tensor 1 × pipeline 4 × data 1 = 4 GPUs, but 2 are chosen"),
        (2, LLAMA8, ("4", None, None), "tensor 4 × pipeline 1 × data 1 = 4 GPUs, but 2 are chosen"),
        (8, dict(LLAMA8, num_attention_heads=24), ("3", None, None), "24 attention heads (8 of keys and values) do"),
        (4, LLAMA8, (None, None, "3"), "3 copies of the model do not share 4 GPUs"),
        (6, LLAMA8, (None, "2", None), "do not split over the 3 GPUs of a stage"),
        (4, dict(LLAMA8, num_hidden_layers=2), ("1", "4", None), "4 stages for 2 layers"),
        (4, LLAMA8, ("many", None, None), "tensor_parallel_size: 'many' is neither"),
        (4, LLAMA8, (None, True, None), "pipeline_parallel_size: True is neither"),
        (4, LLAMA8, (None, None, "-1"), "data_parallel_size: '-1' is neither"),
        (4, LLAMA8, ("0", None, None), "'0' is neither"),
    ],
)
def test_sizes_that_cannot_be(gpus, config, wanted, words):
    with pytest.raises(Refused) as caught:
        choose(gpus, shape.read(config), *wanted)
    assert words in str(caught.value)


@pytest.mark.parametrize("at, option", [(0, "tensor"), (1, "pipeline"), (2, "data")])
def test_which_size_is_none(at, option):
    wanted = [None, None, None]
    wanted[at] = "many"
    with pytest.raises(Refused, match="^%s_parallel_size: 'many' is neither" % option):
        choose(4, None, *wanted)


@pytest.mark.parametrize(
    "gpus, config, sizes, rules, expected",
    [
        (4, QWEN30, (None, None, None), {}, (4, 1, 1)),
        (4, QWEN30, (None, None, None), {"part": 128}, (2, 2, 1)),  # 768 / 4 is no multiple of 128
        (4, QWEN30, (None, None, None), {"part": 32}, (4, 1, 1)),
        (8, QWEN235, (None, None, None), {"part": 128}, (4, 2, 1)),
        (4, QWEN30, (None, None, None), {"part": 128, "whole_experts": True}, (4, 1, 1)),
        (8, QWEN235, ("1", None, "8"), {"part": 128, "whole_experts": True}, (1, 1, 8)),
        (4, dict(LLAMA8, intermediate_size=1536), (None, None, None), {"part": 128}, (4, 1, 1)),
        (8, dict(LLAMA8, intermediate_size=1536), (None, None, None), {"part": 128}, (4, 2, 1)),
        (8, dict(LLAMA8, intermediate_size=1537), (None, None, None), {}, (8, 1, 1)),
    ],
)
def test_sizes_of_experts_and_blocks(gpus, config, sizes, rules, expected):
    assert choose(gpus, shape.read(config), *sizes, **rules)[:3] == expected


@pytest.mark.parametrize(
    "config, sizes, part, words",
    [
        (QWEN30, ("8", None, None), 128, "width 768 do not split into multiples of 128 (their blocks of quantised"),
        (QWEN30, ("8", None, None), 128, "over 8 GPUs; possible are 1, 2, or whole experts on each GPU"),
        (QWEN235, ("1", None, "8"), 128, "over 8 GPUs; possible are none with data_parallel_size 8, or whole"),
    ],
)
def test_experts_that_do_not_split(config, sizes, part, words):
    with pytest.raises(Refused) as caught:
        choose(8, shape.read(dict(config, num_key_value_heads=64)), *sizes, part=part)
    assert words in str(caught.value)


# --- memory


def fit(config, weights, total, parallel, **more):
    return sizing.fit(config, weights, total, parallel, **{"utilization": 0.92, **more})


def test_the_cache_of_one_token_by_the_book():
    one = Parallel(1, 1, 1, "")
    assert fit(shape.read(LLAMA8), 0, GIB, one).token == 131072
    assert fit(shape.read(LLAMA70), 0, GIB, one).token == 320 * 1024
    assert fit(shape.read(LLAMA70), 0, GIB, Parallel(4, 1, 1, "")).token == 80 * 1024
    assert fit(shape.read(LLAMA70), 0, GIB, Parallel(16, 1, 1, "")).token == 40 * 1024
    assert fit(shape.read(LLAMA70), 0, GIB, Parallel(4, 2, 1, "")).token == 40 * 1024
    assert fit(shape.read(LLAMA8), 0, GIB, one, cache_dtype="fp8_e5m2").token == 65536
    assert fit(shape.read(DEEPSEEK), 0, GIB, Parallel(8, 1, 1, "")).token == 61 * 576 * 2
    assert fit(shape.read(GEMMA), 0, GIB, one).token == 0, "layers differ: not foretold"
    assert fit(None, 0, GIB, one).token == 0


def test_a_model_that_fits():
    found = fit(shape.read(LLAMA8), 15 * GIB, 80 * GIB, Parallel(1, 1, 1, ""), context=131072)
    assert (found.budget, found.weights, found.request, found.missing) == (79027398247, 15 * GIB, 16 * GIB, 0)
    assert found.tokens == (found.budget - 17 * GIB) // 131072
    sizing.check_fit(found, "0", 0.92, 131072)


def test_a_context_that_does_not_fit_is_told_with_all_numbers():
    found = fit(shape.read(LLAMA8), 15 * GIB, 24 * GIB, Parallel(1, 1, 1, ""), context=131072)
    with pytest.raises(Refused) as caught:
        sizing.check_fit(found, "0 (RTX 4090)", 0.92, 131072)
    said = str(caught.value)
    for words in (
        "0.92 of its memory, 22.1 GiB",
        "weights need 15.0 GiB",
        "131072 tokens 16.0 GiB",
        "8.9 GiB too little",
    ):
        assert words in said
    assert "about 41615 tokens would fit" in said


def test_the_tokens_that_are_named_fit():
    """What is advised is what the result predicts, after the reserve."""
    found = fit(shape.read(LLAMA8), 15 * GIB, 24 * GIB, Parallel(1, 1, 1, ""), context=131072)
    with pytest.raises(Refused, match="about %d tokens" % found.tokens):
        sizing.check_fit(found, "0", 0.92, 131072)


@pytest.mark.parametrize("data, weights", [(1, 640), (2, 320), (8, 80)])
def test_experts_are_divided_among_all_gpus(data, weights):
    """DeepSeek-V3 with data and expert parallel, as its recipe has it; the copies of the rest are not known."""
    moe = shape.read(dict(DEEPSEEK, n_routed_experts=256, moe_intermediate_size=2048))
    assert fit(moe, 640 * GIB, 141 * GIB, Parallel(1, 1, data, "")).weights == weights * GIB
    assert fit(shape.read(DEEPSEEK), 640 * GIB, 141 * GIB, Parallel(1, 1, data, "")).weights == 640 * GIB


@pytest.mark.parametrize(
    "config, cache_dtype, token",
    [
        (LLAMA8, "bfloat16", 131072),
        (LLAMA8, "fp8_e4m3", 65536),
        (LLAMA8, "nvfp4", 0),
        (LLAMA8, "int4_per_token_head", 0),
        (dict(LLAMA8, **MODELOPT), "auto", 65536),
        (dict(LLAMA8, **MODELOPT), "bfloat16", 131072),
        (DEEPSEEK, "fp8_ds_mla", 0),
    ],
)
def test_a_cache_whose_size_is_not_known_is_not_predicted(config, cache_dtype, token):
    assert fit(shape.read(config), 0, GIB, Parallel(1, 1, 1, ""), cache_dtype=cache_dtype).token == token


def test_weights_that_do_not_fit():
    found = fit(shape.read(LLAMA70), 140 * GIB, 24 * GIB, Parallel(4, 1, 1, ""), context=100)
    with pytest.raises(Refused, match="choose more GPUs, a quantised model"):
        sizing.check_fit(found, "0", 0.92, 100)
    assert not fit(None, 140 * GIB, 24 * GIB, Parallel(8, 1, 1, "")).missing
    assert not fit(None, 140 * GIB, 24 * GIB, Parallel(4, 1, 1, ""), offload=20 * GIB).missing


@pytest.mark.parametrize(
    "config, options, expected",
    [
        ({"dtype": "float32"}, {}, 50),
        ({"dtype": "float32"}, {"dtype": "float32"}, 100),
        ({"dtype": "bfloat16"}, {"dtype": "float32"}, 200),
        ({"dtype": "bfloat16"}, {"quantization": "fp8"}, 25),
        ({"dtype": "bfloat16", "quantization_config": {}}, {"quantization": "awq"}, 100),
    ],
)
def test_weights_as_they_are_loaded(config, options, expected):
    assert sizing.weights_loaded(100, shape.read(config), **options) == expected


@pytest.mark.parametrize(
    "gpus, hosts, model, sizes, expected",
    [
        (8, 2, LLAMA70, (None, None), (8, 2)),
        (4, 3, LLAMA70, (None, None), (4, 3)),
        (6, 2, LLAMA70, (None, None), (2, 6)),  # 64 heads do not split over 6
        (4, 2, LLAMA70, (8, None), (8, 1)),
        (4, 2, LLAMA70, (None, 4), (2, 4)),
        (0, 2, LLAMA8, (2, 1), (2, 1)),
    ],
)
def test_a_model_on_several_hosts(gpus, hosts, model, sizes, expected):
    found = choose(gpus, shape.read(model), *sizes, None, hosts)
    assert (found.tensor, found.pipeline, found.data) == (*expected, 1)


@pytest.mark.parametrize(
    "config, sizes, rules, expected",
    [
        (LLAMA70, (None, None, 2), {}, (8, 1, 2)),
        (LLAMA70, (None, None, 4), {}, (4, 1, 4)),
        (LLAMA70, (None, 2, 4), {}, (2, 2, 4)),
        (QWEN235, ("1", None, 16), {"whole_experts": True, "part": 128}, (1, 1, 16)),  # as the recipe of DeepSeek
        (dict(QWEN235, moe_intermediate_size=2048), (None, None, 2), {"part": 128}, (8, 1, 2)),
    ],
)
def test_copies_on_several_hosts(config, sizes, rules, expected):
    assert choose(8, shape.read(config), *sizes, 2, **rules)[:3] == expected


@pytest.mark.parametrize(
    "sizes, words",
    [
        ((2, 1, None), "= 2 GPUs, but 8 are chosen (visible_devices, 4 on each of 2 hosts)"),
        ((None, None, 3), "data_parallel_size: 3 copies of a model on 2 hosts; expected 1 or a multiple of 2"),
        ((None, None, 6), "data_parallel_size: 6 copies of the model do not share 8 GPUs evenly"),
        (("4", None, 4), "tensor 4 × pipeline 1 × data 4 = 16 GPUs, but 8 are chosen (visible_devices, 4 on each of 2"),
    ],
)
def test_what_does_not_fit_several_hosts(sizes, words):
    with pytest.raises(Refused) as error:
        choose(4, shape.read(LLAMA70), *sizes, 2)
    assert words in str(error.value)
