#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a model of a known shape: `model_of_shape.py DIRECTORY SHAPE [--weights]`.

Its file of weights has the right size, but is a hole that takes no disk, for `load_format: dummy`. With --weights it
has random weights, whose greedy answers are certain enough to be compared. The tokenizer is the small one of
tests/lab/vllm/tiny_model.py. Runs in an environment with transformers and torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/vllm"))

import tiny_model

LLAMA = {
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
QWEN = {"vocab_size": 151936, "max_position_embeddings": 40960, "head_dim": 128, "torch_dtype": "bfloat16"}
SHAPES = {
    "llama-1b": {
        **LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "initializer_range": 0.06,
    },
    "llama-8b": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama-8b-long": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 131072,
    },
    "llama-70b": {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "qwen3-30b-a3b": {
        **QWEN,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    },
    "qwen3-4b-embedding": {
        **QWEN,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "deepseek-v2-lite": {  # multi-head latent attention
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "vocab_size": 102400,
        "max_position_embeddings": 32768,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "head_dim": 64,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "torch_dtype": "bfloat16",
    },
}


def model_of(config: dict[str, object], device: str) -> object:
    """The model as transformers builds it; on the device ``meta`` it takes no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    known = AutoConfig.for_model(**{key: value for key, value in config.items() if key != "architectures"})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(known).to(torch.bfloat16)


def write_weights(path: Path, config: dict[str, object]) -> None:
    import torch
    from safetensors.torch import save_file

    state = model_of(config, "cuda" if torch.cuda.is_available() else "cpu").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path), metadata={"format": "pt"})


def write_hole(path: Path, config: dict[str, object]) -> None:
    """A valid file with one tensor of zeros, as large as all weights."""
    numbers = sum(parameter.numel() for parameter in model_of(config, "meta").parameters())
    tensor = {"dtype": "BF16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}
    header = json.dumps({"zeros": tensor}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * numbers)


def main() -> None:
    folder = Path(sys.argv[1])
    config = {**tiny_model.CONFIG, **SHAPES[sys.argv[2]]}
    tiny_model.make(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["model_max_length"] = config["max_position_embeddings"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    write = write_weights if "--weights" in sys.argv[3:] else write_hole
    write(folder / "model.safetensors", config)
    (folder / "model.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
