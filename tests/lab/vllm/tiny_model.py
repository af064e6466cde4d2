#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a tiny random model that a real vLLM serves: `tiny_model.py DIRECTORY [SEED | reranker | adapter]`.

A Llama of 2 layers of 128, 4 heads (2 of keys and values), 512 tokens of context, and a byte-level tokenizer trained on
its own words. About 1 MB; the same seed gives the same weights. A reranker is the same model with a head for one score;
an adapter (LoRA) belongs to any of these models. Runs in an environment with transformers and torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
WORDS = ["every card serves and every change is proven on the running process", "memory holds each layer", "0123456789"]
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"


def make(folder: Path, seed: int = 0, reranker: bool = False) -> None:
    import tokenizers
    import torch
    import transformers
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = dict(CONFIG, architectures=["LlamaForSequenceClassification"], num_labels=1) if reranker else CONFIG
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    torch.manual_seed(seed)
    (architecture,) = config["architectures"]
    shape = {key: value for key, value in config.items() if key != "architectures"}
    model = getattr(transformers, architecture)(transformers.LlamaConfig(**shape))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        str(folder / "model.safetensors"),
        metadata={"format": "pt"},
    )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "model_max_length": CONFIG["max_position_embeddings"],
                "chat_template": CHAT_TEMPLATE,
            }
        ),
        encoding="utf-8",
    )
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}), encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes its file for its owner alone


def make_adapter(folder: Path, rank: int = 4) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    size, values = CONFIG["hidden_size"], CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    weights = {}
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, width in (("q_proj", size), ("v_proj", values)):
            part = "base_model.model.model.layers.%d.self_attn.%s." % (layer, name)
            weights[part + "lora_A.weight"] = torch.ones(rank, size)
            weights[part + "lora_B.weight"] = torch.ones(width, rank)
    save_file(weights, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "adapter_model.safetensors").chmod(0o644)


if __name__ == "__main__":
    kinds = {"adapter": make_adapter, "reranker": lambda folder: make(folder, reranker=True)}
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    what, folder = (sys.argv[2:] or ["0"])[0], Path(sys.argv[1])
    if what in kinds:
        kinds[what](folder)
    else:
        make(folder, int(what))
